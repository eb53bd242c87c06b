package btrfs

import (
	"fmt"
)

// readData fills p from a logical address and tells how much of it is good. With sums
// it is verified, in whole sectors.
func (f *FS) readData(logical uint64, p []byte, sums bool) (int, error) {
	sector := uint64(f.super.sectorSize)
	before := int(logical % sector)
	q := p
	if before != 0 || uint64(len(p))%sector != 0 {
		q = make([]byte, (uint64(before+len(p))+sector-1)/sector*sector)
	}
	good, err := f.readSectors(logical-uint64(before), q, sums)
	if len(q) != len(p) || before != 0 {
		good = copy(p, q[min(before, good):good])
	}
	return good, err
}

// readSectors reads whole sectors and tells how many bytes of them are good.
func (f *FS) readSectors(logical uint64, p []byte, sums bool) (int, error) {
	places, err := f.locate(logical, uint64(len(p)))
	if err != nil {
		return 0, err
	}
	for i, at := range places {
		if err = f.readFull(p, at); err == nil {
			places[0], places[i] = places[i], places[0]
			break
		}
		err = fmt.Errorf("read %d bytes at %d: %w", len(p), at, err)
	}
	if err != nil || !sums {
		if err != nil {
			return 0, err
		}
		return len(p), nil
	}
	want, err := f.dataSums(logical, len(p)/f.super.sectorSize)
	if err != nil {
		return 0, err
	}
	size := f.super.sums.size()
	for n := 0; n < len(p); n += f.super.sectorSize {
		s := p[n:][:f.super.sectorSize]
		w := want[n/f.super.sectorSize*size:][:size]
		if !f.super.sums.matches(s, w) && !f.mend(s, w, places[1:], int64(n)) {
			return n, corruptf("data at address %d: checksum does not match", logical+uint64(n))
		}
	}
	return len(p), nil
}

func (c checksum) matches(p, want []byte) bool {
	sum := c.sum(p)
	return string(sum[:len(want)]) == string(want)
}

// mend reads a sector from another copy.
func (f *FS) mend(sector, want []byte, places []int64, off int64) bool {
	for _, at := range places {
		if f.readFull(sector, at+off) == nil && f.super.sums.matches(sector, want) {
			return true
		}
	}
	return false
}

// dataSums are the checksums of n sectors from a logical address on. Those of a log
// go before those of the tree, which may be of former contents.
func (f *FS) dataSums(logical uint64, n int) ([]byte, error) {
	out := make([]byte, n*f.super.sums.size())
	if len(f.logs) == 0 {
		missing, err := f.collectSums(f.csumTree, logical, n, out, nil)
		return out, noSum(logical, missing, err)
	}
	have := make([]bool, n)
	missing := 0
	for i := len(f.logs); i >= 0; i-- {
		t := f.csumTree
		if i > 0 {
			t = f.logs[i-1]
		}
		var err error
		if missing, err = f.collectSums(t, logical, n, out, have); err != nil || missing == 0 {
			return out, err
		}
	}
	return out, noSum(logical, missing, nil)
}

func noSum(logical uint64, missing int, err error) error {
	if err == nil && missing > 0 {
		err = corruptf("data at address %d: %d sectors have no checksum", logical, missing)
	}
	return err
}

// collectSums takes from a tree the checksums of those of n sectors that are not there
// yet, and tells how many are still missing. have may be nil for none.
func (f *FS) collectSums(t *tree, logical uint64, n int, out []byte, have []bool) (missing int, err error) {
	sector, size := uint64(f.super.sectorSize), uint64(f.super.sums.size())
	missing = n
	for _, h := range have {
		if h {
			missing--
		}
	}
	end := logical + uint64(n)*sector
	from := key{objectCsum, typeExtentCsum, logical}
	it, ok, err := f.floor(t, from)
	if err != nil {
		return missing, err
	}
	if ok && it.key.object == objectCsum && it.key.kind == typeExtentCsum {
		from = it.key
	}
	last := uint64(0)
	err = f.scan(t, from, func(it item) (bool, error) {
		if it.key.object != objectCsum || it.key.kind != typeExtentCsum || it.key.offset >= end {
			return false, nil
		}
		count := uint64(len(it.data)) / size
		if it.key.offset%sector != 0 || it.key.offset < last || it.key.offset > 1<<63 {
			return false, corruptf("checksums at address %d overlap", it.key.offset)
		}
		last = it.key.offset + count*sector
		start := max(logical, it.key.offset)
		for at := start; at < min(end, last); at += sector {
			i := (at - logical) / sector
			if have != nil {
				if have[i] {
					continue
				}
				have[i] = true
			}
			copy(out[i*size:], it.data[(at-it.key.offset)/sector*size:][:size])
			missing--
		}
		return last < end, nil
	})
	return missing, err
}
