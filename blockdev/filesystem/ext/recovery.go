package ext

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
)

// A replay follows jbd2_journal_recover (fs/jbd2/recovery.c) and differs in one
// thing: it writes nothing. The kernel goes through the log three times. Its first
// pass finds the end of the log, the second collects revoke records, the third
// copies blocks home. Here the first pass also notes which block of the log stands
// for which block of the volume ([tag]), the second strikes out what was revoked,
// and the third only verifies the checksums of what is left. What remains, the newest
// tag of each block, is the overlay through which the volume is then read.
//
// The judgement of damage is the kernel's. The log ends, without an error, at the
// first block that does not belong to the expected transaction: a commit that was
// interrupted. A wrong checksum before that end is damage, and the kernel does not
// mount such a file system: neither is it shown here. The exception is the kernel's
// too: where the commit time goes backwards, the blocks are left from an earlier use
// of the journal and the log has ended.

// tag says that a block of the log holds the contents of a block of the volume.
type tag struct {
	block uint64
	log   uint32 // block of the journal
	// transaction counts from the oldest in the log. tagEscaped and tagRevoked are
	// its two highest bits.
	transaction uint32
}

const (
	tagEscaped = 1 << 31 // the first four bytes were the journal's magic
	tagRevoked = 1 << 30
	tagNumber  = tagRevoked - 1
)

// recovery is a replay under way.
type recovery struct {
	j        *journal
	volume   uint64 // blocks of the volume
	tags     []tag
	records  []record
	end      uint32 // the first transaction that is not replayed
	replaced int    // blocks of the volume that the overlay replaces
}

// record is a descriptor or revoke block.
type record struct {
	log         uint32
	transaction uint32 // from the oldest in the log
	revoke      bool
}

// replay reads the log of j, in which something is, and gives the newest tag of each
// block, in the order of the blocks.
func (j *journal) replay(volumeBlocks uint64) (*recovery, error) {
	r := &recovery{j: j, volume: volumeBlocks}
	if err := r.scan(); err != nil {
		return nil, err
	}
	slices.SortStableFunc(r.tags, func(a, b tag) int { return cmp.Compare(a.block, b.block) })
	for _, rec := range r.records {
		if rec.revoke {
			if err := r.revoke(rec); err != nil {
				return nil, err
			}
		}
	}
	if err := r.verify(); err != nil {
		return nil, err
	}
	r.compact()
	return r, nil
}

// scanner is the state of the first pass.
type scanner struct {
	r        *recovery
	at       uint32 // next block of the log
	steps    uint32 // blocks that may still be passed
	expected uint32 // transaction
	begun    mark   // where this transaction's tags and records begin
	complete mark   // and where those end that will be replayed
	doubt    bool   // a descriptor or revoke block of this transaction has a wrong checksum
	lastTime uint64
	sum      uint32 // csum v1 of this transaction
	ended    bool   // by an asynchronous commit whose checksum is wrong
	done     bool
}

// mark is a number of tags and of records.
type mark struct{ tags, records int }

func (r *recovery) mark() mark { return mark{len(r.tags), len(r.records)} }

// scan finds the end of the log and collects the tags and records before it.
func (r *recovery) scan() error {
	j := r.j
	s := scanner{r: r, at: j.start, steps: j.last - j.first + 1, expected: j.sequence, sum: ^uint32(0)}
	for !s.done {
		b := s.at
		p, err := j.block(b)
		if err != nil {
			return err
		}
		if err := s.pass(1); err != nil {
			return err
		}
		be := binary.BigEndian
		if be.Uint32(p) != journalMagic || be.Uint32(p[8:]) != s.expected {
			break
		}
		switch be.Uint32(p[4:]) {
		case journalDescriptor:
			err = s.descriptor(b, p)
		case journalRevoke:
			s.doubt = s.doubt || !j.tailOK(p)
			r.records = append(r.records, record{b, s.expected - j.sequence, true})
		case journalCommit:
			err = s.commit(b, p)
		default:
			s.done = true
		}
		if err != nil {
			return fmt.Errorf("transaction %d: %w", s.expected, err)
		}
	}
	if !s.ended {
		r.end = s.expected
	}
	r.tags, r.records = r.tags[:s.complete.tags], r.records[:s.complete.records]
	return nil
}

// pass goes n blocks on. A log that goes in a circle is refused.
func (s *scanner) pass(n uint32) (err error) {
	if n > s.steps {
		return corruptf("the log goes in a circle")
	}
	s.steps -= n
	s.at, err = s.r.j.next(s.at, n)
	return err
}

