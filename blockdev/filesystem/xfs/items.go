package xfs

import (
	"encoding/binary"
	"math/bits"
)

// Flags of a buffer item (XFS_BLF_*).
const (
	bufferInode  = 1 << 0 // only links between unlinked inodes, which are not shown
	bufferCancel = 1 << 1
	bufferQuota  = 1<<2 | 1<<3 | 1<<4

	bufferChunk    = 128 // bytes that one bit of the map is for
	maxBufferWords = 17  // XFS_BLF_DATAMAP_SIZE
)

// buffer is struct xfs_buf_log_format.
type buffer struct {
	place
	flags uint16
	dirty []byte // bit map of chunks, in 32-bit words
}

func parseBuffer(p []byte) (*buffer, error) {
	le := binary.LittleEndian
	if len(p) < 20 {
		return nil, corruptf("buffer item of %d bytes", len(p))
	}
	b := &buffer{flags: le.Uint16(p[4:]), place: place{sector: int64(le.Uint64(p[8:])), length: uint32(le.Uint16(p[6:]))}}
	words := le.Uint32(p[16:])
	if words > maxBufferWords || len(p) < 20+4*int(words) {
		return nil, corruptf("buffer item with a map of %d words in %d bytes", words, len(p))
	}
	b.dirty = p[20:][:4*words]
	if b.sector < 0 || b.sector > 1<<54 || b.length > 128 {
		return nil, corruptf("buffer item of %d sectors at sector %d", b.length, b.sector)
	}
	return b, nil
}

func (b *buffer) bit(i int) bool {
	return i/8 < len(b.dirty) && b.dirty[i/8]>>(i%8)&1 != 0
}

// buffer applies a buffer item (xlog_recover_buf_commit_pass2).
func (rc *recovery) buffer(t *transaction, it *item) error {
	b, err := parseBuffer(it.regions[0])
	if err != nil {
		return err
	}
	if rc.isCancelled(b.place) || b.flags&(bufferInode|bufferQuota) != 0 {
		return nil
	}
	off := b.sector * sectorSize
	if rc.f.super.v5 {
		front, err := rc.content(off, sectorSize)
		if err != nil {
			return err
		}
		if known := rc.bufferLSN(front); known != 0 && known >= t.lsn {
			return nil
		}
	}
	region := 1
	for i := 0; i < 8*len(b.dirty); region++ {
		if !b.bit(i) {
			i++
			region--
			continue
		}
		n := 1
		for b.bit(i + n) {
			n++
		}
		if region >= len(it.regions) {
			return corruptf("buffer item at sector %d has too few regions", b.sector)
		}
		p := it.regions[region]
		// A run of chunks may come in several regions.
		n = min(n, len(p)/bufferChunk)
		if n == 0 || (i+n)*bufferChunk > int(b.length)*sectorSize {
			return corruptf("buffer item at sector %d: region of %d bytes at chunk %d", b.sector, len(p), i)
		}
		if err := rc.write(p[:n*bufferChunk], off+int64(i)*bufferChunk); err != nil {
			return err
		}
		i += n
	}
	return nil
}

// Where metadata of version 5 keep LSN and uuid, by the magic at their front, and by
// that in a block of hashes.
var (
	lsnByMagic = map[string][2]int{
		"AB3B": {24, 32}, "AB3C": {24, 32}, "ABTB": {24, 32}, "ABTC": {24, 32}, "RMB3": {24, 32}, "R3FC": {24, 32},
		"FIB3": {24, 32}, "FIBT": {24, 32}, "IAB3": {24, 32}, "IABT": {24, 32},
		"BMA3": {32, 40}, "BMAP": {32, 40}, "XAGF": {208, 64}, "XAFL": {24, 8}, "XAGI": {320, 296}, "XSLM": {48, 16},
		"XDB3": {16, 24}, "XDD3": {16, 24}, "XDF3": {16, 24},
	}
	lsnByHashMagic = map[uint16][2]int{
		magicDirLeaf3: {24, 32}, magicDirLeafM: {24, 32}, magicAttr3: {24, 32}, magicDANode3: {24, 32},
	}
)

// bufferLSN is when the buffer that begins with p was written to its place, or 0
// when that cannot be told and it has to be recovered (xlog_recover_get_buf_lsn).
func (rc *recovery) bufferLSN(p []byte) lsn {
	be := binary.BigEndian
	at, ok := lsnByMagic[string(p[:4])]
	if !ok {
		at, ok = lsnByHashMagic[be.Uint16(p[8:])]
	}
	if string(p[:4]) == superMagic {
		at, ok = [2]int{240, 32}, true
		if rc.f.super.incompat&incompatMetaUUID != 0 {
			at[1] = 248
		}
	}
	if !ok || [16]byte(p[at[1]:at[1]+16]) != rc.f.super.metaUUID {
		return 0
	}
	if v := be.Uint64(p[at[0]:]); v != 1<<64-1 {
		return lsn(v)
	}
	return 0
}

