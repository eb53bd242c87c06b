package blockstore

// WithHook calls fn before each system call that changes or syncs a file, and fails
// the call with its error.
func (o Options) WithHook(fn func(op, name string) error) Options {
	o.hook = fn
	return o
}

// IndexEntry is an index entry for comparison: where a digest is.
type IndexEntry struct {
	Pack         string
	Offset, Size int64
}

// DumpIndex is every block, node, manifest and note of the index; keys begin with
// their prefix.
func (s *Store) DumpIndex() (map[string]IndexEntry, error) {
	got := make(map[string]IndexEntry)
	for _, prefix := range []byte{prefixBlock, prefixNode, prefixManifest, prefixNote} {
		err := s.index.scan(prefix, func(key, val []byte) error {
			p, err := decodePlace(val)
			if err != nil {
				return err
			}
			row, _, err := s.index.pack(p.pack)
			if err != nil {
				return err
			}
			got[string(key)] = IndexEntry{Pack: row.id.String(), Offset: int64(p.offset), Size: p.size()}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return got, nil
}

// PendingPlaces is the number of places that the open batches keep in memory.
func (s *Store) PendingPlaces() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for b := range s.batches {
		for i := range b.shards {
			sh := &b.shards[i]
			sh.mu.Lock()
			n += len(sh.places)
			sh.mu.Unlock()
		}
	}
	return n
}