// descriptor notes the tags of the descriptor block p at b.
func (s *scanner) descriptor(b uint32, p []byte) error {
	j, r := s.r.j, s.r
	s.doubt = s.doubt || !j.tailOK(p)
	number := s.expected - j.sequence
	if number >= tagRevoked {
		return corruptf("more transactions than a journal can have")
	}
	r.records = append(r.records, record{b, number, false})
	v1 := j.compat&journalCompatChecksum != 0 && !s.doubt && !s.ended
	if v1 {
		s.sum = crc32be(s.sum, p)
	}
	for _, t := range j.tags(p) {
		if v1 {
			data, err := j.block(s.at)
			if err != nil {
				return err
			}
			s.sum = crc32be(s.sum, data)
		}
		n := number
		if t.flags&descriptorEscape != 0 {
			n |= tagEscaped
		}
		r.tags = append(r.tags, tag{t.block, s.at, n})
		if err := s.pass(1); err != nil {
			return err
		}
	}
	return nil
}

// commit judges the commit block p at b.
func (s *scanner) commit(b uint32, p []byte) error {
	const checksumAt, timeAt = 0x10, 0x30
	j := s.r.j
	time := binary.BigEndian.Uint64(p[timeAt:])
	if s.doubt {
		if time >= s.lastTime {
			return refusedf("the checksum of one of its descriptor or revoke blocks is wrong")
		}
		s.done = true
		return nil
	}
	good := true
	if j.compat&journalCompatChecksum != 0 {
		if s.ended {
			return refusedf("a commit follows on transaction %d, whose checksum is wrong", s.r.end)
		}
		const typeCRC32, sizeCRC32 = 1, 4
		want := binary.BigEndian.Uint32(p[checksumAt:])
		good = p[12] == typeCRC32 && p[13] == sizeCRC32 && want == s.sum ||
			p[12] == 0 && p[13] == 0 && want == 0
		if good {
			s.sum = ^uint32(0)
		}
	} else if j.checksummed() {
		good = j.commitOK(p)
	}
	if !good {
		if time < s.lastTime {
			s.done = true
			return nil
		}
		if !j.has(journalIncompatAsyncCommit) {
			return refusedf("the checksum of its commit in block %d of the journal is wrong", b)
		}
		// An asynchronous commit may reach the disk before what it commits: an
		// interrupted one is no damage unless another commit follows.
		s.ended, s.r.end, s.complete = true, s.expected, s.begun
	}
	s.lastTime = time
	s.expected++
	s.begun = s.r.mark()
	if !s.ended {
		s.complete = s.begun
	}
	return nil
}

// refusedf is an error in a journal that the kernel refuses too.
func refusedf(format string, args ...any) error {
	return corruptf(format+"; the kernel does not mount this file system either, e2fsck on a copy may help", args...)
}

// descriptorTag is a tag as a descriptor block has it.
type descriptorTag struct {
	block    uint64
	flags    uint16
	checksum uint32 // 16 bits of it in csum v2
}

const (
	descriptorEscape   = 1
	descriptorSameUUID = 2
	descriptorLast     = 8
)

// tagBytes is journal_tag_bytes.
func (j *journal) tagBytes() int {
	n := 8
	switch {
	case j.has(journalIncompatCsumV3):
		return 16
	case j.has(journalIncompatCsumV2):
		n = 10
	}
	if j.has(journalIncompat64bit) {
		n += 4
	}
	return n
}

// tailBytes is the size of the checksum at the end of descriptor and revoke blocks.
func (j *journal) tailBytes() int {
	if j.checksummed() {
		return 4
	}
	return 0
}

// tags are the tags of the descriptor block p. They are valid until the next call.
func (j *journal) tags(p []byte) []descriptorTag {
	be := binary.BigEndian
	j.scratch = j.scratch[:0]
	size, end := j.tagBytes(), len(p)-j.tailBytes()
	for at := journalHeaderSize; at+size <= end; at += size {
		q := p[at:]
		t := descriptorTag{block: uint64(be.Uint32(q)), checksum: uint32(be.Uint16(q[4:])), flags: be.Uint16(q[6:])}
		if j.has(journalIncompat64bit) {
			t.block |= uint64(be.Uint32(q[8:])) << 32
		}
		if j.has(journalIncompatCsumV3) {
			t.checksum = be.Uint32(q[12:])
		}
		j.scratch = append(j.scratch, t)
		if t.flags&descriptorLast != 0 {
			break
		}
		if t.flags&descriptorSameUUID == 0 {
			at += 16
		}
	}
	return j.scratch
}

