// Package keys keeps the keys of encrypted vaults: wrapped on disk, open in memory, and, for
// the day when all is lost, in an escrow file.
//
//	DIR/keys, VAULT/keys → Vault.Open → keyring.Keys → appliance/vault → blockstore
//	key rotate, backup, restore → api → Store.Rotate, Backup, Restore
//
// A [Store] is a site's. [Store.Vault] gives the keys of one [Vault], by its name and folder.
// [Vault.Make] makes them for a new vault and [Vault.Open] opens them at each start;
// [Store.Rotate] wraps them anew.
//
//	store := keys.New(keys.Options{Dir: "DIR/keys", PlatformFile: "DIR/platform.key"})
//	v := store.Vault("default", "DIR/vault", keys.Spec{Kind: keys.KindPlatform})
//	list, err := v.Open(ctx)          // for blockstore.Options.Keys
//
// # Two layers
//
// The keys of a domain (package keyring) seal records and never change, save that data keys
// are added: changing them would mean to write the vault anew. So they are wrapped, by a
// key-encryption key, and a rotation changes that one: it writes one file of 2 KiB and no
// pack. The key-encryption key is one of four kinds: a key of the appliance in a file that
// only its user can read (platform, the default), a file of the customer, a passphrase
// stretched by Argon2id, or a random key that a key-management service has encrypted.
//
// # Two copies
//
// A wrapped file is in the vault's folder, so that a vault which is moved to another machine
// carries its keys along, and in DIR/keys, so that they are there when the vault's disk has
// just come back empty. The newer one counts, and the other is brought up to it. FORMAT.md
// has the bytes.
//
// # What is never done
//
// Keys are made with a vault, never for one that exists: a vault whose keys are missing stays
// closed, and its files stay as they are. A wrapped file is replaced only when the new one is
// durable, was read back, and was opened by the way that the next start takes; a data key
// seals its first record only after that. A platform key is dropped only when nothing that
// can be seen is wrapped by it. Secrets are in no error, log or API answer, but for the
// recovery secret, once.
//
// # Locking
//
// Store.op is taken before Store.mu. op is held across files and requests; mu never is, so
// that [Store.Show] answers while a key-management service does not.
package keys
