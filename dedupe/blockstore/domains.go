package blockstore

import (
	"fmt"

	"github.com/keelblock/keelblock/dedupe/pack"
)

// Domains reads which key domains a vault has, the first of which new blocks are made in.
// It opens nothing, so it works without a key, beside a process that has the vault open,
// and when the index is damaged.
func Domains(dir string) ([]pack.Domain, error) {
	sb, err := readSuperblock(dir, Options{})
	if err != nil {
		return nil, fmt.Errorf("read the superblock of vault %q: %w", dir, err)
	}
	return sb.Domains, nil
}
