package cbt

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/keelblock/keelblock/blockdev"
)

// What a power cut leaves
//
// The changed map lives in memory that a power cut empties. What the disk below holds
// then is its content at some earlier flush, with any choice of the later writes,
// each whole, in part or not at all. To find what differs from the base without
// reading everything, a second, coarse map lies beside the data: one bit for each
// region of 16 MiB, durable before the first write of the region is handed to the
// disk below (V12; after that call the kernel may write the page at any moment, so a
// flush by the guest would come too late). The promise of the file is:
//
//	after a power cut at any moment, every region whose bit is not set equals the
//	base that the file's header names and, if there is one and it is committed, the
//	candidate
//
// A recovery compares the regions with a set bit, and only those. It knows nothing
// finer, and it clears nothing: until the backup that compared them has committed the
// bits stay, so a second power cut finds them again (V19).
//
// # Setting
//
// A write of a region that is set pays one atomic load. A write of one that is not
// leaves its stripes, queues the region and takes mu; whoever has mu writes all that
// is queued with one sync. Then it begins again from the top. At a freeze nothing
// happens here: the set is carried over, so a guest that keeps to its working set
// syncs once per region and never again.
//
// # Clearing, the dangerous half
//
// A region may be cleared if (V13) the point is committed, the data was synced after
// that point's cut, nobody wrote the region since, and no writer stands between its
// decision and its data call. Forget the second and a power cut rolls the disk back
// behind the point with nothing listed. Here is where each of the four comes from.
//
// Committed: clearing follows a commit, when the file's header names the new base,
// durably, and no candidate. Synced: Frozen.Prepare, without which there is no
// commit, asks for a flush that began after the frozen map was drained. Not written:
// the changed map says so. Its bits are set before a write asks for its region, and
// are taken away by a commit alone (or by a Baseline, while the file is durably
// distrusted and its bits mean nothing). So "no grain of the region is listed in
// either map" is the third condition exactly, and holds with snapshots open, too:
// what no map lists equals base and candidate alike.
//
// The fourth is a handshake on the word with the region's bit:
//
//	writer                              clearer, with mu held
//	set the grain's bit                 take the region's bit away in memory
//	region's bit set in memory?         any grain's bit set?
//	  yes: write the data                 yes: put the region's bit back
//	  no: wait for mu, set it durably     no: clear it in the file, sync
//
// Both sides write one word and then read the other's, in one order that all see, so
// at least one of them meets the other. A clearer that looked first and took the bit
// away second would miss the writer in between, and after a power cut so would the
// recovery.
//
// A region is cleared when it was not written for a whole interval between two cuts,
// and not at the first cut after its last write: else every region in use would be
// cleared at each backup and set again, a sync for each.
//
// # When the file cannot be written
//
// The guest's write must not be lost track of, and should not fail. So the file is
// marked as distrusted, in its header, or by removing it, or by removing the saved
// map without which it is not believed: any of them means a full compare after a power
// cut. When one of them is durable, the write goes on and no further region is
// asked for until the disk is opened again. When none is, nothing can be promised,
// and the write fails. The file is allocated in full when it is made, so a full file
// system does not lead here.

// intents is the intent map of an open disk.
type intents struct {
	path  string
	saved string // Options.SavePath
	// active has a bit for each region that is set in the file and that nobody is
	// about to clear. The slice is exchanged only with all stripes held.
	active []uint64

	queue struct {
		sync.Mutex
		list []regions // one for each writer that waits for mu
	}

	// mu makes one writer of the file. It is held over its syncs, for which whoever
	// waits has to wait anyway.
	mu  sync.Mutex
	img *intentImage
	// failed: the file is durably distrusted and not written any more.
	failed error
	// stale: the header in the file is not what it should be, so nothing is cleared.
	stale bool
	hook  func(intentHook)
	stats struct{ syncs, cleared atomic.Uint64 }
}

// regions is a range of regions, last included.
type regions struct{ first, last int64 }

func regionsIn(off, n int64) regions {
	return regions{off >> regionShift, (off + n - 1) >> regionShift}
}

