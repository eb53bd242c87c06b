package ext

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Fast commits, fs/ext4/fast_commit.h. Behind the log the journal has an area in which
// the kernel notes small changes since the last full commit, as tags: a number, the
// length of its value, and the value, all little-endian. A fast commit ends with a
// tail that has a checksum; the first one begins with a head.
const (
	fcAddRange = 1
	fcDelRange = 2
	fcCreate   = 3
	fcLink     = 4
	fcUnlink   = 5
	fcInodeTag = 6
	fcPad      = 7
	fcTail     = 8
	fcHead     = 9

	fcTagSize    = 4
	fcDentrySize = 8 // of a value without its name
)

// fcTagCount is what a scan found.
type fcTagCount struct{ tags, commits int }

// fcTagSeen is one tag: its value and all of its bytes.
type fcTagSeen struct {
	tag        uint16
	value, all []byte
}

// fcNext is the tag at p[at:]; ok is false when none begins there, and so the block
// ends. A tag that reaches out of the block has the number 0.
func fcNext(p []byte, at int) (t fcTagSeen, next int, ok bool) {
	if at > len(p)-fcTagSize {
		return t, 0, false
	}
	le := binary.LittleEndian
	end := at + fcTagSize + int(le.Uint16(p[at+2:]))
	if end > len(p) {
		return t, end, true
	}
	return fcTagSeen{le.Uint16(p[at:]), p[at+fcTagSize : end], p[at:end]}, end, true
}

// fcLengthOK follows ext4_fc_value_len_isvalid.
func (f *FS) fcLengthOK(t fcTagSeen) bool {
	n := len(t.value)
	switch t.tag {
	case fcAddRange:
		return n == 16
	case fcDelRange:
		return n == 12
	case fcCreate, fcLink, fcUnlink:
		return n > fcDentrySize && n <= fcDentrySize+maxNameLen
	case fcInodeTag:
		return n >= 4+goodOldInodeSize && n <= 4+int(f.super.inodeSize)
	case fcPad:
		return true
	case fcTail:
		return n >= 8
	case fcHead:
		return n == 8
	}
	return false
}

// firstFastCommit is the block where the area of fast commits begins. The one before
// it is not used.
func (j *journal) firstFastCommit() uint32 { return j.last + 1 }

// scanFastCommits counts the tags of complete fast commits that build on the log as
// it was replayed, up to before transaction end (ext4_fc_replay_scan). An error says
// why nothing of the area can be used although something is there: the kernel does
// not mount such a file system, which it may itself have left behind when the power
// was cut in the middle of the first fast commit.
func (j *journal) scanFastCommits(end uint32) (fcTagCount, error) {
	s := fcScan{j: j, end: end}
	for b := j.firstFastCommit(); b < j.maxBlocks; b++ {
		p, err := j.block(b)
		if err != nil {
			return fcTagCount{}, err
		}
		if b == j.firstFastCommit() && binary.LittleEndian.Uint16(p) != fcHead {
			break
		}
		more, err := s.block(p)
		if err != nil {
			return fcTagCount{}, err
		}
		if !more {
			break
		}
	}
	return s.done, nil
}

// fcScan is a scan under way.
type fcScan struct {
	j       *journal
	end     uint32
	tags    int // so far, in commits that may not be complete
	commits int
	crc     uint32
	done    fcTagCount
}

// stop ends the scan at something that is not valid: quietly behind a complete fast
// commit.
func (s *fcScan) stop(format string, args ...any) (bool, error) {
	if s.done.tags > 0 {
		return false, nil
	}
	return false, fmt.Errorf(format, args...)
}

// block scans one block; more is false at the end.
func (s *fcScan) block(p []byte) (more bool, err error) {
	le := binary.LittleEndian
	for at := 0; ; {
		t, next, ok := fcNext(p, at)
		if !ok {
			return true, nil
		}
		if !s.j.fs.fcLengthOK(t) {
			return s.stop("the first of them is not complete")
		}
		at = next
		s.tags++
		switch t.tag {
		case fcHead:
			if features := le.Uint32(t.value); features != 0 {
				return false, fmt.Errorf("they have the features %#x, which are not known", features)
			}
			if le.Uint32(t.value[4:]) != s.end {
				return false, nil // left from an earlier transaction
			}
			s.crc = crc32c(s.crc, t.all)
		case fcTail:
			s.crc = crc32c(s.crc, t.all[:fcTagSize+4])
			if le.Uint32(t.value) != s.end || le.Uint32(t.value[4:]) != s.crc {
				return s.stop("the checksum of the first of them is wrong")
			}
			s.crc = 0
			s.commits++
			s.done = fcTagCount{s.tags, s.commits}
		default:
			s.crc = crc32c(s.crc, t.all)
		}
	}
}

