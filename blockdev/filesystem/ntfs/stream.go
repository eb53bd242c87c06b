package ntfs

import (
	"fmt"
	"math"
	"sort"

	"github.com/keelblock/keelblock/blockdev/filesystem/pagecache"
)

// Flags of an attribute.
const (
	flagCompressed  = 0x0001
	flagCompression = 0x00FF // the method; only flagCompressed is known
	flagEncrypted   = 0x4000
)

// hole is the LCN of clusters that are not there.
const hole = -1

// run is a piece of a stream: clusters in one piece, or a hole.
type run struct {
	vcn, count uint64
	lcn        int64
}

// stream is the value of an attribute, wherever it is.
type stream struct {
	resident    []byte // when it is in the record
	isResident  bool
	flags       uint16
	unit        uint64 // clusters in a compression unit; 0: not compressed
	size        int64
	initialized int64 // zeros are behind
	allocated   int64
	runs        []run // when there is one part
	// parts are those of a stream with an attribute list; their runs are read when they
	// are needed.
	node  *node
	parts []listEntry
}

// stream is the value of attribute a, the first part, of a node.
func (f *FS) stream(n *node, a *attr) (*stream, error) {
	if a.resident {
		return &stream{resident: a.value, isResident: true, flags: a.flags, size: int64(len(a.value)), initialized: int64(len(a.value)), allocated: int64(len(a.value)+7) &^ 7}, nil
	}
	if a.lowest != 0 {
		return nil, corruptf("MFT record %d: attribute %#x %q begins at cluster %d", n.number, a.kind, a.name, a.lowest)
	}
	s := &stream{flags: a.flags, size: a.size, initialized: a.initialized, allocated: a.allocated, node: n}
	if a.flags&flagCompression != 0 && a.unit != 0 {
		if a.unit > 8 {
			return nil, corruptf("MFT record %d: compression unit of 2^%d clusters", n.number, a.unit)
		}
		s.unit = 1 << a.unit
	}
	for _, e := range n.list {
		if e.kind == a.kind && e.name == a.name {
			s.parts = append(s.parts, e)
		}
	}
	if len(s.parts) > 1 {
		for i := range s.parts[1:] {
			if s.parts[i+1].lowest <= s.parts[i].lowest {
				return nil, corruptf("MFT record %d: parts of attribute %#x %q are out of order", n.number, a.kind, a.name)
			}
		}
		return s, nil
	}
	s.parts = nil
	var err error
	if s.runs, err = f.decodeRuns(a); err != nil {
		return nil, fmt.Errorf("MFT record %d: attribute %#x %q: %w", n.number, a.kind, a.name, err)
	}
	return s, nil
}

// decodeRuns reads the mapping pairs of one part and checks them against the volume.
func (f *FS) decodeRuns(a *attr) ([]run, error) {
	var out []run
	p, vcn, lcn := a.runs, a.lowest, int64(0)
	for {
		if len(p) == 0 {
			return nil, corruptf("runs without an end")
		}
		if p[0] == 0 {
			break
		}
		lengthBytes, placeBytes := int(p[0]&0xF), int(p[0]>>4)
		if lengthBytes == 0 || lengthBytes > 8 || placeBytes > 8 || 1+lengthBytes+placeBytes > len(p) {
			return nil, corruptf("run with header %#x", p[0])
		}
		count := signed(p[1 : 1+lengthBytes])
		r := run{vcn: vcn, count: uint64(count), lcn: hole}
		if count <= 0 || uint64(count) > math.MaxInt64/uint64(f.boot.clusterSize)-vcn {
			return nil, corruptf("run of %d clusters", count)
		}
		if placeBytes > 0 {
			lcn += signed(p[1+lengthBytes : 1+lengthBytes+placeBytes])
			if lcn < 0 || uint64(lcn) >= f.boot.clusters || r.count > f.boot.clusters-uint64(lcn) {
				return nil, corruptf("run of %d clusters at %d of %d", count, lcn, f.boot.clusters)
			}
			r.lcn = lcn
		}
		out = append(out, r)
		vcn += r.count
		p = p[1+lengthBytes+placeBytes:]
	}
	// The highest VCN of an empty attribute is -1.
	if a.highest+1 != vcn {
		return nil, corruptf("runs end at cluster %d instead of %d", vcn, a.highest+1)
	}
	return out, nil
}

// signed is a little-endian number of 1 to 8 bytes.
func signed(p []byte) int64 {
	v := int64(int8(p[len(p)-1]))
	for i := len(p) - 2; i >= 0; i-- {
		v = v<<8 | int64(p[i])
	}
	return v
}

// part is the runs of the part of a stream that has cluster vcn.
func (f *FS) part(s *stream, vcn uint64) ([]run, error) {
	if s.parts == nil {
		return s.runs, nil
	}
	i := sort.Search(len(s.parts), func(i int) bool { return s.parts[i].lowest > vcn }) - 1
	if i < 0 {
		return nil, corruptf("MFT record %d: no part has cluster %d", s.node.number, vcn)
	}
	e := s.parts[i]
	k := pagecache.Key{Class: classRuns, A: refNumber(e.ref), B: uint64(e.id)}
	if runs, ok := pagecache.Get[[]run](f.cache, k); ok {
		return runs, nil
	}
	a, err := f.resolve(s.node, e)
	if err != nil {
		return nil, err
	}
	if a.resident || a.lowest != e.lowest {
		return nil, corruptf("MFT record %d: part of a stream begins at cluster %d instead of %d", s.node.number, a.lowest, e.lowest)
	}
	runs, err := f.decodeRuns(a)
	if err != nil {
		return nil, fmt.Errorf("MFT record %d: %w", refNumber(e.ref), err)
	}
	f.cache.Put(k, runs, 24*len(runs))
	return runs, nil
}