// newInodes fills a new chunk of inodes (xlog_recover_icreate_commit_pass2). What
// stands there already is written over: all that was done with these inodes since is
// in the log too.
func (rc *recovery) newInodes(it *item) error {
	be := binary.BigEndian
	s := rc.f.super
	p := it.regions[0]
	if len(p) < 28 {
		return corruptf("new inodes: item of %d bytes", len(p))
	}
	ag, agBlock, count := uint64(be.Uint32(p[4:])), uint64(be.Uint32(p[8:])), uint64(be.Uint32(p[12:]))
	size, length, generation := be.Uint32(p[16:]), uint64(be.Uint32(p[20:])), be.Uint32(p[24:])
	first, ok := s.linear(ag<<s.agBits|agBlock, length)
	if !ok || agBlock>>s.agBits != 0 || int(size) != s.inodeSize || count*uint64(size) != length<<s.blockBits || count > 1<<12 || !s.v5 {
		return corruptf("new inodes: %d of %d bytes in %d blocks at %d of group %d", count, size, length, agBlock, ag)
	}
	for b := range length {
		if rc.at[int64((first+b)<<(s.blockBits-9))] > 0 {
			return nil // freed again
		}
	}
	for i := range count {
		raw := make([]byte, s.inodeSize)
		be.PutUint16(raw, inodeMagic)
		raw[4] = 3
		be.PutUint32(raw[92:], generation)
		be.PutUint32(raw[96:], 1<<32-1) // di_next_unlinked: none
		be.PutUint64(raw[152:], (ag<<s.agBits|agBlock)<<s.inodePerBlockBits+i)
		copy(raw[160:], s.metaUUID[:])
		binary.LittleEndian.PutUint32(raw[inodeCRC:], crcOf(raw, inodeCRC))
		if err := rc.write(raw, int64(first<<s.blockBits+i*uint64(s.inodeSize))); err != nil {
			return err
		}
	}
	return nil
}

// Fields of an inode item (XFS_ILOG_*).
const (
	logDataLocal   = 0x002
	logDataExtents = 0x004
	logDataRoot    = 0x008
	logDevice      = 0x010
	logAttrLocal   = 0x040
	logAttrExtents = 0x080
	logAttrRoot    = 0x100
	logDataOwner   = 0x200
	logAttrOwner   = 0x400

	logDataFork = logDataLocal | logDataExtents | logDataRoot
	logAttrFork = logAttrLocal | logAttrExtents | logAttrRoot

	inodeItemSize   = 56
	inodeItemSize32 = 52 // of 32-bit machines: no padding before the inode's number
)

// inodeItem is struct xfs_inode_log_format.
type inodeItem struct {
	fields uint32
	ino    uint64
	device uint32
	place  place // of the buffer
}

func parseInodeItem(p []byte) (*inodeItem, error) {
	le := binary.LittleEndian
	shift := 0
	switch {
	case len(p) >= inodeItemSize:
		shift = 4
	case len(p) != inodeItemSize32:
		return nil, corruptf("inode item of %d bytes", len(p))
	}
	return &inodeItem{
		fields: le.Uint32(p[4:]), ino: le.Uint64(p[12+shift:]), device: le.Uint32(p[20+shift:]),
		place: place{sector: int64(le.Uint64(p[36+shift:])), length: le.Uint32(p[44+shift:])},
	}, nil
}

// inode applies an inode item (xlog_recover_inode_commit_pass2).
func (rc *recovery) inode(t *transaction, it *item) error {
	s := rc.f.super
	x, err := parseInodeItem(it.regions[0])
	if err != nil {
		return err
	}
	if rc.isCancelled(x.place) {
		return nil
	}
	block, offset, ok := s.inodePlace(x.ino)
	if !ok || len(it.regions) < 2 {
		return corruptf("inode item of inode %d with %d regions", x.ino, len(it.regions))
	}
	off := int64(block)<<s.blockBits + int64(offset)
	raw, err := rc.content(off, s.inodeSize)
	if err != nil {
		return err
	}
	core := it.regions[1]
	coreSize := inodeCoreV2 - 4 // without di_next_unlinked
	if s.v5 {
		coreSize = inodeCoreV3
	}
	le, be := binary.LittleEndian, binary.BigEndian
	switch {
	case be.Uint16(raw) != inodeMagic:
		return corruptf("inode item of inode %d: there is no inode", x.ino)
	case len(core) < coreSize || le.Uint16(core) != inodeMagic:
		return corruptf("inode item of inode %d: core of %d bytes", x.ino, len(core))
	}
	if x.fields&(logDataOwner|logAttrOwner) != 0 {
		if rc.done.foreign[x.ino] = true; len(rc.done.foreign) > maxNotes {
			return unsupportedf("log with over %d exchanged maps", maxNotes)
		}
	}
	if newer(raw, core, t.lsn) {
		return nil
	}
	coreToDisk(raw, core, t.lsn)
	if err := rc.forks(x, raw, it.regions[2:]); err != nil {
		return err
	}
	if s.v5 {
		le.PutUint32(raw[inodeCRC:], crcOf(raw, inodeCRC))
	}
	return rc.write(raw, off)
}