// fastCommits is what fast commits changed in a file system. It changes no blocks, as
// a replay by the kernel would, but what inodes, block maps and directories say.
//
// In four things it is not what the kernel's replay leaves behind (Linux 6.18). The
// kernel sets the times of changed directories, and the change time of linked files,
// to the time of the replay: here directories keep those of the last full commit. It
// does not count a new directory in its parent, and gives it one link: here both are
// right. It computes anew how many blocks a file has, since its trees may have become
// different ones: here that number is the one that was logged.
type fastCommits struct {
	inodes map[uint32]*fcInode
	dirs   map[uint32]*fcDir
}

// fcInode is an inode as fast commits left it.
type fcInode struct {
	raw    []byte
	parsed *inode    // once all is replayed
	ranges []fcRange // in the order of the log, then as resolveRanges leaves them
}

// fcDir are the changes of a directory: name to inode, 0 for a name that is gone.
type fcDir struct {
	entries map[string]uint32
	// fresh: the directory itself was made by a fast commit. Nothing on disk is read.
	fresh  bool
	parent uint32 // of a fresh one
	added  []fcEntry
}

// fcEntry is a name of a directory that is not on disk.
type fcEntry struct {
	name string
	dirent
}

func (c *fastCommits) inode(n uint32) *inode {
	if c == nil || c.inodes[n] == nil {
		return nil
	}
	return c.inodes[n].parsed
}

func (c *fastCommits) dir(n uint32) *fcDir {
	if c == nil {
		return nil
	}
	return c.dirs[n]
}

// errFastCommit is wrapped by what keeps a fast commit from being replayed exactly.
var errFastCommit = errors.New("cannot be replayed")

// fcBudget bounds the memory of a replay, in bytes. The kernel's area is 1 MiB.
const fcBudget = 32 << 20

// fcReplay is a replay under way. Inodes are read through f, whose fast commits are c.
type fcReplay struct {
	f *FS
	c *fastCommits
	// logged are the directories whose inodes stand in this fast commit, with the
	// number of links that they had at its end.
	logged map[uint32]bool
	budget int
}

// replayFastCommits replays count tags into f. When it returns an error f is as
// before.
func (f *FS) replayFastCommits(j *journal, count fcTagCount) (err error) {
	f.fast = &fastCommits{inodes: make(map[uint32]*fcInode), dirs: make(map[uint32]*fcDir)}
	defer func() {
		if err != nil {
			f.fast = nil
		}
	}()
	r := &fcReplay{f: f, c: f.fast, logged: make(map[uint32]bool), budget: fcBudget}
	for b := j.firstFastCommit(); b < j.maxBlocks && count.tags > 0; b++ {
		p, err := j.block(b)
		if err != nil {
			return err
		}
		for at := 0; count.tags > 0; count.tags-- {
			t, next, ok := fcNext(p, at)
			if !ok {
				break
			}
			if err := r.apply(t); err != nil {
				return err
			}
			at = next
		}
	}
	return r.finish()
}

// apply replays one tag (ext4_fc_replay).
func (r *fcReplay) apply(t fcTagSeen) error {
	le := binary.LittleEndian
	if r.budget -= len(t.all) + 128; r.budget < 0 {
		return fmt.Errorf("fast commits of more than %d MiB: %w", fcBudget>>20, errFastCommit)
	}
	switch t.tag {
	case fcInodeTag:
		return r.inode(le.Uint32(t.value), t.value[4:])
	case fcAddRange:
		start, length, unwritten := decodeExtent(t.value[4:])
		g := fcRange{first: uint64(le.Uint32(t.value[4:])), blocks: length, kind: runData, block: start}
		if unwritten {
			g.kind = runUnwritten
		}
		return r.setRange(le.Uint32(t.value), g)
	case fcDelRange:
		return r.setRange(le.Uint32(t.value), fcRange{first: uint64(le.Uint32(t.value[4:])), blocks: uint64(le.Uint32(t.value[8:])), kind: runHole})
	case fcCreate, fcLink, fcUnlink:
		parent, n, name := le.Uint32(t.value), le.Uint32(t.value[4:]), string(t.value[fcDentrySize:])
		switch t.tag {
		case fcCreate:
			return r.create(parent, n, name)
		case fcLink:
			return r.link(parent, n, name)
		}
		return r.unlink(parent, n, name)
	case fcTail:
		clear(r.logged)
	}
	return nil
}

// known is the changed inode n if it is one that can be used, as ext4_iget requires;
// it is copied from disk when no tag has changed it yet. nil when there is none.
func (r *fcReplay) known(n uint32) (*fcInode, error) {
	if c := r.c.inodes[n]; c != nil {
		if c.nlink() == 0 {
			return nil, nil
		}
		return c, nil
	}
	if n != rootInode && n < r.f.super.firstInode {
		return nil, nil
	}
	in, err := r.f.inode(n)
	if err != nil {
		return nil, r.absent(n, err)
	}
	if r.budget -= len(in.raw) + 256; r.budget < 0 {
		return nil, fmt.Errorf("fast commits of more than %d MiB: %w", fcBudget>>20, errFastCommit)
	}
	c := &fcInode{raw: append([]byte(nil), in.raw...)}
	r.c.inodes[n] = c
	return c, nil
}
