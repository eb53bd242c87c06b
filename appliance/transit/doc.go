// Package transit is a client of the transit secrets engine: a key-management service
// that encrypts small secrets with keys that never leave it. HashiCorp Vault and OpenBao
// serve it.
//
//	keys → Client.Encrypt, Decrypt, Rewrap → POST /v1/MOUNT/{encrypt,decrypt,rewrap}/NAME
//
// [ParseURL] reads the address of a [Key]; [New] makes the [Client] of one key. A call
// sends one JSON object over HTTPS, with the token in X-Vault-Token and the namespace in
// X-Vault-Namespace. A ciphertext is text, "vault:v3:…", that names the version of the key.
//
// # Why not the field's client library
//
// Three requests are all we need. The library brings some twenty modules into the binary,
// among them two languages for configuration files, reads some twenty environment
// variables below our command line, and retries by rules of its own. These two hundred
// lines say what they do: what is retried, for how long, and what an operator reads.
//
// # Errors
//
// An [Error] has the service's own words. [ErrUnreachable] comes after the last attempt
// when the service did not answer, is sealed or has trouble of its own: a later attempt
// may succeed. [ErrDenied] and [ErrRefused] come at once, since repeating does not help.
package transit
