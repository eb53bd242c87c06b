package dedupe

import "context"

// Limits of the vault's formats.
const (
	// DefaultBlockSize of a new vault. Measured on a Debian image and its upgrade:
	// 4 KiB to 128 KiB store nearly the same bytes; 64 KiB has 15 times fewer
	// entries than 4 KiB and 1.5 times less new data per increment than 4 MiB.
	DefaultBlockSize = 64 << 10
	// MinBlockSize and MaxBlockSize bound the block size, a power of two.
	MinBlockSize = 16 << 10
	MaxBlockSize = 1 << 20
	// FanOut is the number of children of a node: 128 digests are 4 KiB.
	FanOut = 128
	// MaxDepth is the greatest number of node levels: 128^6 blocks exceed MaxSize
	// of any disk at any block size.
	MaxDepth = 6
	// MaxMetadataSize bounds a manifest or a note, in bytes.
	MaxMetadataSize = 1 << 20
)

// Kind is what a record of a pack holds.
type Kind uint8

// The kinds, as they stand in pack records.
const (
	KindBlock    Kind = 1
	KindNode     Kind = 2
	KindManifest Kind = 3
	KindNote     Kind = 4
)

// DomainID names a key domain: which blocks may be shared, and under which keys
// ids and payloads are made. It is random and made at a site's first start.
type DomainID [16]byte

// Store holds blocks, nodes, manifests and notes by digest. Nothing in it is ever
// changed; it grows by batches and shrinks only by collection.
//
// Concurrency: all methods may be called from any number of goroutines, also while
// batches are open. Only one process may have a Store open for writing.
//
// Durability: what a Batch has committed survives kill and power cut at any
// instruction; what it has not committed is absent afterwards.
//
// Errors: a record that is there but does not verify is ErrCorrupt, wrapped with
// the digest and the pack; it is never returned as content.
type Store interface {
	// BlockSize of every block, in bytes: MinBlockSize .. MaxBlockSize.
	BlockSize() int
	// Domain is the key domain that new blocks are made in.
	Domain() DomainID

	// BlockDigest is the digest that a block of BlockSize bytes has in Domain.
	BlockDigest(p []byte) Digest
	// Encrypted reports whether Domain is encrypted: blocks and notes are sealed and
	// their digests keyed, manifests and nodes stand in clear.
	Encrypted() bool

	// Get returns the plain content stored under d, verified against d. It uses
	// buf's storage when its capacity suffices. The content of KindBlock is
	// BlockSize bytes, of KindNode FanOut*DigestSize bytes. ErrNotFound when
	// nothing, or something of another kind, is stored under d; ErrNoKey when it is
	// sealed by a key that the Store does not have.
	Get(ctx context.Context, kind Kind, d Digest, buf []byte) ([]byte, error)

	// Begin opens a batch. Any number may be open at once.
	Begin(ctx context.Context) (Batch, error)

	// Manifests calls yield with the digest of every published manifest, in no
	// particular order, until it returns false.
	Manifests(ctx context.Context, yield func(Digest) bool) error
	// Notes calls yield with every published note in ascending order of sequence,
	// until it returns false. Notes that are damaged, or whose key is not at hand, are
	// left out; the error is then ErrCorrupt or ErrNoKey, after all others were yielded.
	Notes(ctx context.Context, yield func(Note) bool) error

	// Close waits for calls under way, aborts open batches and releases the
	// Store. A second Close is harmless.
	Close() error
}

// BlocksGetter is a Store that reads several blocks with less work than one after the
// other. It is asked for once, when a Store is put to use.
type BlocksGetter interface {
	// GetBlocks is Get of KindBlock for each digest, one after the other: the content
	// of digests[i] fills bufs[i], which is BlockSize bytes long, and errs[i] is nil;
	// or errs[i] says why it could not be read, and what is in bufs[i] must not be
	// used.
	GetBlocks(ctx context.Context, digests []Digest, bufs [][]byte, errs []error)
}

// Batch adds to a Store. Nothing that it puts is visible as a point before Commit.
//
// PutBlock and PutNode may be called from any number of goroutines; Commit and
// Abort once, after they have returned. Memory is bounded however much is put: the
// batch syncs its packs and writes index entries as it goes, blocks before the
// nodes that name them. The order of Commit: data packs are synced, then metadata
// packs, then their directories, then index entries are durable, then one
// transaction publishes manifests and notes.
type Batch interface {
	// PutBlock stores a block of BlockSize bytes unless the Store holds it
	// ("held": its record was verified since the last unclean stop, or written
	// since, and is synced or part of this batch). p must not be all zeros; a
	// hole is not stored. p is not retained.
	PutBlock(ctx context.Context, p []byte) (Put, error)
	// PutNode stores a node of the given level, 0 .. MaxDepth-1, with at least one
	// child, unless the Store holds it.
	PutNode(ctx context.Context, level int, children *[FanOut]Digest) (Put, error)
	// Commit makes everything durable and publishes manifests and notes, all or
	// none; it returns the digests of the manifests, their point ids, in order.
	// On an error nothing is published and the batch is aborted.
	Commit(ctx context.Context, p Publication) ([]Digest, error)
	// Abort drops the batch. Records already written are left to collection.
	// After Commit it is harmless, so it can be deferred.
	Abort() error
}

