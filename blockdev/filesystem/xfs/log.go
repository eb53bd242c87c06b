package xfs

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// The log is a ring of sectors. The first word of each is the number of the turn in
// which it was written, its cycle; a record keeps aside what stood there, and its
// first sector has a magic number in that place and the cycle behind it. So the head,
// where the next record would be written, is where the cycle falls by one.
//
// Up to eight records may be under way when the power goes, and they may arrive in
// any order. So near the head nothing is believed but a chain of records that are
// whole, each where the one before ends, up to the first that is not.
const (
	logMagic = 0xFEEDBABE
	// cycleBytes is how much one sector of cycle words is for
	// (XLOG_HEADER_CYCLE_SIZE): records that may be longer have more of them.
	cycleBytes = 32 << 10
	// maxRecord is XLOG_MAX_RECORD_BSIZE, in bytes.
	maxRecord = 256 << 10
	// flightSectors is what may have been under way: XLOG_MAX_ICLOGS records with
	// their headers.
	flightSectors = 8 * (maxRecord + 8*sectorSize + sectorSize) / sectorSize
	// minLogSectors is XFS_MIN_LOG_BYTES: less no mkfs makes.
	minLogSectors = 256 << 10 / sectorSize

	logFormatLinux = 1 // XLOG_FMT_LINUX_LE

	// Operations of a record (struct xlog_op_header).
	opHeaderSize = 12
	opUnmount    = 0x20
)

// lsn is a place in the log: cycle and sector.
type lsn uint64

func (l lsn) cycle() uint32 { return uint32(l >> 32) }
func (l lsn) sector() int64 { return int64(uint32(l)) }
func makeLSN(cycle uint32, sector int64) lsn {
	return lsn(cycle)<<32 | lsn(uint32(sector))
}

// journal is the log of a file system.
type journal struct {
	f       *FS
	offset  int64 // of the volume, in bytes
	sectors int64
	head    lsn // where the next record would be written
	tail    lsn // the first record that is needed
	clean   bool
	last    *record
}

// record is the header of a log record.
type record struct {
	lsn, tail lsn
	length    int64 // of the data, in bytes
	headers   int64 // sectors before the data
	ops       int
	raw       []byte // the headers
}

// sectors is the whole record, in sectors.
func (r *record) sectors() int64 {
	return r.headers + (r.length+sectorSize-1)/sectorSize
}

// openJournal finds head and tail.
func (f *FS) openJournal() (*journal, error) {
	s := f.super
	if s.logStart == 0 {
		return nil, unsupportedf("the log is on another device")
	}
	block, ok := s.linear(s.logStart, uint64(s.logBlocks))
	j := &journal{f: f, offset: int64(block) << s.blockBits, sectors: int64(s.logBlocks) << (s.blockBits - 9)}
	if !ok || j.sectors < minLogSectors {
		return nil, corruptf("log of %d blocks", s.logBlocks)
	}
	if err := j.find(); err != nil {
		return nil, err
	}
	return j, nil
}

// read fills p from a sector on, around the end of the ring.
func (j *journal) read(p []byte, sector int64) error {
	sector %= j.sectors
	n := min(int64(len(p)), (j.sectors-sector)*sectorSize)
	if err := j.f.readFull(p[:n], j.offset+sector*sectorSize); err != nil {
		return fmt.Errorf("read log at sector %d: %w", sector, err)
	}
	if n < int64(len(p)) {
		return j.read(p[n:], 0)
	}
	return nil
}

// cycleOf is the cycle of a sector.
func cycleOf(sector []byte) uint32 {
	be := binary.BigEndian
	if first := be.Uint32(sector); first != logMagic {
		return first
	}
	return be.Uint32(sector[4:])
}

func (j *journal) cycle(sector int64) (uint32, error) {
	p := make([]byte, sectorSize)
	err := j.read(p, sector)
	return cycleOf(p), err
}

// boundary is about where the cycle falls, and the cycle before it: exact but for
// what was under way.
func (j *journal) boundary() (sector int64, cycle uint32, err error) {
	first, err := j.cycle(0)
	if err != nil {
		return 0, 0, err
	}
	last, err := j.cycle(j.sectors - 1)
	if err != nil || first == last {
		return j.sectors, first, err
	}
	low, high := int64(0), j.sectors-1
	for high-low > 1 {
		middle := (low + high) / 2
		c, err := j.cycle(middle)
		if err != nil {
			return 0, 0, err
		}
		if c == first {
			low = middle
		} else {
			high = middle
		}
	}
	return high, first, nil
}