// intentHook names a point at which a test may hold a goroutine.
type intentHook int

const (
	hookClearMarked  intentHook = iota // the regions to clear are taken away in memory
	hookClearDecided                   // and those that are listed are back
)

func (n *intents) at(h intentHook) {
	if n.hook != nil {
		n.hook(h)
	}
}

func newIntents(path, saved string, img *intentImage) *intents {
	return &intents{path: path, saved: saved, img: img, active: slices.Clone(img.bits)}
}

// covers reports whether all regions of r are active. It is called with a stripe
// held.
func (n *intents) covers(r regions) bool {
	for i := r.first >> 6; i <= r.last>>6; i++ {
		if m := wordMask(i, r.first, r.last); atomic.LoadUint64(&n.active[i])&m != m {
			return false
		}
	}
	return true
}

// has is covers of one region.
func (n *intents) has(r int64) bool {
	return atomic.LoadUint64(&n.active[r>>6])>>(r&63)&1 != 0
}

// activate makes regions durable. lost: it could not, and the file is durably
// distrusted instead, for the first time. An error: not even that.
func (n *intents) activate(r regions) (lost bool, err error) {
	n.queue.Lock()
	n.queue.list = append(n.queue.list, r)
	n.queue.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	// Those that the holder before has seen to are done. Left in the queue they would be
	// set again long after they were cleared.
	n.queue.Lock()
	list := slices.DeleteFunc(n.queue.list, n.covers)
	if n.covers(r) {
		n.queue.list = list
		n.queue.Unlock()
		return false, nil
	}
	n.queue.list = nil
	n.queue.Unlock()
	// Ours is not in the list any more if the holder before took it and failed.
	if !slices.Contains(list, r) {
		list = append(list, r)
	}
	if !n.img.h.trusted() {
		// Until a commit all is compared anyway: spare the guest that fills its disk a
		// sync for each region. A gibibyte at once.
		for i := range list {
			list[i].first &^= 63
			list[i].last = min(list[i].last|63, int64(len(n.active))<<6-1)
		}
	}
	var sectors []regions
	for _, r := range list {
		for i := r.first >> 6; i <= r.last>>6; i++ {
			n.img.bits[i] |= wordMask(i, r.first, r.last)
		}
		if s := (regions{r.first / sectorRegions, r.last / sectorRegions}); !slices.Contains(sectors, s) {
			sectors = append(sectors, s)
		}
	}
	for _, s := range sectors {
		if err := n.img.write(s.first, s.last); err != nil {
			return n.fail(err)
		}
	}
	if err := n.sync(); err != nil {
		return n.fail(err)
	}
	for _, r := range list {
		for i := r.first >> 6; i <= r.last>>6; i++ {
			atomic.OrUint64(&n.active[i], wordMask(i, r.first, r.last))
		}
	}
	return false, nil
}

func (n *intents) sync() error {
	n.stats.syncs.Add(1)
	return n.img.io.Sync()
}

// fail makes it durable that the file is worth nothing; n.mu is held.
func (n *intents) fail(reason error) (lost bool, err error) {
	if n.failed != nil {
		return false, nil
	}
	h := n.img.h
	h.state, h.flags = TrackingCompare, h.flags&^flagNarrow
	h.reason = "the intent map could not be written"
	remove := func(path string) error { return errors.Join(os.Remove(path), syncDir(path)) }
	for _, try := range []func() error{
		func() error { return n.img.writeHeader(h) },
		func() error { return remove(n.path) },
		func() error { return remove(n.saved) },
	} {
		e := try()
		if e == nil {
			n.failed = reason
			for i := range n.active {
				atomic.StoreUint64(&n.active[i], ^uint64(0))
			}
			return true, nil
		}
		reason = errors.Join(reason, e)
	}
	n.stale = true
	return false, fmt.Errorf("write intent map %q: %w", n.path, reason)
}

