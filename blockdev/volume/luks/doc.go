// Package luks opens LUKS1 and LUKS2 volumes with a passphrase or the content of a key
// file, for reading.
//
//	partition, logical volume or disk → luks.ReadHeader → Unlock → Volume (plain text)
//
//	h, err := luks.ReadHeader(r, size)       // luks.ErrNotLUKS: it is none
//	key, err := h.Unlock(passphrase)         // luks.ErrPassphrase: no key slot fits
//	v, err := h.Open(key)                    // io.ReaderAt of v.Size() bytes
//
// Ciphers: aes-xts-plain64, aes-cbc-essiv:sha256, and aes with xts or cbc and plain or
// plain64; sectors of 512 to 4096 bytes. Key derivation: PBKDF2, Argon2i, Argon2id. What
// else a header may ask for (other ciphers, integrity, a reencryption under way) is
// refused by name.
//
// A header may be hostile: a key slot may ask for at most 1 GiB of memory, which is what
// cryptsetup itself asks for at most unless told otherwise, and for a bounded amount of
// work; one derivation runs at a time. Headers of LUKS2 count only with a right checksum;
// the newer of two is used.
//
// Key material is never logged and never part of an error. FORMAT.md says what is read.
//
// A Header and a Volume may be used from any number of goroutines.
package luks
