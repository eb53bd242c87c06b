package blockstore

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
)

// Quarantined is a block or node whose record verifies in no copy.
type Quarantined struct {
	Kind   dedupe.Kind
	Digest dedupe.Digest
	Since  time.Time
}

func quarantineKey(kind dedupe.Kind, d dedupe.Digest) []byte {
	return append([]byte{prefixQuarantine, byte(kind)}, d[:]...)
}

// Quarantine remembers, also over a restart, that the record of a block or node is
// damaged everywhere: it is not held, so that the next backup that has the content
// stores it again, which ends the quarantine.
func (s *Store) Quarantine(kind dedupe.Kind, d dedupe.Digest) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	if s.o.ReadOnly {
		return dedupe.ErrReadOnly
	}
	s.suspect.add(entry{kind, d})
	key := quarantineKey(kind, d)
	if val, err := s.index.get(key); val != nil || err != nil {
		return err
	}
	return s.index.update(func(c *change) error {
		return c.set(key, binary.LittleEndian.AppendUint64(nil, uint64(s.o.Now().Unix())))
	})
}

// Release ends a quarantine: the record was read and is good.
func (s *Store) Release(kind dedupe.Kind, d dedupe.Digest) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	if s.o.ReadOnly {
		return dedupe.ErrReadOnly
	}
	s.suspect.clear(entry{kind, d})
	return s.release([]entry{{kind, d}})
}

func (s *Store) release(list []entry) error {
	return s.index.update(func(c *change) error {
		for _, e := range list {
			if err := c.txn.Delete(quarantineKey(e.kind, e.digest)); err != nil {
				return fmt.Errorf("write index: %w", err)
			}
		}
		return nil
	})
}

// Quarantined lists what is in quarantine.
func (s *Store) Quarantined() ([]Quarantined, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	return s.quarantined()
}

func (s *Store) quarantined() ([]Quarantined, error) {
	var list []Quarantined
	err := s.index.scan(prefixQuarantine, func(key, val []byte) error {
		if len(key) != 2+dedupe.DigestSize || len(val) != 8 {
			return fmt.Errorf("index entry of a quarantine %x: %w", key, dedupe.ErrCorrupt)
		}
		list = append(list, Quarantined{Kind: dedupe.Kind(key[1]), Digest: dedupe.Digest(key[2:]),
			Since: time.Unix(int64(binary.LittleEndian.Uint64(val)), 0).UTC()})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list quarantine: %w", err)
	}
	return list, nil
}

// loadQuarantine makes what is in quarantine suspect.
func (s *Store) loadQuarantine() error {
	list, err := s.quarantined()
	for _, q := range list {
		s.suspect.add(entry{q.Kind, q.Digest})
	}
	return err
}

// restored ends the quarantine of what was stored again.
func (s *Store) restored(entries []pack.Entry) error {
	if !s.suspect.some() {
		return nil
	}
	var list []entry
	add := func(kind dedupe.Kind, d dedupe.Digest) {
		if e := (entry{kind, d}); s.suspect.known(e) {
			s.suspect.clear(e)
			list = append(list, e)
		}
	}
	for i := range entries {
		add(entries[i].Kind, entries[i].Digest)
		for _, p := range entries[i].Patches {
			add(dedupe.KindBlock, p.Digest)
		}
	}
	if len(list) == 0 {
		return nil
	}
	return s.release(list)
}
