package dedupe

import (
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/minio/sha256-simd"
)

// DigestSize is the length of a Digest in bytes.
const DigestSize = 32

// Digest is the id of a block, a node, a manifest or a note: a SHA-256, or in an
// encrypted key domain an HMAC-SHA-256 for blocks and notes. The zero Digest is no
// content's id; as a child it means a hole.
type Digest [DigestSize]byte

// Sum is the digest of a block, manifest or note of an unencrypted key domain:
// SHA-256 of its bytes.
func Sum(p []byte) Digest { return sha256.Sum256(p) }

// NodeSum is the digest of a node: SHA-256 over the four bytes "node", the level
// as one byte and the child digests in order, all FanOut of them (a hole is 32 zero
// bytes). It is not keyed in any domain, so that trees can be compared and
// verified without a key. A node without children has no digest: it is absent,
// and NodeSum panics, because storing it would be a bug of ours.
func NodeSum(level int, children *[FanOut]Digest) Digest {
	h := sha256.New()
	h.Write([]byte{'n', 'o', 'd', 'e', byte(level)})
	empty := true
	for i := range children {
		empty = empty && children[i].IsZero()
		h.Write(children[i][:])
	}
	if empty {
		panic("dedupe: digest of a node without children")
	}
	var d Digest
	h.Sum(d[:0])
	return d
}

// IsZero reports whether d is the zero Digest, a hole.
func (d Digest) IsZero() bool { return d == Digest{} }

// String is d in 64 lower-case hexadecimal digits.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText is String, for JSON.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (d *Digest) UnmarshalText(text []byte) error {
	v, err := ParseDigest(string(text))
	if err != nil {
		return err
	}
	*d = v
	return nil
}

// ParseDigest is the inverse of Digest.String.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != DigestSize {
		return d, fmt.Errorf("digest %q: want %d hexadecimal digits", s, 2*DigestSize)
	}
	copy(d[:], b)
	return d, nil
}

// Sentinel errors of the vault. Packages wrap them with the operation and object.
var (
	// ErrNotFound: nothing is stored under this digest.
	ErrNotFound = errors.New("not in the vault")
	// ErrCorrupt: what is stored is not what its digest or checksum says. It is
	// counted, never retried silently, and never read as other bytes.
	ErrCorrupt = errors.New("stored content is corrupt")
	// ErrNoSpace: the vault's file system is full or below its reserve. Every
	// point committed before is intact.
	ErrNoSpace = errors.New("no space left in the vault")
	// ErrLocked: another process has the vault open for writing.
	ErrLocked = errors.New("vault is in use by another process")
	// ErrReadOnly: the store was opened read-only.
	ErrReadOnly = errors.New("vault is open read-only")
	// ErrClosed: the store or batch was closed.
	ErrClosed = errors.New("vault is closed")
	// ErrNoKey: what is asked for is encrypted, and its key was not given. Nothing is
	// wrong with it.
	ErrNoKey = errors.New("key is not at hand")
	// ErrWrongKey: the key that was given for a key domain is not that domain's.
	ErrWrongKey = errors.New("wrong key")
	// ErrUnknownFormat: magic or version that this release does not know. A reader
	// refuses what it does not know.
	ErrUnknownFormat = errors.New("unknown format or version")
)