// SummingBatch is a Batch that computes the digests of several blocks with less work
// than one after the other. It is asked for once, when a Batch is put to use. When it is
// a PatchBatch, its Patches are SummingPatches.
type SummingBatch interface {
	// SumBlocks fills summed[i] with blocks[i], which is BlockSize bytes long, and the
	// digest that it has in the Store's Domain. The blocks must stay as they are until
	// they are put.
	SumBlocks(summed []Summed, blocks [][]byte)
	// PutSummed is PutBlock of a block that SumBlocks of the same Batch was given.
	PutSummed(ctx context.Context, b Summed) (Put, error)
}

// SummingPatches are the Patches of a SummingBatch.
type SummingPatches interface {
	// PutSummedPatch is PutPatch of a block that SumBlocks of the Batch was given.
	PutSummedPatch(ctx context.Context, b Summed, base Digest, was func() ([]byte, error)) (Put, error)
}

// PatchBatch is a Batch that can keep a block as a patch: as the grains in which it
// differs from another block. It is asked for once, when a Batch is put to use.
type PatchBatch interface {
	// Patches begins a run of blocks that lie near one another, such as one pass over
	// a disk. Any number may be open at once.
	Patches() Patches
}

// Patches are blocks that are put as patches, in the order of their places on a disk
// as a rule: what is written together is read together.
//
// PutPatch may be called from any number of goroutines; it follows the rules of
// Batch.PutBlock. What it takes is readable and held from then on, and is made durable
// by the Batch like any other block.
type Patches interface {
	// PutPatch is PutBlock of p for a caller who knows a block that is much like it,
	// of which the Store has the digest base: the same place of a disk at the point
	// before. was returns the content of base, as Get has verified it, and is called
	// at most once, before PutPatch returns, and only if p is not held; what it
	// returns is only read. If it is an error, or the Store thinks better of it, p is
	// stored whole. The content is given and not a list of changed grains because a
	// patch that misses one could never be read: whoever writes it compares.
	//
	// StoredBytes of the Put is 0 for a patch: Flush tells.
	PutPatch(ctx context.Context, p []byte, base Digest, was func() ([]byte, error)) (Put, error)
	// Flush writes what is kept back to be written together, and returns what the
	// patches put since the last Flush take in packs.
	Flush(ctx context.Context) (storedBytes int64, err error)
}

// GrainPatches are the Patches of a Store in whose Domain the digest of a block is made of
// those of its grains: to put a block of which some grains were written, the others need
// not be read. Whoever has a PatchBatch asks for it once.
type GrainPatches interface {
	// Lay finds out for each edit which block it is and in which grains it differs from
	// its base. Of the base it reads, and verifies, the list of its grains' digests: that
	// the grains themselves are whole is for verification and readers to say, as it is for
	// blocks in which nothing changes.
	Lay(ctx context.Context, edits []Edit)
	// PutLaid is PutPatch of a block that Lay has laid. Not ok: the Store wants all of it,
	// and nothing was put.
	PutLaid(ctx context.Context, e *Edit) (put Put, ok bool, err error)
}

// Put says what became of a put.
type Put struct {
	Digest Digest
	// New is false when the Store already held it.
	New bool
	// StoredBytes is what the record takes in its pack, headers included; 0
	// unless New, and 0 for a patch.
	StoredBytes int64
	// RawBytes is what of the content is stored, before compression: all of it, or
	// the grains of a patch; 0 unless New.
	RawBytes int64
}

// Publication is what one Commit makes visible in one transaction.
type Publication struct {
	// Manifests are stored bytes of manifests, each at most MaxMetadataSize.
	Manifests [][]byte
	// Notes are appended after the manifests. Sequence is set by the Store.
	Notes []Note
}

// Note is a small durable statement about a point, or about the vault: it must
// survive a rebuild of the index. Package recoverypoint defines the types.
type Note struct {
	// Sequence orders all notes of a Store, from 1, without reuse. Set by Commit.
	Sequence uint64
	// Type says how to read Body: see FORMAT.md of package recoverypoint.
	Type uint16
	// Subject is the point that the note is about, or zero.
	Subject Digest
	// Body is the type's encoding, at most MaxMetadataSize.
	Body []byte
}

// Stats are a Store's counters since it was opened, and its sizes.
type Stats struct {
	Packs         int64 // pack files
	PackBytes     int64 // their bytes on disk
	Blocks        int64 // index entries of KindBlock
	Nodes         int64 // index entries of KindNode
	PutBlocks     int64 // blocks put
	NewBlocks     int64 // of these, not held before
	NewRawBytes   int64 // what of them was stored, before compression
	NewBytes      int64 // their bytes in packs
	ReadBlocks    int64 // blocks read and verified
	CorruptBlocks int64 // reads that did not verify
	// RepairedBlocks are reads that another copy answered, after which the damaged one
	// was written again where that was possible.
	RepairedBlocks int64
	FreeBytes      int64 // of the file system, at the last look
}
