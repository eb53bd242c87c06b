// Package keyring holds the unwrapped keys of a key domain, makes ids under them, and
// seals and opens records.
//
// # Place in the data path
//
//	appliance/keys (wrapped keys) → Unmarshal → Keys → blockstore.Options
//	blockstore: compress → Keys.Seal → pack → Keys.Open → decompress → Keys.Digester
//
// # The keys of a domain
//
// What is stored, wrapped, is one id secret, which never changes, and one or more data
// secrets, each with an id, of which the first seals new records. No secret is used as a
// key itself: [Derive] makes a key for one purpose from it, HKDF-SHA-256 with a label, so
// that no key can stand in for another. FORMAT.md has the bytes and the labels.
//
//	keys := keyring.New(domain)
//	stored := keys.Marshal()          // to be wrapped
//	keys, err := keyring.Unmarshal(stored)
//
// # Sealing
//
// Records are sealed with XAES-256-GCM (https://c2sp.org/XAES-256-GCM): AES-256-GCM with
// a key derived from the first half of a random nonce of 24 bytes. A nonce of 12 bytes
// may be drawn at random for some 2^32 records of one key, 256 TiB of blocks; this one
// for 2^80. It is never made from the content, as one digest can be stored in different
// bytes: compressed by another codec, or as a patch. The header of the record is
// authenticated with it, so a payload is not to be opened under another digest, kind,
// length or domain. A block's list of grain digests is sealed beside its content, under the
// same key with another nonce, so that it can be read alone; a list tells which grains are
// alike, so it does not stand in clear.
//
// No Go module of it could be fetched when this was written, and it is little more than
// two calls of AES before the standard library's GCM, so it stands here, with the vectors
// of its specification as a test.
//
// # Locking
//
// Methods may be called from any number of goroutines. Secrets stay in memory as long as
// Keys does, and are in nothing that is printed or logged.
package keyring