// tailOK: the checksum of a descriptor or revoke block is right, or there is none.
func (j *journal) tailOK(p []byte) bool {
	if !j.checksummed() {
		return true
	}
	n := len(p) - 4
	return crc32cZeros(crc32c(j.seed, p[:n]), 4) == binary.BigEndian.Uint32(p[n:])
}

// commitOK: the checksum of a commit block is right, either over all of it or, as the
// kernel allows, with zeros behind its header.
func (j *journal) commitOK(p []byte) bool {
	const at, header = 0x10, 0x40
	crc := crc32c(j.seed, p[:at])
	crc = crc32cZeros(crc, 4)
	crc = crc32c(crc, p[at+4:header])
	want := binary.BigEndian.Uint32(p[at:])
	return crc32c(crc, p[header:]) == want || crc32c(crc, make([]byte, len(p)-header)) == want
}

// revoke strikes out the tags that a revoke block names: those of its transaction
// and of older ones. The tags are sorted by their blocks and, of one block, by age;
// so the struck ones come first and none is looked at twice.
func (r *recovery) revoke(rec record) error {
	p, err := r.j.block(rec.log)
	if err != nil {
		return err
	}
	const header = 16
	be := binary.BigEndian
	end := int64(be.Uint32(p[12:]))
	if end > int64(len(p)-r.j.tailBytes()) {
		return refusedf("revoke block %d of the journal has %d bytes", rec.log, end)
	}
	size := int64(4)
	if r.j.has(journalIncompat64bit) {
		size = 8
	}
	for at := int64(header); at+size <= end; at += size {
		block := uint64(be.Uint32(p[at:]))
		if size == 8 {
			block = be.Uint64(p[at:])
		}
		// The first tag behind those that are struck out.
		i, _ := slices.BinarySearchFunc(r.tags, block, func(t tag, block uint64) int {
			if t.block == block && t.transaction&tagNumber <= rec.transaction {
				return -1
			}
			return cmp.Compare(t.block, block)
		})
		for i--; i >= 0 && r.tags[i].block == block && r.tags[i].transaction&tagRevoked == 0; i-- {
			r.tags[i].transaction |= tagRevoked
		}
	}
	return nil
}

// verify checks what would be copied home: that it has a place on the volume, and
// its checksum.
func (r *recovery) verify() error {
	for i := range r.tags {
		if t := &r.tags[i]; t.transaction&tagRevoked == 0 && t.block >= r.volume {
			return refusedf("block %d of the journal belongs to block %d of %d", t.log, t.block, r.volume)
		}
	}
	if !r.j.checksummed() {
		return nil
	}
	for _, rec := range r.records {
		if rec.revoke {
			continue
		}
		p, err := r.j.block(rec.log)
		if err != nil {
			return err
		}
		at := rec.log
		for _, t := range r.j.tags(p) {
			if at, err = r.j.next(at, 1); err != nil {
				return err
			}
			if r.revoked(t.block, rec.transaction) {
				continue
			}
			if p, err = r.j.block(at); err != nil {
				return err
			}
			if !r.j.dataOK(p, t.checksum, r.j.sequence+rec.transaction) {
				return refusedf("transaction %d: block %d of the journal, for block %d: checksum is wrong",
					r.j.sequence+rec.transaction, at, t.block)
			}
		}
	}
	return nil
}

// revoked: the tag of block in a transaction is struck out.
func (r *recovery) revoked(block uint64, transaction uint32) bool {
	i, found := slices.BinarySearchFunc(r.tags, block, func(t tag, block uint64) int {
		if t.block == block {
			return cmp.Compare(t.transaction&tagNumber, transaction)
		}
		return cmp.Compare(t.block, block)
	})
	return found && r.tags[i].transaction&tagRevoked != 0
}

// dataOK verifies a block of the log with the checksum in its tag
// (jbd2_block_tag_csum_verify).
func (j *journal) dataOK(p []byte, want, sequence uint32) bool {
	var q [4]byte
	binary.BigEndian.PutUint32(q[:], sequence)
	crc := crc32c(crc32c(j.seed, q[:]), p)
	if j.has(journalIncompatCsumV3) {
		return crc == want
	}
	return crc&0xFFFF == want
}

// compact keeps the newest tag of each block.
func (r *recovery) compact() {
	kept := r.tags[:0]
	for _, t := range r.tags {
		if t.transaction&tagRevoked != 0 {
			continue
		}
		if n := len(kept); n > 0 && kept[n-1].block == t.block {
			kept[n-1] = t
		} else {
			kept = append(kept, t)
		}
	}
	r.tags = slices.Clip(slices.Clone(kept))
	r.replaced = len(r.tags)
	r.records = nil
}