// find sets head, tail and clean (xlog_find_tail does the same in another way).
func (j *journal) find() error {
	near, cycle, err := j.boundary()
	if err != nil {
		return err
	}
	if cycle == 0 {
		return corruptf("log has never been written")
	}
	// The last record is mostly close; after an unmount nothing was under way.
	for _, window := range []int64{64, 1024} {
		last, err := j.chain(near, cycle, min(window, j.sectors))
		if err != nil {
			return err
		}
		if last == nil || (last.lsn.sector()+last.sectors())%j.sectors != near%j.sectors {
			continue
		}
		unmount, err := j.unmounted(last)
		if err != nil {
			return err
		}
		if unmount {
			j.settle(last)
			j.clean, j.tail = true, j.head
			return nil
		}
	}
	last, err := j.chain(near, cycle, min(2*flightSectors, j.sectors))
	if err != nil {
		return err
	}
	if last == nil {
		return corruptf("log has no whole record before sector %d", near)
	}
	j.settle(last)
	if j.clean, err = j.unmounted(last); err != nil {
		return err
	}
	if j.clean {
		j.tail = j.head
		return nil
	}
	return j.settleTail()
}

// settleTail looks for the first record that is needed. Records that were under way
// behind the last one may have taken the place of what the last one still calls the
// tail: then it has moved on, as the kernel writes over nothing that is needed
// (xlog_verify_tail).
func (j *journal) settleTail() error {
	for at, step := j.tail, int64(0); step <= flightSectors; step++ {
		var free int64 // from the head on to here
		switch {
		case at.cycle() == j.head.cycle() && at < j.head:
			free = j.sectors - j.head.sector() + at.sector()
		case at.cycle()+1 == j.head.cycle() && at.sector() >= j.head.sector() && at.sector() < j.sectors:
			free = at.sector() - j.head.sector()
		default:
			return corruptf("log has its tail at sector %d, cycle %d, and its head at sector %d, cycle %d",
				at.sector(), at.cycle(), j.head.sector(), j.head.cycle())
		}
		r, _, err := j.record(at)
		if err != nil {
			return err
		}
		if r != nil {
			j.tail = at
			return nil
		}
		if free > flightSectors {
			return corruptf("log has no whole record at sector %d, cycle %d", at.sector(), at.cycle())
		}
		if at = makeLSN(at.cycle(), at.sector()+1); at.sector() == j.sectors {
			at = makeLSN(at.cycle()+1, 0)
		}
	}
	return corruptf("log has no tail near sector %d", j.tail.sector())
}

// settle takes last as the last record.
func (j *journal) settle(last *record) {
	j.last, j.tail, j.head = last, last.tail, j.behind(last)
}

// behind is where the record behind r begins.
func (j *journal) behind(r *record) lsn {
	cycle, end := r.lsn.cycle(), r.lsn.sector()+r.sectors()
	if end >= j.sectors {
		cycle, end = cycle+1, end-j.sectors
	}
	return makeLSN(cycle, end)
}

// chain looks at the window before sector near of a cycle, and gives the last record
// of the chain of whole records that begins first in it, or nil.
func (j *journal) chain(near int64, cycle uint32, window int64) (*record, error) {
	start := near - window
	p := make([]byte, window*sectorSize)
	at, c := start, cycle
	if start < 0 {
		at, c = start+j.sectors, cycle-1
	}
	if err := j.read(p, at); err != nil {
		return nil, err
	}
	for i := int64(0); i < window; i++ {
		here := makeLSN(c, at+i)
		if at+i >= j.sectors {
			here = makeLSN(c+1, at+i-j.sectors)
		}
		if binary.BigEndian.Uint32(p[i*sectorSize:]) != logMagic {
			continue
		}
		last, err := j.follow(here)
		if last != nil || err != nil {
			return last, err
		}
	}
	return nil, nil
}

// follow goes along whole records from a place on and gives the last one, or nil.
func (j *journal) follow(at lsn) (*record, error) {
	var last *record
	start := at
	for {
		r, _, err := j.record(at)
		if err != nil || r == nil {
			return last, err
		}
		last = r
		if at = j.behind(r); at.cycle() > start.cycle() && at.sector() >= start.sector() {
			return nil, corruptf("log has records all around")
		}
	}
}