// setHeader makes durable what the tracker's header says of the base. The results are
// those of activate.
func (n *intents) setHeader(h header) (lost bool, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h.flags &= flagNarrow | flagUnwitnessed
	h.before, h.intentID, h.sequence = n.img.h.before, n.img.h.intentID, n.img.h.sequence
	h.bootID, h.leaves, h.bodySum, h.witness = "", 0, 0, Witness{}
	switch {
	case n.failed != nil, h == n.img.h && !n.stale:
		return false, nil
	}
	n.stale = true
	if err := n.img.writeHeader(h); err != nil {
		return n.fail(err)
	}
	n.stale = false
	return false, nil
}

// clear takes the regions in which, and of which listed says no, out of the file.
// The caller has seen to the first two conditions. release is called as soon as
// listed is not needed any more.
func (n *intents) clear(which []uint64, listed func(region int64) bool, release func()) (lost bool, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	defer func() {
		if release != nil {
			release()
		}
	}()
	if n.failed != nil || n.stale {
		return false, nil
	}
	which = which[:min(len(which), len(n.active))]
	for i := range which {
		if which[i] &= n.img.bits[i]; which[i] != 0 {
			atomic.AndUint64(&n.active[i], ^which[i])
		}
	}
	n.at(hookClearMarked)
	first, last := int64(-1), int64(-1)
	for i, w := range which {
		for v := w; v != 0; v &= v - 1 {
			if b := bits.TrailingZeros64(v); listed(int64(i)<<6 + int64(b)) {
				w &^= 1 << b
			}
		}
		if back := which[i] &^ w; back != 0 {
			atomic.OrUint64(&n.active[i], back)
		}
		if w == 0 {
			continue
		}
		n.img.bits[i] &^= w
		n.stats.cleared.Add(uint64(bits.OnesCount64(w)))
		if last = int64(i) / sectorWords; first < 0 {
			first = last
		}
	}
	release()
	release = nil
	n.at(hookClearDecided)
	if first < 0 {
		return false, nil
	}
	if err := n.img.write(first, last); err != nil {
		return n.fail(err)
	}
	if err := n.sync(); err != nil {
		return n.fail(err)
	}
	return false, nil
}

// extend readies the file for a disk of size bytes that it is too short for.
func (n *intents) extend(size int64) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	have, want := n.img.sectors(), sectorsOf(size)
	if n.failed != nil || want <= have {
		return nil
	}
	longer := *n.img
	longer.bits = append(slices.Clone(n.img.bits), make([]uint64, (want-have)*sectorWords)...)
	if err := longer.write(have, want-1); err != nil {
		return err
	}
	if err := n.sync(); err != nil {
		return err
	}
	n.img.bits = longer.bits
	return nil
}

// adopt makes active as long as a disk of size bytes needs. All stripes are held.
func (n *intents) adopt(size int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	fill := uint64(0)
	want := int(sectorsOf(size)) * sectorWords
	if n.failed != nil { // then the file is not extended
		fill = ^fill
	}
	for len(n.active) < want {
		n.active = append(n.active, fill)
	}
}

// each yields the active regions of a disk of size bytes as merged extents.
func (n *intents) each(size int64, yield func(blockdev.Extent) bool) {
	n.mu.Lock()
	set := slices.Clone(n.img.bits)
	n.mu.Unlock()
	end := regionsOf(size)
	for r := int64(0); r < end; r++ {
		if set[r>>6]&(1<<(r&63)) == 0 {
			continue
		}
		from := r
		for r < end && set[r>>6]&(1<<(r&63)) != 0 {
			r++
		}
		off := from << regionShift
		if !yield(blockdev.Extent{Offset: off, Length: min(r<<regionShift, size) - off}) {
			return
		}
	}
}

// count is the number of active regions of a disk of size bytes.
func (m *intentImage) count(size int64) (n int) {
	for r := range regionsOf(size) {
		n += int(m.bits[r>>6] >> (r & 63) & 1)
	}
	return n
}

// close ends all writing: the file may be another tracker's from now on.
func (n *intents) close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.failed == nil {
		n.failed = blockdev.ErrClosed
	}
	return n.img.io.Close()
}