// newer: what stands in its place is newer than what the log says. In version 4
// only a count of writes tells, which wraps around.
func newer(raw, core []byte, at lsn) bool {
	be := binary.BigEndian
	if raw[4] >= 3 {
		known := be.Uint64(raw[112:])
		return known != 0 && known != 1<<64-1 && lsn(known) > at
	}
	const maxFlush = 0xFFFF
	disk, logged := be.Uint16(raw[30:]), binary.LittleEndian.Uint16(core[30:])
	return logged < disk && !(disk == maxFlush && logged < maxFlush>>1)
}

// coreFields are the widths of the fields of an inode from offset 0 on: the log has
// them in the machine's byte order, the disk big-endian. The last but one of the
// first part is followed by di_next_unlinked and di_crc, which are not taken.
var (
	coreFields = []struct{ at, width int }{
		{0, 2}, {2, 2}, {8, 4}, {12, 4}, {16, 4}, {20, 2}, {22, 2},
		{32, 4}, {36, 4}, {40, 4}, {44, 4}, {48, 4}, {52, 4}, // times without bigtime
		{56, 8}, {64, 8}, {72, 4}, {76, 4}, {80, 2}, {84, 4}, {88, 2}, {90, 2}, {92, 4},
	}
	coreFieldsV3 = []struct{ at, width int }{{104, 8}, {120, 8}, {128, 4}, {144, 4}, {148, 4}}
)

// coreToDisk is xfs_log_dinode_to_disk.
func coreToDisk(raw, core []byte, at lsn) {
	swap := func(at, width int) {
		for i := range width {
			raw[at+i] = core[at+width-1-i]
		}
	}
	for _, f := range coreFields {
		swap(f.at, f.width)
	}
	for _, at := range []int{4, 5, 82, 83} { // version, format, forkoff, aformat
		raw[at] = core[at]
	}
	clear(raw[6:8])   // di_onlink
	clear(raw[24:32]) // counts of writes begin anew, or di_big_nextents, below
	if core[4] < 3 {
		return
	}
	for _, f := range coreFieldsV3 {
		swap(f.at, f.width)
	}
	flags2 := binary.BigEndian.Uint64(raw[120:])
	if flags2&flags2Nrext64 != 0 {
		swap(24, 8)
	}
	if flags2&flags2Bigtime != 0 {
		for _, at := range []int{32, 40, 48, 144} {
			swap(at, 8)
		}
	}
	clear(raw[132:144])
	swap(152, 8)
	copy(raw[160:176], core[160:176])
	binary.BigEndian.PutUint64(raw[112:], uint64(at))
}

// forks puts what the item has of data and attributes into the inode.
func (rc *recovery) forks(x *inodeItem, raw []byte, regions [][]byte) error {
	literal := raw[inodeCoreV2:]
	if raw[4] >= 3 {
		literal = raw[inodeCoreV3:]
	}
	data, attr := literal, literal[len(literal):]
	if split := int(raw[82]) << 3; split != 0 && split < len(literal) {
		data, attr = literal[:split], literal[split:]
	}
	if x.fields&logDevice != 0 && len(data) >= 4 {
		binary.BigEndian.PutUint32(data, x.device)
	}
	for _, part := range []struct {
		all, root uint32
		to        []byte
	}{{logDataFork, logDataRoot, data}, {logAttrFork, logAttrRoot, attr}} {
		fields := x.fields & part.all
		if fields == 0 {
			continue
		}
		if bits.OnesCount32(fields) != 1 || len(regions) == 0 {
			return corruptf("inode item of inode %d: fields %#x with %d regions", x.ino, x.fields, len(regions))
		}
		p := regions[0]
		regions = regions[1:]
		if fields == part.root {
			if err := rc.rootToDisk(part.to, p); err != nil {
				return err
			}
			continue
		}
		if len(p) > (len(part.to)+3)&^3 {
			return corruptf("inode item of inode %d: fork of %d bytes in %d", x.ino, len(p), len(part.to))
		}
		copy(part.to, p)
	}
	return nil
}

// rootToDisk turns the root of a map as it is in the kernel's memory, with the header
// of a block, into that in an inode (xfs_bmbt_to_bmdr).
func (rc *recovery) rootToDisk(to, p []byte) error {
	be := binary.BigEndian
	header := 24
	if rc.f.super.v5 {
		header = headerBtree.size
	}
	if len(p) < header || len(to) < 4 {
		return corruptf("root of a map of %d bytes in %d", len(p), len(to))
	}
	n, room, diskRoom := int(be.Uint16(p[6:])), (len(p)-header)/16, (len(to)-4)/16
	if n > room || n > diskRoom || be.Uint16(p[4:]) == 0 {
		return corruptf("root of a map with %d of %d entries for %d", n, room, diskRoom)
	}
	copy(to, p[4:8])
	copy(to[4:], p[header:][:8*n])
	copy(to[4+8*diskRoom:], p[header+8*room:][:8*n])
	return nil
}
