package pack

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/keelblock/keelblock/dedupe"
)

// File is what a Writer needs of a file.
type File interface {
	io.ReaderAt
	io.WriterAt
	Truncate(size int64) error
	Sync() error
	Close() error
}

// ErrFull: the record does not fit any more; seal the pack and begin another.
var ErrFull = errors.New("pack is full")

// writerFooter bounds the entries that a Writer puts into one pack, by what they take in
// its footer, below what a reader takes: they stay in memory until the pack is sealed.
const writerFooter = 1 << 16 * entrySize

// Writer appends records to a pack. See the package's comment for its rules.
type Writer struct {
	f      File
	header Header
	limit  int64

	// flight is held for reading while a record is written, and for writing by
	// whoever needs all of them to have arrived: Sync, Seal, Rollback. It is
	// taken before mu.
	flight sync.RWMutex

	mu      sync.Mutex
	end     int64 // where the next record goes
	entries []Entry
	footer  int64 // what they take in the footer
	err     error
}

// NewWriter begins a pack of at most limit bytes in f, an empty file that may be
// preallocated, and writes its header. f belongs to the Writer until Close.
func NewWriter(f File, h Header, limit int64) (*Writer, error) {
	if _, err := f.WriteAt(h.Encode(), 0); err != nil {
		return nil, fmt.Errorf("write header of pack %v: %w", h.ID, err)
	}
	return &Writer{f: f, header: h, limit: limit, end: HeaderSize}, nil
}

// Append writes one record: buf is RecordHeaderSize bytes for the header, which is
// filled in, and the payload. It returns the record's entry. ErrFull when the record
// and the seal do not fit below the limit, or the pack is sealed; an empty pack takes
// any record. placed, when not nil, is called once the record's place is known and
// before it is written: what Sync and Seal report as theirs has been placed.
func (w *Writer) Append(r *Record, buf []byte, placed func(Entry)) (Entry, error) {
	if !w.header.Class.Holds(r.Kind) {
		return Entry{}, fmt.Errorf("append kind %d to a %v pack: %w", r.Kind, w.header.Class, dedupe.ErrUnknownFormat)
	}
	if err := EncodeRecord(r, buf); err != nil {
		return Entry{}, err
	}
	patches, err := patchesOf(r, buf[RecordHeaderSize:])
	if err != nil {
		return Entry{}, fmt.Errorf("append bundle: %w", err)
	}
	w.flight.RLock()
	defer w.flight.RUnlock()
	e, err := w.reserve(r, int64(len(buf)), patches)
	if err != nil {
		return e, err
	}
	if placed != nil {
		placed(e)
	}
	if _, err := w.f.WriteAt(buf, e.Offset); err != nil {
		return e, w.fail(fmt.Errorf("write pack %v at %d: %w", w.header.ID, e.Offset, err))
	}
	return e, nil
}

// reserve takes the next n bytes of the pack for a record.
func (w *Writer) reserve(r *Record, n int64, patches []Patch) (Entry, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return Entry{}, w.err
	}
	e := entryOf(r, w.end, patches)
	// One page more than the seal: a pad up to the next page may come between.
	if len(w.entries) > 0 && (w.end+n+PageSize+RecordHeaderSize+SealSize(0)+w.footer+e.footerSize() > w.limit || w.footer >= writerFooter) {
		return Entry{}, ErrFull
	}
	w.end += n
	if r.Kind != KindPad {
		w.entries = append(w.entries, e)
		w.footer += e.footerSize()
	}
	return e, nil
}

func (w *Writer) fail(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
	return w.err
}

// Sync pads the pack to the next page and makes durable all that was appended
// before; appends meanwhile wait. It returns how many records that is and where they
// end.
func (w *Writer) Sync() (records int, end int64, err error) {
	w.flight.Lock()
	defer w.flight.Unlock()
	if err := w.pad(); err != nil {
		return 0, 0, err
	}
	return len(w.entries), w.end, w.sync()
}

func (w *Writer) sync() error {
	if w.err != nil {
		return w.err
	}
	if err := w.f.Sync(); err != nil {
		return w.fail(fmt.Errorf("sync pack %v: %w", w.header.ID, err))
	}
	return nil
}

