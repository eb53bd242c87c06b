package luks

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
)

// Errors of this package.
var (
	// ErrNotLUKS: there is no LUKS header.
	ErrNotLUKS = errors.New("no LUKS volume")
	// ErrPassphrase: the passphrase or key file opens no key slot.
	ErrPassphrase = errors.New("the passphrase or key file opens none of its key slots")
	// ErrCorrupt: a checksum fails or the header contradicts itself.
	ErrCorrupt = errors.New("LUKS header is damaged")
	// ErrUnsupported: the header asks for something that this package does not know.
	ErrUnsupported = errors.New("not supported")
)

// Bounds of what a header may ask for.
const (
	maxKeyBytes    = 128            // of a volume key; 64 is the largest in use
	maxStripes     = 16384          // of the anti-forensic splitter; 4000 is what cryptsetup makes
	maxAreaBytes   = 4 << 20        // of the key material of one slot
	maxMemoryKiB   = 1 << 20        // of Argon2
	maxWorkKiB     = 32 << 20       // of Argon2: memory times passes
	maxTotalKiB    = 4 * maxWorkKiB // over all slots, in one attempt
	maxIterations  = 64_000_000     // of PBKDF2 in one attempt with one passphrase, over all slots
	maxKeySlots    = 32
	maxParallelism = 64
)

// Header is what a LUKS header says.
type Header struct {
	// Version is 1 or 2.
	Version int
	UUID    string
	Label   string
	// Cipher as dm-crypt spells it, "aes-xts-plain64".
	Cipher string
	// SectorBytes is the unit of encryption.
	SectorBytes int
	// Warnings say what was damaged and how it was helped.
	Warnings []string

	r       io.ReaderAt
	size    int64
	slots   []slot
	digests []digest
	// What is encrypted: offset in r, length, and the number that is added to the
	// number of the first sector.
	dataOffset, dataSize int64
	ivTweak              uint64
	keyBytes             int
}

// slot is a key slot: how a passphrase becomes the key of an area, and how the area
// becomes the volume key.
type slot struct {
	number   string
	kdf      kdf
	keyBytes int // of the volume key
	stripes  int
	afHash   string
	offset   int64
	size     int64
	cipher   string
	areaKey  int // bytes of the key of the area
	err      error
}

// digest tells a right volume key from a wrong one.
type digest struct {
	kdf   kdf
	value []byte
	slots map[string]bool // nil: all
}

// ReadHeader reads the header at the start of r, of size bytes.
func ReadHeader(r io.ReaderAt, size int64) (*Header, error) {
	if size < 4096 {
		return nil, ErrNotLUKS
	}
	p, err := readAt(r, size, 0, 4096)
	if err != nil {
		return nil, err
	}
	if string(p[:6]) != magicFirst {
		return nil, ErrNotLUKS
	}
	switch v := int(p[6])<<8 | int(p[7]); v {
	case 1:
		return readLUKS1(r, size, p)
	case 2:
		return readLUKS2(r, size)
	default:
		return nil, fmt.Errorf("version %d of LUKS is %w", v, ErrUnsupported)
	}
}

// String says what it is, for a status line: "LUKS2 aes-xts-plain64".
func (h *Header) String() string { return fmt.Sprintf("LUKS%d %s", h.Version, h.Cipher) }

// Identity tells headers apart: it differs when the volume or any of its key slots does.
func (h *Header) Identity() string {
	sum := sha256.New()
	fmt.Fprint(sum, h.Version, h.UUID, h.Cipher, h.dataOffset, h.slots, h.digests)
	return fmt.Sprintf("%x", sum.Sum(nil))
}

const (
	magicFirst  = "LUKS\xba\xbe"
	magicSecond = "SKUL\xba\xbe"
)

// readAt reads n bytes that must lie inside the volume.
func readAt(r io.ReaderAt, size, off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || off > size || n > size-off {
		return nil, fmt.Errorf("%d bytes at %d are outside the volume of %d: %w", n, off, size, ErrCorrupt)
	}
	p := make([]byte, n)
	if got, err := r.ReadAt(p, off); got < len(p) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read LUKS header: %w", err)
	}
	return p, nil
}
