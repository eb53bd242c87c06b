package keyring

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"sync"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
)

const (
	// MaxDataKeys bounds the data keys of a domain.
	MaxDataKeys = 64
	// MaxMarshaledSize bounds what Marshal returns, in bytes.
	MaxMarshaledSize = headerSize + MaxDataKeys*dataKeySize + crcSize

	secretSize  = 32
	headerSize  = 64
	dataKeySize = 16 + secretSize
	crcSize     = 4
	// versionWhole is of domains with the id scheme of the first vaults, version names it.
	versionWhole = 1
	version      = 2
)

var (
	magic      = [8]byte{'K', 'E', 'E', 'L', 'K', 'E', 'Y', 'S'}
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// Label is the purpose of a key that is derived from a secret.
type Label string

// The labels, see FORMAT.md.
const (
	LabelBlockID     Label = "block id"
	LabelDomainCheck Label = "domain check"
	LabelSealing     Label = "sealing"
	// LabelEscrow is for the key of an escrow file, made of the recovery secret.
	LabelEscrow Label = "escrow"
)

// Derive makes a key of n bytes, at most 8160, for one purpose of a secret, which must
// itself be as good as random: HKDF does not slow down guessing. context tells keys of
// one purpose apart.
func Derive(secret []byte, label Label, context []byte, n int) []byte {
	key, err := hkdf.Key(sha256.New, secret, nil, "keelblock "+string(label)+"\x00"+string(context), n)
	if err != nil {
		panic(fmt.Sprintf("keyring: derive %d bytes: %v", n, err)) // only the length can be wrong
	}
	return key
}

// Keys are the unwrapped keys of one domain.
type Keys struct {
	domain   dedupe.DomainID
	idSecret []byte
	scheme   uint8 // how ids of blocks are made, see pack.Domain
	digester dedupe.Digester

	mu   sync.RWMutex
	data []*dataKey // the first seals; a slice that was handed out is never changed
}

// dataKey seals and opens records.
type dataKey struct {
	id     pack.KeyID
	secret []byte
	cipher *xaes
}

// New makes the keys of a new domain: an id key and one data key, at random.
func New(domain dedupe.DomainID) *Keys {
	return newKeys(domain, pack.SchemeKeyedGrains)
}

// NewWhole is New with the id scheme of the first vaults, in which the id of a block is
// made of all of its bytes.
func NewWhole(domain dedupe.DomainID) *Keys { return newKeys(domain, pack.SchemeHMAC) }

func newKeys(domain dedupe.DomainID, scheme uint8) *Keys {
	k := &Keys{domain: domain, idSecret: random(), scheme: scheme}
	k.deriveIDKey()
	k.AddDataKey()
	return k
}

func random() []byte {
	b := make([]byte, secretSize)
	rand.Read(b) // never fails
	return b
}

func (k *Keys) deriveIDKey() {
	key := Derive(k.idSecret, LabelBlockID, k.domain[:], secretSize)
	defer clear(key)
	if k.scheme == pack.SchemeKeyedGrains {
		k.digester = dedupe.GrainDigests(dedupe.NewIDKey(key))
	} else {
		k.digester = dedupe.WholeDigests(dedupe.NewIDKey(key))
	}
}

func (k *Keys) newDataKey(id pack.KeyID, secret []byte) *dataKey {
	key := Derive(secret, LabelSealing, slices.Concat(k.domain[:], id[:]), secretSize)
	defer clear(key)
	return &dataKey{id: id, secret: secret, cipher: newXAES(key)}
}

// AddDataKey makes a data key, which seals new records from now on; the others go on
// opening those that they sealed. It returns its id, or false when there are
// MaxDataKeys. The caller stores Marshal, wrapped, before anything is sealed by it.
func (k *Keys) AddDataKey() (pack.KeyID, bool) {
	var id pack.KeyID
	rand.Read(id[:])
	added := k.newDataKey(id, random())
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.data) == MaxDataKeys {
		return pack.KeyID{}, false
	}
	k.data = slices.Concat([]*dataKey{added}, k.data)
	return id, true
}

// Domain is the domain that the keys are of.
func (k *Keys) Domain() dedupe.DomainID { return k.domain }

// DataKeys are the ids of the data keys; the first seals new records.
func (k *Keys) DataKeys() []pack.KeyID {
	list := k.dataKeys()
	ids := make([]pack.KeyID, len(list))
	for i, d := range list {
		ids[i] = d.id
	}
	return ids
}

