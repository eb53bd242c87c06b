package luks

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// LUKS2 On-Disk Format Specification 1.1.1, section 2.
const luks2Binary = 4096 // bytes of the binary header; JSON follows

// luks2Sizes are the sizes that a header may have, binary part and JSON: also the
// places where the second one can be.
var luks2Sizes = []int64{0x4000, 0x8000, 0x10000, 0x20000, 0x40000, 0x80000, 0x100000, 0x200000, 0x400000}

// copy2 is one of the two copies.
type copy2 struct {
	seq         uint64
	label, uuid string
	size        int64
	json        []byte
}

// readLUKS2 uses the newer of the two copies whose checksums are right.
func readLUKS2(r io.ReaderAt, size int64) (*Header, error) {
	first, why := readCopy(r, size, 0, magicFirst)
	if why != nil && !errors.Is(why, ErrCorrupt) {
		return nil, why
	}
	places := luks2Sizes
	if first != nil {
		places = []int64{first.size}
	}
	var second *copy2
	why2 := fmt.Errorf("none was found: %w", ErrCorrupt)
	for _, at := range places {
		if at > size-luks2Binary {
			break
		}
		c, err := readCopy(r, size, at, magicSecond)
		if err != nil && !errors.Is(err, ErrCorrupt) {
			return nil, err
		}
		if c != nil && c.size == at {
			second = c
			break
		}
		if err != nil {
			why2 = err
		}
	}
	use := first
	var warnings []string
	switch {
	case first == nil && second == nil:
		return nil, fmt.Errorf("neither copy of the LUKS2 header can be used: %w", why)
	case first == nil:
		use = second
		warnings = append(warnings, fmt.Sprintf("the first copy of the LUKS2 header is not used: %v", why))
	case second == nil:
		warnings = append(warnings, fmt.Sprintf("the second copy of the LUKS2 header is not used: %v", why2))
	case second.seq > first.seq:
		use = second
		warnings = append(warnings, "the second copy of the LUKS2 header is newer and used")
	}
	h := &Header{Version: 2, UUID: use.uuid, Label: use.label, r: r, size: size, Warnings: warnings}
	if err := h.parse(use.json); err != nil {
		return nil, err
	}
	return h, h.checkCipher()
}

func readCopy(r io.ReaderAt, size, at int64, magic string) (*copy2, error) {
	p, err := readAt(r, size, at, luks2Binary)
	if err != nil {
		return nil, err
	}
	be := binary.BigEndian
	length := be.Uint64(p[8:])
	switch {
	case string(p[:6]) != magic || be.Uint16(p[6:]) != 2:
		return nil, fmt.Errorf("signature is wrong: %w", ErrCorrupt)
	case length > 1<<30 || !slices.Contains(luks2Sizes, int64(length)):
		return nil, fmt.Errorf("header of %d bytes: %w", length, ErrCorrupt)
	case be.Uint64(p[256:]) != uint64(at):
		return nil, fmt.Errorf("header says that it is at %d: %w", be.Uint64(p[256:]), ErrCorrupt)
	}
	if alg := cString(p[72:104]); alg != "sha256" {
		return nil, fmt.Errorf("checksum by %q is %w", alg, ErrUnsupported)
	}
	whole, err := readAt(r, size, at, int64(length))
	if err != nil {
		return nil, err
	}
	sum := bytes.Clone(whole[448:480])
	clear(whole[448:512])
	if got := sha256.Sum256(whole); !bytes.Equal(got[:], sum) {
		return nil, fmt.Errorf("checksum is wrong: %w", ErrCorrupt)
	}
	return &copy2{be.Uint64(p[16:]), cString(p[24:72]), cString(p[168:208]), int64(length), bytes.TrimRight(whole[luks2Binary:], "\x00")}, nil
}

func cString(p []byte) string {
	t, _, _ := bytes.Cut(p, []byte{0})
	return string(t)
}

// number is a 64-bit number, which the JSON has in quotes.
type number uint64

// UnmarshalJSON takes a number in quotes.
func (n *number) UnmarshalJSON(p []byte) error {
	v, err := strconv.ParseUint(strings.Trim(string(p), `"`), 10, 63)
	*n = number(v)
	return err
}

type jsonKDF struct {
	Type       string `json:"type"`
	Hash       string `json:"hash"`
	Salt       string `json:"salt"`
	Iterations int64  `json:"iterations"`
	Time       int64  `json:"time"`
	Memory     int64  `json:"memory"`
	CPUs       int64  `json:"cpus"`
}

type jsonHeader struct {
	Keyslots map[string]struct {
		Type    string  `json:"type"`
		KeySize int     `json:"key_size"`
		KDF     jsonKDF `json:"kdf"`
		AF      struct {
			Type    string `json:"type"`
			Stripes int    `json:"stripes"`
			Hash    string `json:"hash"`
		} `json:"af"`
		Area struct {
			Type       string `json:"type"`
			Offset     number `json:"offset"`
			Size       number `json:"size"`
			Encryption string `json:"encryption"`
			KeySize    int    `json:"key_size"`
		} `json:"area"`
	} `json:"keyslots"`
	Segments map[string]struct {
		Type       string          `json:"type"`
		Offset     number          `json:"offset"`
		Size       string          `json:"size"`
		IVTweak    number          `json:"iv_tweak"`
		Encryption string          `json:"encryption"`
		SectorSize int             `json:"sector_size"`
		Integrity  json.RawMessage `json:"integrity"`
		Flags      []string        `json:"flags"`
	} `json:"segments"`
	Digests map[string]struct {
		jsonKDF
		Keyslots []string `json:"keyslots"`
		Segments []string `json:"segments"`
		Digest   string   `json:"digest"`
	} `json:"digests"`
	Config struct {
		Requirements struct {
			Mandatory []string `json:"mandatory"`
		} `json:"requirements"`
	} `json:"config"`
}

