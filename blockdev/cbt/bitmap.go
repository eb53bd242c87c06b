package cbt

import (
	"fmt"
	"math/bits"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev"
)

const (
	grainShift = 12
	// leafBytes is the unit in which a map grows: one page of the map file.
	leafBytes = 4096
	// leafWords is the number of 64-bit words in a leaf. A leaf speaks for 32 768
	// grains, 128 MiB of disk.
	leafWords = leafBytes / 8
	leafShift = 9
)

// bitmap is one bit per grain of a disk, in memory that is backed lazily.
type bitmap []uint64

// wordMask is the part of [first, last] that lies in word i.
func wordMask(i, first, last int64) uint64 {
	m := ^uint64(0)
	if i == first>>6 {
		m &= ^uint64(0) << (first & 63)
	}
	if i == last>>6 {
		m &= ^uint64(0) >> (63 - last&63)
	}
	return m
}

// fineMap is one of the two changed maps of a disk. Its words lie in a shared
// mapping of the map file. A page of that mapping may be touched only when its leaf
// was allocated before (on a full tmpfs the kernel answers a touch with SIGBUS), and
// that is what a set summary bit says.
type fineMap struct {
	words   bitmap
	summary []uint64
	// writers counts those that are registered in this map, under the mask count.
	writers *stripes
	count   uint64
	// incomplete: a bit could not be set. What the map freezes is not a snapshot.
	incomplete atomic.Bool

	file   *os.File
	offset int64 // of words in file
	// leaves guards backed and the size of what the file holds. It is held over
	// fallocate, which for one page of tmpfs waits for no disk.
	leaves sync.Mutex
	backed []uint64
}

func (m *fineMap) hasLeaf(leaf int64) bool {
	return atomic.LoadUint64(&m.summary[leaf>>6])&(1<<(leaf&63)) != 0
}

// set marks the grains first..last. It returns false when a leaf could not be
// allocated; incomplete is set before it returns.
func (m *fineMap) set(first, last int64) bool {
	ok := true
	for i := first >> 6; i <= last>>6; i++ {
		if leaf := i >> leafShift; !m.hasLeaf(leaf) && m.grow(leaf) != nil {
			m.incomplete.Store(true)
			ok = false
			i = (leaf+1)<<leafShift - 1
			continue
		}
		mask := wordMask(i, first, last)
		if p := &m.words[i]; atomic.LoadUint64(p)&mask != mask {
			atomic.OrUint64(p, mask)
		}
	}
	return ok
}

// grow allocates a leaf and then sets its summary bit.
func (m *fineMap) grow(leaf int64) error {
	m.leaves.Lock()
	defer m.leaves.Unlock()
	if m.backed[leaf>>6]&(1<<(leaf&63)) == 0 {
		err := unix.Fallocate(int(m.file.Fd()), 0, m.offset+leaf*leafBytes, leafBytes)
		if err != nil {
			return fmt.Errorf("allocate leaf %d of map: %w", leaf, err)
		}
		m.backed[leaf>>6] |= 1 << (leaf & 63)
	}
	atomic.OrUint64(&m.summary[leaf>>6], 1<<(leaf&63))
	return nil
}

// load is word i, 0 where there is no leaf.
func (m *fineMap) load(i int64) uint64 {
	if !m.hasLeaf(i >> leafShift) {
		return 0
	}
	return atomic.LoadUint64(&m.words[i])
}

// merge sets in m every bit of o.
func (m *fineMap) merge(o *fineMap) {
	o.eachLeaf(func(leaf int64) {
		if !m.hasLeaf(leaf) && m.grow(leaf) != nil {
			m.incomplete.Store(true)
			return
		}
		for i := leaf << leafShift; i < o.endOfLeaf(leaf); i++ {
			if v := atomic.LoadUint64(&o.words[i]); v != 0 {
				atomic.OrUint64(&m.words[i], v)
			}
		}
	})
	if o.incomplete.Load() {
		m.incomplete.Store(true)
	}
}

// clear forgets all bits of a map that nobody sets bits in. The pages stay backed
// until reclaim: a write that still holds an old word may look at them.
func (m *fineMap) clear() {
	m.eachLeaf(func(leaf int64) {
		for i := leaf << leafShift; i < m.endOfLeaf(leaf); i++ {
			atomic.StoreUint64(&m.words[i], 0)
		}
		atomic.AndUint64(&m.summary[leaf>>6], ^(uint64(1) << (leaf & 63)))
	})
	m.incomplete.Store(false)
}