// pad fills up the page that the last record ends in. flight is held for writing.
func (w *Writer) pad() error {
	if w.err != nil {
		return w.err
	}
	gap := -w.end & (PageSize - 1)
	if gap == 0 || len(w.entries) == 0 {
		return nil
	}
	if gap < RecordHeaderSize {
		gap += PageSize
	}
	buf := make([]byte, gap)
	if err := EncodeRecord(&Record{Kind: KindPad, Domain: w.header.Domain}, buf); err != nil {
		return err
	}
	if _, err := w.f.WriteAt(buf, w.end); err != nil {
		return w.fail(fmt.Errorf("write pack %v at %d: %w", w.header.ID, w.end, err))
	}
	w.setEnd(w.end + gap)
	return nil
}

// Trim cuts the file behind the last record, giving preallocated space back.
func (w *Writer) Trim() error {
	w.flight.Lock()
	defer w.flight.Unlock()
	if w.err != nil {
		return w.err
	}
	if err := w.f.Truncate(w.end); err != nil {
		return w.fail(fmt.Errorf("trim pack %v: %w", w.header.ID, err))
	}
	return nil
}

// Rollback forgets and cuts off every record from the offset end on, which is a
// former End of this Writer. It also works after an error, which it clears when
// nothing but what was cut off can be wrong: the caller vouches that all below end
// was synced.
func (w *Writer) Rollback(end int64) error {
	w.flight.Lock()
	defer w.flight.Unlock()
	if err := w.f.Truncate(end); err != nil {
		return w.fail(fmt.Errorf("roll back pack %v to %d: %w", w.header.ID, end, err))
	}
	keep, _ := slices.BinarySearchFunc(w.entries, end, func(e Entry, off int64) int {
		if e.Offset < off {
			return -1
		}
		return 1
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.entries = w.entries[:keep:keep]
	w.footer = footerSize(w.entries)
	w.end = end
	w.err = nil
	return nil
}

// Seal writes footer, hash and trailer behind the last record, cuts the file there
// and syncs it. Nothing can be appended afterwards.
func (w *Writer) Seal() error {
	w.flight.Lock()
	defer w.flight.Unlock()
	if w.err != nil {
		return w.err
	}
	if err := w.seal(); err != nil {
		return w.fail(fmt.Errorf("seal pack %v: %w", w.header.ID, err))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = fmt.Errorf("pack %v is sealed: %w", w.header.ID, ErrFull)
	return nil
}

// seal writes before it cuts, so that the footer's space is already allocated and
// a full disk cannot come between.
func (w *Writer) seal() error {
	b := EncodeFooter(&w.header, w.entries, w.end)
	if _, err := w.f.WriteAt(b, w.end); err != nil {
		return err
	}
	if err := w.f.Truncate(w.end + int64(len(b))); err != nil {
		return err
	}
	if err := w.f.Sync(); err != nil {
		return err
	}
	w.setEnd(w.end + int64(len(b)))
	return nil
}

// setEnd changes end while flight is held for writing.
func (w *Writer) setEnd(end int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.end = end
}

// Header is the pack's header.
func (w *Writer) Header() Header { return w.header }

// End is the offset behind the last record, or behind the trailer once sealed.
func (w *Writer) End() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.end
}

// Entries are the records appended so far, from the i-th on. They are not copied:
// the caller only reads them.
func (w *Writer) Entries(i int) []Entry {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.entries[i:]
}

// ReadAt reads from the pack's file.
func (w *Writer) ReadAt(p []byte, off int64) (int, error) { return w.f.ReadAt(p, off) }

// Close closes the file as it is.
func (w *Writer) Close() error { return w.f.Close() }

// SealFile seals a half-written pack that Scan read up to the offset end: the file is
// cut there, footer, hash and trailer follow, and all of it is synced.
func SealFile(f File, h Header, entries []Entry, end int64) (size int64, err error) {
	w := Writer{f: f, header: h, end: end, entries: entries, footer: footerSize(entries)}
	if err := f.Truncate(end); err != nil {
		return 0, fmt.Errorf("cut pack %v at %d: %w", h.ID, end, err)
	}
	if err := w.Seal(); err != nil {
		return 0, err
	}
	return w.end, nil
}