// record reads the record at a place, and its data as they stand there. It is nil
// when there is none, or not a whole one.
func (j *journal) record(at lsn) (*record, []byte, error) {
	be := binary.BigEndian
	h := make([]byte, sectorSize)
	if err := j.read(h, at.sector()); err != nil {
		return nil, nil, err
	}
	version, size := be.Uint32(h[8:]), int64(be.Uint32(h[320:]))
	r := &record{
		lsn: lsn(be.Uint64(h[16:])), tail: lsn(be.Uint64(h[24:])), length: int64(be.Uint32(h[12:])),
		headers: 1, ops: int(be.Uint32(h[40:])), raw: h,
	}
	if version == 2 && size > cycleBytes {
		r.headers = (size + cycleBytes - 1) / cycleBytes
	}
	switch {
	case be.Uint32(h) != logMagic || be.Uint32(h[4:]) != at.cycle() || r.lsn != at:
		return nil, nil, nil
	case version != 1 && version != 2 || be.Uint32(h[300:]) != logFormatLinux:
		return nil, nil, unsupportedf("log of version %d, byte order %d", version, be.Uint32(h[300:]))
	case [16]byte(h[304:320]) != j.f.super.uuid:
		return nil, nil, nil
	case size > maxRecord || r.length > maxRecord || r.length == 0 || r.sectors() > j.sectors:
		return nil, nil, nil
	}
	if r.headers > 1 {
		r.raw = make([]byte, r.headers*sectorSize)
		if err := j.read(r.raw, at.sector()); err != nil {
			return nil, nil, err
		}
	}
	data := make([]byte, (r.length+sectorSize-1)/sectorSize*sectorSize)
	if err := j.read(data, at.sector()+r.headers); err != nil {
		return nil, nil, err
	}
	if !r.whole(j, data) {
		return nil, nil, nil
	}
	return r, data[:r.length], nil
}

// whole: the checksum is right, or, where there is none (version 4, and the record
// that mkfs.xfs writes), each sector is of the record's turn. Headers of 32-bit
// machines are four bytes shorter (xlog_cksum).
func (r *record) whole(j *journal, data []byte) bool {
	want := binary.LittleEndian.Uint32(r.raw[32:])
	if want != 0 && j.f.super.v5 {
		return want == r.checksum(328, data[:r.length]) || want == r.checksum(324, data[:r.length])
	}
	for i := int64(0); i < int64(len(data))/sectorSize; i++ {
		cycle := r.lsn.cycle()
		if r.lsn.sector()+r.headers+i >= j.sectors {
			cycle++
		}
		if cycleOf(data[i*sectorSize:]) != cycle {
			return false
		}
	}
	return true
}

func (r *record) checksum(headerSize int, data []byte) uint32 {
	const at, more = 32, 260 // of more: cycle and 64 words
	var zero [4]byte
	crc := crc32.Update(0, castagnoli, r.raw[:at])
	crc = crc32.Update(crc, castagnoli, zero[:])
	crc = crc32.Update(crc, castagnoli, r.raw[at+4:headerSize])
	for i := int64(1); i < (r.length+cycleBytes-1)/cycleBytes && i < r.headers; i++ {
		crc = crc32.Update(crc, castagnoli, r.raw[i*sectorSize:][:more])
	}
	return crc32.Update(crc, castagnoli, data)
}

// unpack puts back the words in whose places the cycles stand (xlog_unpack_data).
func (r *record) unpack(data []byte) error {
	const perHeader = cycleBytes / sectorSize
	for i := 0; i*sectorSize < len(data); i++ {
		from := r.raw[44+4*min(i, perHeader-1):]
		if i >= perHeader {
			header := i / perHeader
			if int64(header) >= r.headers {
				return corruptf("log record at %d has %d bytes and %d headers", r.lsn.sector(), r.length, r.headers)
			}
			from = r.raw[header*sectorSize+4+4*(i%perHeader):]
		}
		copy(data[i*sectorSize:min(len(data), i*sectorSize+4)], from[:4])
	}
	return nil
}

// unmounted: the record says that the file system was unmounted.
func (j *journal) unmounted(r *record) (bool, error) {
	if r.ops != 1 {
		return false, nil
	}
	again, data, err := j.record(r.lsn)
	if err != nil || again == nil {
		return false, err
	}
	if err := again.unpack(data); err != nil {
		return false, err
	}
	return len(data) >= opHeaderSize && data[9]&opUnmount != 0, nil
}