// at is the piece of a stream that begins with cluster vcn.
func (f *FS) at(s *stream, vcn uint64) (run, error) {
	runs, err := f.part(s, vcn)
	if err != nil {
		return run{}, err
	}
	i := sort.Search(len(runs), func(i int) bool { return runs[i].vcn > vcn }) - 1
	if i < 0 || vcn-runs[i].vcn >= runs[i].count {
		return run{}, corruptf("cluster %d is in no run", vcn)
	}
	r := runs[i]
	skip := vcn - r.vcn
	r.vcn, r.count = vcn, r.count-skip
	if r.lcn != hole {
		r.lcn += int64(skip)
	}
	return r, nil
}

// readRuns fills p, which lies within the size, from a stream that is neither compressed
// nor encrypted, by the given way of reading the volume.
func (f *FS) readRuns(s *stream, p []byte, off int64, read func(p []byte, off int64) error) error {
	cs := f.boot.clusterSize
	for len(p) > 0 {
		if off >= s.initialized {
			clear(p)
			return nil
		}
		r, err := f.at(s, uint64(off/cs))
		if err != nil {
			return err
		}
		within := off % cs
		part := p[:min(int64(len(p)), int64(min(r.count, uint64(len(p))/uint64(cs)+2))*cs-within, s.initialized-off)]
		if r.lcn == hole {
			clear(part)
		} else if err := read(part, r.lcn*cs+within); err != nil {
			return err
		}
		p, off = p[len(part):], off+int64(len(part))
	}
	return nil
}

// read fills p, which lies within the size, from any stream that can be read.
func (f *FS) read(s *stream, p []byte, off int64) error {
	switch {
	case s.flags&flagEncrypted != 0:
		return unsupportedf("encrypted by Windows (EFS)")
	case s.isResident:
		copy(p, s.resident[off:])
		return nil
	case s.flags&flagCompression > flagCompressed:
		return unsupportedf("compressed in the unknown way %#x", s.flags&flagCompression)
	case s.unit != 0:
		return f.readCompressed(s, p, off)
	}
	return f.readRuns(s, p, off, f.cache.ReadDirect)
}

// readCompressed reads by compression units, which it keeps.
func (f *FS) readCompressed(s *stream, p []byte, off int64) error {
	size := int64(s.unit) * f.boot.clusterSize
	if size > maxClusterSize {
		return corruptf("compression unit of %d bytes", size)
	}
	for len(p) > 0 {
		if off >= s.initialized {
			clear(p)
			return nil
		}
		n := min(int64(len(p)), size-off%size, s.initialized-off)
		unit, err := f.unit(s, uint64(off/size))
		if err != nil {
			return err
		}
		if unit == nil {
			clear(p[:n])
		} else {
			copy(p[:n], unit[off%size:])
		}
		p, off = p[n:], off+n
	}
	return nil
}

// unitClusters tells how a compression unit is stored: its runs of clusters and how many
// clusters those are. All of them: as it is. None: zeros. Else it is compressed.
func (f *FS) unitClusters(s *stream, number uint64) (runs []run, stored uint64, err error) {
	for vcn, end := number*s.unit, (number+1)*s.unit; vcn < end; {
		r, err := f.at(s, vcn)
		if err != nil {
			return nil, 0, err
		}
		r.count = min(r.count, end-vcn)
		if r.lcn != hole {
			if stored < vcn-number*s.unit {
				return nil, 0, corruptf("compression unit %d has clusters behind a hole", number)
			}
			runs, stored = append(runs, r), stored+r.count
		}
		vcn += r.count
	}
	return runs, stored, nil
}

// unit is the contents of a compression unit, nil when it is all zeros.
func (f *FS) unit(s *stream, number uint64) ([]byte, error) {
	runs, stored, err := f.unitClusters(s, number)
	if err != nil || stored == 0 {
		return nil, err
	}
	// The place on the disk is the unit's name, whatever file it is in.
	k := pagecache.Key{Class: classUnit, A: uint64(runs[0].lcn), B: stored<<16 | s.unit}
	if p, ok := pagecache.Get[[]byte](f.cache, k); ok && len(runs) == 1 {
		return p, nil
	}
	cs := f.boot.clusterSize
	p := make([]byte, int64(stored)*cs)
	done := int64(0)
	for _, r := range runs {
		n := int64(r.count) * cs
		if err := f.cache.ReadDirect(p[done:done+n], r.lcn*cs); err != nil {
			return nil, err
		}
		done += n
	}
	if stored < s.unit {
		if p, err = decompress(p, int(int64(s.unit)*cs)); err != nil {
			return nil, fmt.Errorf("compression unit %d: %w", number, err)
		}
	}
	if len(runs) == 1 {
		f.cache.Put(k, p, len(p))
	}
	return p, nil
}
