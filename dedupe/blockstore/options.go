package blockstore

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/keyring"
	"github.com/keelblock/keelblock/dedupe/pack"
	"github.com/keelblock/keelblock/dedupe/packdir"
)

// Compression is how new records are compressed. Readers read all of them.
type Compression uint8

// The compressions.
const (
	// CompressionS2, the default, is as fast as what else is done with a block. On a disk
	// of system files it stores an eighth more than zstd, compresses three times as fast
	// and decompresses twice as fast (tools/compare/RESULTS.md, "Codecs").
	CompressionS2 Compression = iota
	// CompressionZstd is zstd at its fastest level.
	CompressionZstd
	// CompressionNone stores blocks as they are.
	CompressionNone
)

var compressionNames = [...]string{CompressionS2: "s2", CompressionZstd: "zstd", CompressionNone: "none"}

// String is the name that ParseCompression takes.
func (c Compression) String() string {
	if int(c) < len(compressionNames) {
		return compressionNames[c]
	}
	return fmt.Sprintf("compression %d", uint8(c))
}

// ParseCompression is the Compression of a name; "" is the default.
func ParseCompression(name string) (Compression, error) {
	if name == "" {
		return CompressionS2, nil
	}
	for c, n := range compressionNames {
		if n == name {
			return Compression(c), nil
		}
	}
	return 0, fmt.Errorf("compression %q is not known: give s2, zstd or none", name)
}

// DefaultPackBytes is the size of a pack. Small enough that a half-written one is
// read in a tenth of a second, large enough that a 1 TiB vault has 32 768 of them.
const DefaultPackBytes = 32 << 20

// Limits of Options.PackBytes.
const (
	MinPackBytes = 2 << 20
	MaxPackBytes = 1 << 30
)

// Options of Create, Open and RebuildIndex. The zero value is usable everywhere.
type Options struct {
	// BlockSize of a new vault; zero is dedupe.DefaultBlockSize. When a vault is
	// opened it must be zero or the vault's.
	BlockSize int
	// Domain that new blocks are made in. Zero makes a random one in Create, or takes
	// that of the first Keys, and takes the vault's in Open; another one than the
	// vault's is refused.
	Domain dedupe.DomainID
	// Keys of encrypted domains. Create makes an encrypted vault of them, which writes
	// in Domain, or in the first one's domain when that is zero. Open needs those of
	// the domain that is written in, and reads records of all that are given;
	// dedupe.ErrNoKey and dedupe.ErrWrongKey without them. RebuildIndex needs none.
	Keys []*keyring.Keys
	// Keyless opens an encrypted vault without its keys: nodes and manifests are read,
	// blocks and notes are dedupe.ErrNoKey, and so is putting them.
	Keyless bool
	// Locations are the folders, on other disks, that keep further copies of every
	// pack, at most two. In Create they are made; in Open one that is new to the vault
	// is out until RepairLocations has filled it. Nil in Open takes those that the
	// vault's folder lists, if it is where it was.
	Locations []string
	// ReadOnly opens without changing a byte of the vault, also while another
	// process has it open or after an unclean stop. What is published at this
	// moment is seen, what comes later is not.
	ReadOnly bool
	// Compression of new records.
	Compression Compression
	// WholeBlocks stores every new block whole, none as a patch.
	WholeBlocks bool
	// ReserveBytes of the file system stay free: below it nothing new is stored.
	// A small part is always kept for the index, also when this is zero.
	ReserveBytes int64
	// Relieve is asked to make bytes free on the file system of the vault's folder when
	// something that lets space be freed, a note or a collection, would be refused without
	// them; nil: nobody can. It may be called from any goroutine and must not call the Store.
	Relieve func(bytes int64)
	// PackBytes is the size of new packs; zero is DefaultPackBytes.
	PackBytes int64
	// ScratchDir is where a read-only Open builds an index when it cannot use the
	// vault's; empty is os.TempDir. It is removed by Close.
	ScratchDir string
	// Logger gets what an operator should know; nil is silent.
	Logger *slog.Logger
	// Now is the clock; nil is time.Now.
	Now func() time.Time

	// hook, when not nil, is called before each system call that changes or syncs
	// a file, with its name and the file's, and may fail it: tests cut the power
	// and fill the disk here.
	hook packdir.Hook
	// wholeDigests makes an unencrypted vault with the id scheme of the first ones.
	wholeDigests bool
	// packBytes, when not zero, is PackBytes for tests, also below its limit.
	packBytes int64
	// bugs are mistakes that the tests of collection must find.
	bugs bugs
}

func (o Options) withDefaults() Options {
	if o.packBytes != 0 {
		o.PackBytes = o.packBytes
	}
	if o.PackBytes == 0 {
		o.PackBytes = DefaultPackBytes
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.hook == nil {
		o.hook = func(string, string) error { return nil }
	}
	return o
}

// Validate names the first field that is out of its limits.
func (o Options) Validate() error {
	if o.BlockSize != 0 {
		if err := pack.CheckBlockSize(o.BlockSize); err != nil {
			return err
		}
	}
	if o.PackBytes != 0 && (o.PackBytes < MinPackBytes || o.PackBytes > MaxPackBytes) {
		return fmt.Errorf("pack size %d: want %d to %d", o.PackBytes, int64(MinPackBytes), int64(MaxPackBytes))
	}
	if o.ReserveBytes < 0 {
		return fmt.Errorf("reserve %d: want 0 or more", o.ReserveBytes)
	}
	if o.Compression > CompressionNone {
		return fmt.Errorf("compression %d: want 0 to %d", o.Compression, CompressionNone)
	}
	return nil
}