func (k *Keys) dataKeys() []*dataKey {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.data
}

// Digester makes the ids of the domain's blocks and notes.
func (k *Keys) Digester() dedupe.Digester { return k.digester }

// Scheme is how ids of blocks are made, as the superblock of a vault has it. It never
// changes: a block has the same id in all vaults of the domain.
func (k *Keys) Scheme() uint8 { return k.scheme }

// Check is what the superblock of a vault keeps, to recognise another key.
func (k *Keys) Check() pack.KeyCheck {
	return pack.KeyCheck(Derive(k.idSecret, LabelDomainCheck, k.domain[:], len(pack.KeyCheck{})))
}

// Marshal is the keys in the bytes of FORMAT.md, to be wrapped. They are secret: the
// caller clears them when they are.
func (k *Keys) Marshal() []byte {
	list := k.dataKeys()
	b := make([]byte, headerSize, headerSize+len(list)*dataKeySize+crcSize)
	copy(b, magic[:])
	le := binary.LittleEndian
	le.PutUint16(b[8:], versionWhole)
	if k.scheme != pack.SchemeHMAC {
		le.PutUint16(b[8:], version)
		b[12] = k.scheme
	}
	le.PutUint16(b[10:], uint16(len(list)))
	copy(b[16:], k.domain[:])
	copy(b[32:], k.idSecret)
	for _, d := range list {
		b = append(b, d.id[:]...)
		b = append(b, d.secret...)
	}
	return le.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// Unmarshal is the inverse of Marshal. b is not retained; the caller clears it.
// dedupe.ErrCorrupt when its magic, length or checksum is wrong,
// dedupe.ErrUnknownFormat when they are right and the version is not known.
func Unmarshal(b []byte) (*Keys, error) {
	le := binary.LittleEndian
	end := len(b) - crcSize
	if end < headerSize || [8]byte(b) != magic {
		return nil, fmt.Errorf("keys of a domain in %d bytes: magic: %w", len(b), dedupe.ErrCorrupt)
	}
	if crc32.Checksum(b[:end], castagnoli) != le.Uint32(b[end:]) {
		return nil, fmt.Errorf("keys of a domain: checksum: %w", dedupe.ErrCorrupt)
	}
	scheme, err := schemeOf(le.Uint16(b[8:]), b[12])
	if err != nil {
		return nil, err
	}
	n := int(le.Uint16(b[10:]))
	if n < 1 || n > MaxDataKeys || end != headerSize+n*dataKeySize || [3]byte(b[13:]) != [3]byte{} {
		return nil, fmt.Errorf("%d data keys in %d bytes: %w", n, len(b), dedupe.ErrCorrupt)
	}
	k := &Keys{domain: dedupe.DomainID(b[16:32]), idSecret: slices.Clone(b[32:headerSize]), scheme: scheme}
	k.deriveIDKey()
	for p := b[headerSize:end]; len(p) > 0; p = p[dataKeySize:] {
		id := pack.KeyID(p[:16])
		if id == (pack.KeyID{}) || slices.Contains(k.DataKeys(), id) {
			return nil, fmt.Errorf("data key %x has no id of its own: %w", id, dedupe.ErrCorrupt)
		}
		k.data = append(k.data, k.newDataKey(id, slices.Clone(p[16:dataKeySize])))
	}
	return k, nil
}

// schemeOf is the id scheme that a file of some version names.
func schemeOf(v uint16, named uint8) (uint8, error) {
	switch {
	case v == versionWhole && named == 0:
		return pack.SchemeHMAC, nil
	case v == versionWhole:
		return 0, fmt.Errorf("keys of a domain: id scheme %d in version %d: %w", named, v, dedupe.ErrCorrupt)
	case v != version:
		return 0, fmt.Errorf("keys of a domain: version %d: %w", v, dedupe.ErrUnknownFormat)
	case named != pack.SchemeKeyedGrains:
		return 0, fmt.Errorf("keys of a domain: id scheme %d: %w", named, dedupe.ErrUnknownFormat)
	}
	return named, nil
}

// String names the domain and nothing else.
func (k *Keys) String() string {
	if k == nil {
		return "no keys"
	}
	return fmt.Sprintf("keys of domain %x (hidden)", k.domain)
}

// GoString is String.
func (k *Keys) GoString() string { return k.String() }

// Format prints String for every verb, so that no secret is printed by mistake.
func (k *Keys) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, k.String()) }
