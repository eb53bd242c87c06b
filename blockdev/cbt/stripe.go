package cbt

import "sync"

const (
	// stripeShift: a stripe lock guards 256 KiB.
	stripeShift = 18
	// stripeCount locks are spread over the disk, stripe i under lock
	// i mod stripeCount. 1024 of them are 64 KiB of memory per disk.
	stripeCount = 1024
	// maxChunk is the most that is changed under one hold of the locks, in bytes:
	// five stripes when it is not aligned.
	maxChunk = 1 << 20
)

// stripes are the RW locks of a disk. A write holds those of its range shared; a
// write that has to preserve something, or that cannot know yet, holds them
// exclusively.
type stripes [stripeCount]struct {
	sync.RWMutex
	_ [40]byte
}

// span is the range of stripes of one chunk, as lock indexes. When it wraps, first
// is larger than last, and the locks 0..last come before first..stripeCount-1: the
// order of lock index is the order of every holder.
type span struct{ first, last int }

func spanOf(off, n int64) span {
	return span{int(off>>stripeShift) % stripeCount, int((off+n-1)>>stripeShift) % stripeCount}
}

func (s *stripes) lock(p span, exclusive bool) {
	if p.first > p.last {
		s.lockRun(0, p.last, exclusive)
		s.lockRun(p.first, stripeCount-1, exclusive)
		return
	}
	s.lockRun(p.first, p.last, exclusive)
}

func (s *stripes) lockRun(first, last int, exclusive bool) {
	for i := first; i <= last; i++ {
		if exclusive {
			s[i].Lock()
		} else {
			s[i].RLock()
		}
	}
}

func (s *stripes) unlock(p span, exclusive bool) {
	n := p.last - p.first
	if n < 0 {
		n += stripeCount
	}
	for k := 0; k <= n; k++ {
		i := (p.first + k) % stripeCount
		if exclusive {
			s[i].Unlock()
		} else {
			s[i].RUnlock()
		}
	}
}