func (h *Header) parse(text []byte) error {
	var j jsonHeader
	if err := json.Unmarshal(text, &j); err != nil {
		return fmt.Errorf("JSON of the LUKS2 header: %w: %w", err, ErrCorrupt)
	}
	if m := j.Config.Requirements.Mandatory; len(m) > 0 {
		return fmt.Errorf("a LUKS2 volume with %.100q is %w", strings.Join(m, ", "), ErrUnsupported)
	}
	if len(j.Keyslots) > maxKeySlots || len(j.Digests) > maxKeySlots || len(j.Segments) > maxKeySlots {
		return fmt.Errorf("%d key slots, %d digests, %d segments: %w", len(j.Keyslots), len(j.Digests), len(j.Segments), ErrCorrupt)
	}
	segment, err := h.parseSegment(j)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(j.Digests)) {
		d := j.Digests[name]
		if !slices.Contains(d.Segments, segment) {
			continue
		}
		value, err := base64.StdEncoding.DecodeString(d.Digest)
		if err != nil || len(value) == 0 || len(value) > 64 {
			return fmt.Errorf("digest %s of %d characters: %w", name, len(d.Digest), ErrCorrupt)
		}
		k, err := d.kdf()
		if err != nil {
			return err
		}
		slots := map[string]bool{}
		for _, s := range d.Keyslots {
			slots[s] = true
		}
		h.digests = append(h.digests, digest{k, value, slots})
	}
	if len(h.digests) == 0 {
		return fmt.Errorf("no digest is for the data: %w", ErrCorrupt)
	}
	for _, name := range slices.Sorted(maps.Keys(j.Keyslots)) {
		s := j.Keyslots[name]
		n := slot{number: name, keyBytes: s.KeySize, stripes: s.AF.Stripes, afHash: s.AF.Hash, offset: int64(s.Area.Offset),
			size: int64(s.Area.Size), cipher: s.Area.Encryption, areaKey: s.Area.KeySize}
		var err error
		n.kdf, err = s.KDF.kdf()
		switch {
		case s.Type != "luks2" || s.AF.Type != "luks1" || s.Area.Type != "raw":
			n.err = fmt.Errorf("key slot of type %.40q is %w", s.Type, ErrUnsupported)
		case err != nil:
			n.err = err
		default:
			n.err = n.check(h.size)
		}
		h.slots = append(h.slots, n)
	}
	return nil
}

// parseSegment takes the one segment of data. More than one is there only while a
// volume is encrypted anew, which a requirement says too.
func (h *Header) parseSegment(j jsonHeader) (string, error) {
	name := ""
	for n, s := range j.Segments {
		if slices.ContainsFunc(s.Flags, func(f string) bool { return strings.HasPrefix(f, "backup-") }) {
			continue
		}
		if name != "" {
			return "", fmt.Errorf("a LUKS2 volume with several segments is %w", ErrUnsupported)
		}
		name = n
	}
	s, ok := j.Segments[name]
	switch {
	case !ok:
		return "", fmt.Errorf("no segment of data is described: %w", ErrCorrupt)
	case s.Type != "crypt":
		return "", fmt.Errorf("a LUKS2 segment of type %.40q is %w", s.Type, ErrUnsupported)
	case len(s.Integrity) > 0:
		return "", fmt.Errorf("a LUKS2 volume with integrity protection (dm-integrity) is %w", ErrUnsupported)
	case s.SectorSize < 512 || s.SectorSize > 4096 || s.SectorSize&(s.SectorSize-1) != 0:
		return "", fmt.Errorf("sectors of %d bytes: %w", s.SectorSize, ErrCorrupt)
	}
	h.Cipher, h.SectorBytes, h.ivTweak = s.Encryption, s.SectorSize, uint64(s.IVTweak)
	h.dataOffset = int64(s.Offset)
	if h.dataOffset > h.size {
		return "", fmt.Errorf("data at %d of %d: %w", h.dataOffset, h.size, ErrCorrupt)
	}
	h.dataSize = h.size - h.dataOffset
	if s.Size != "dynamic" {
		n, err := strconv.ParseInt(s.Size, 10, 64)
		if err != nil || n < 0 || n > h.dataSize {
			return "", fmt.Errorf("data of %.40q bytes: %w", s.Size, ErrCorrupt)
		}
		h.dataSize = n
	}
	h.dataSize -= h.dataSize % int64(h.SectorBytes)
	return name, nil
}

// kdf takes the description of a key derivation over.
func (j jsonKDF) kdf() (kdf, error) {
	salt, err := base64.StdEncoding.DecodeString(j.Salt)
	if err != nil || len(salt) == 0 || len(salt) > 256 {
		return kdf{}, fmt.Errorf("salt of %d characters: %w", len(j.Salt), ErrCorrupt)
	}
	return kdf{kind: j.Type, hash: j.Hash, salt: salt, iterations: j.Iterations, passes: j.Time, memoryKiB: j.Memory, threads: j.CPUs}, nil
}