// reclaim gives back the pages of leaves that clear emptied and that have not been
// used since. It is called after the drain that follows the next freeze: every
// write that could have looked at them has ended by then.
func (m *fineMap) reclaim() {
	m.leaves.Lock()
	defer m.leaves.Unlock()
	for i, b := range m.backed {
		idle := b &^ atomic.LoadUint64(&m.summary[i])
		for ; idle != 0; idle &= idle - 1 {
			leaf := int64(i)<<6 + int64(bits.TrailingZeros64(idle))
			err := unix.Fallocate(int(m.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE,
				m.offset+leaf*leafBytes, leafBytes)
			if err == nil {
				m.backed[i] &^= 1 << (leaf & 63)
			}
		}
	}
}

func (m *fineMap) eachLeaf(do func(leaf int64)) {
	for i := range m.summary {
		for s := atomic.LoadUint64(&m.summary[i]); s != 0; s &= s - 1 {
			do(int64(i)<<6 + int64(bits.TrailingZeros64(s)))
		}
	}
}

func (m *fineMap) endOfLeaf(leaf int64) int64 {
	return min((leaf+1)<<leafShift, int64(len(m.words)))
}

// drained waits until every write that registered in m has left. It may only be
// called once no new write can stay registered: each stripe is then seen at zero
// after its last writer, which is enough. done ends the wait early.
func (m *fineMap) drained(done <-chan struct{}) bool {
	for i := range m.writers.state {
		for spin := 0; m.writers.state[i].Load()&m.count != 0; spin++ {
			if !pause(spin, done) {
				return false
			}
		}
	}
	return true
}

// pause waits a little, longer with each spin, up to a millisecond. It returns
// false when done is closed; a nil done never is.
func pause(spin int, done <-chan struct{}) bool {
	d := time.Microsecond << min(spin/4, 10)
	select {
	case <-done:
		return false
	default:
	}
	time.Sleep(d)
	return true
}

// scratch is a bitmap in anonymous memory: zero when fresh, touched pages only are
// resident, and it dies with the process, as the snapshot that it serves does.
type scratch struct {
	words bitmap
	mem   []byte
}

func newScratch(words int64) (scratch, error) {
	if words == 0 {
		return scratch{}, nil
	}
	mem, err := unix.Mmap(-1, 0, int(words*8), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		return scratch{}, fmt.Errorf("map %d words of scratch memory: %w", words, err)
	}
	return scratch{wordsOf(mem), mem}, nil
}

func (s scratch) clear() error {
	if s.mem == nil {
		return nil
	}
	return unix.Madvise(s.mem, unix.MADV_DONTNEED)
}

func (s scratch) free() error {
	if s.mem == nil {
		return nil
	}
	return unix.Munmap(s.mem)
}

// wordsOf views mapped bytes as words. The kernel aligns mappings to pages.
func wordsOf(mem []byte) bitmap {
	if len(mem) == 0 {
		return nil
	}
	return unsafe.Slice((*uint64)(unsafe.Pointer(&mem[0])), len(mem)/8)
}

// runs calls yield for the maximal runs of set bits, ascending, as extents of a disk
// of the given size. leafAt says which leaves may hold bits; at is word i.
func runs(words, size int64, leafAt func(leaf int64) bool, at func(i int64) uint64, yield func(blockdev.Extent) bool) {
	start := int64(-1) // first grain of the run that is open
	flush := func(end int64) bool {
		off := start << grainShift
		start = -1
		if off >= size { // of a map that is larger than the disk has become
			return true
		}
		return yield(blockdev.Extent{Offset: off, Length: min(end<<grainShift, size) - off})
	}
	for i := int64(0); i < words; i++ {
		if i&(leafWords-1) == 0 && !leafAt(i>>leafShift) {
			if start >= 0 && !flush(i<<6) {
				return
			}
			i += leafWords - 1
			continue
		}
		v := at(i)
		switch {
		case v == 0 && start < 0, v == ^uint64(0) && start >= 0:
			continue
		case v == ^uint64(0):
			start = i << 6
			continue
		}
		for b := int64(0); b < 64; {
			if start < 0 {
				skip := int64(bits.TrailingZeros64(v >> b))
				if b+skip >= 64 {
					break
				}
				b += skip
				start = i<<6 + b
			} else {
				b += int64(bits.TrailingZeros64(^(v >> b)))
				if b >= 64 {
					break
				}
				if !flush(i<<6 + b) {
					return
				}
			}
		}
	}
	if start >= 0 {
		flush(words << 6)
	}
}
