package blockstore

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/dedupe"
)

const (
	// indexRoom is kept free for Badger whatever the options say: it writes tables
	// and its log through memory maps, where a full file system is a SIGBUS and no
	// error. It needs room for its memtable's table and for one compaction.
	indexRoom = 16 << 20
	// maxIndexRoom bounds what is kept for a large index: one compaction touches
	// some tables of one level, never all of it.
	maxIndexRoom = 512 << 20
)

// freeBytes of the file system of dir, for an unprivileged process.
func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("free space of %q: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// checkRoom returns dedupe.ErrNoSpace unless bytes can be taken with reserve left.
func checkRoom(dir string, reserve, bytes int64) error {
	free, err := freeBytes(dir)
	if err != nil {
		return err
	}
	return roomIn(dir, free, reserve, bytes)
}

func roomIn(dir string, free, reserve, bytes int64) error {
	if free-bytes < reserve {
		return fmt.Errorf("%d bytes free at %q, %d needed with a reserve of %d: %w", free, dir, bytes, reserve, dedupe.ErrNoSpace)
	}
	return nil
}

// checkRoom asks for bytes for the index. Of the reserve it may use all: what was
// stored must be committed.
func (s *Store) checkRoom(bytes int64) error {
	free, err := freeBytes(s.dir)
	if err != nil {
		return err
	}
	s.counts.freeBytes.Store(free)
	return roomIn(s.dir, free, 0, bytes)
}

// checkPackRoom asks for bytes for a pack: the reserve and the index's room stay.
func (s *Store) checkPackRoom(bytes int64) error {
	free, err := freeBytes(s.dir)
	if err != nil {
		return err
	}
	s.counts.freeBytes.Store(free)
	if err := roomIn(s.dir, free, max(s.o.ReserveBytes, s.indexRoomNow()), bytes); err != nil {
		return err
	}
	return s.packs.CheckRoom(s.o.ReserveBytes, bytes)
}

// checkSpare asks for bytes for what lets space be freed: a note, or what a collection
// writes. It may use the reserve, and what Relieve gives up; keep stays free for the index.
func (s *Store) checkSpare(bytes, keep int64) error {
	s.relieve(bytes + keep)
	if err := s.checkRoom(bytes + keep); err != nil {
		return err
	}
	return s.packs.CheckRoom(0, bytes)
}

// relieve has the Store's user give up what it keeps for the time when less than bytes are
// free.
func (s *Store) relieve(bytes int64) {
	if s.o.Relieve == nil {
		return
	}
	if free, err := freeBytes(s.dir); err == nil && free < bytes {
		s.o.Relieve(bytes)
	}
}

// indexRoomNow grows with the index: an entry at rest is 68 bytes, and one more copy
// of a part of them exists while Badger compacts.
func (s *Store) indexRoomNow() int64 {
	s.index.mu.Lock()
	entries := s.index.m.blocks + s.index.m.nodes
	s.index.mu.Unlock()
	return indexRoom + min(entries*entryBytes/2, maxIndexRoom)
}

// closeRoom is what closing the index may write: at most its memtables.
func (s *Store) closeRoom() int64 { return s.indexRoomNow() / 2 }
