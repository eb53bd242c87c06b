package blockstore

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
	"github.com/keelblock/keelblock/dedupe/packdir"
)

// Create makes an empty vault in the folder dir, which may exist if it is empty.
// The superblock is written last: without it there is no vault.
func Create(dir string, o Options) error {
	if err := o.Validate(); err != nil {
		return fmt.Errorf("create vault %q: %w", dir, err)
	}
	if err := create(dir, o.withDefaults()); err != nil {
		return fmt.Errorf("create vault %q: %w", dir, err)
	}
	return nil
}

func create(dir string, o Options) error {
	domains, err := newDomains(o)
	if err != nil {
		return err
	}
	sb := &pack.Superblock{BlockSize: o.BlockSize, Created: o.Now().UTC(), Domains: domains}
	if sb.BlockSize == 0 {
		sb.BlockSize = dedupe.DefaultBlockSize
	}
	rand.Read(sb.Vault[:]) // never fails
	if sb.Domains[0].ID == (dedupe.DomainID{}) {
		rand.Read(sb.Domains[0].ID[:])
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return noSpace(err)
	}
	if _, err := os.Lstat(filepath.Join(dir, superblockName)); err == nil {
		return fmt.Errorf("there is a vault already: %w", fs.ErrExist)
	}
	lock, err := takeLock(dir, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer releaseLock(lock)
	// What an interrupted Create left has no superblock, so nothing in it counts.
	if err := packdir.Create(dir, o.Locations, packdir.Options{Vault: sb.Vault, Superblock: sb.Encode(), Hook: o.hook, Logger: o.Logger, Now: o.Now}); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(dir, indexName)); err != nil {
		return err
	}
	if err := checkRoom(dir, o.ReserveBytes, indexRoom); err != nil {
		return err
	}
	x, err := newIndex(badgerOptions(filepath.Join(dir, indexName)), sb.Vault, 1)
	if err != nil {
		return fmt.Errorf("make index: %w", noSpace(err))
	}
	if err := x.close(); err != nil {
		return noSpace(err)
	}
	if err := writeFile(filepath.Join(dir, stateName), pack.State{Clean: true, Epoch: 1}.Encode(), o.hook); err != nil {
		return err
	}
	for _, name := range []string{superblockCopyName, superblockName} {
		if err := writeFile(filepath.Join(dir, name), sb.Encode(), o.hook); err != nil {
			return err
		}
	}
	return syncDir(filepath.Dir(dir), o.hook)
}

// takeLock locks a vault for this process and for as long as the file stays open.
func takeLock(dir string, how int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil && how == unix.LOCK_SH { // read-only media
		f, err = os.Open(filepath.Join(dir, lockName))
	}
	if err != nil {
		return nil, noSpace(err)
	}
	if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, dedupe.ErrLocked
		}
		return nil, fmt.Errorf("lock: %w", err)
	}
	return f, nil
}

// releaseLock unlocks before it closes: a child process that is being started at this
// moment has the file open too, until it executes.
func releaseLock(f *os.File) {
	_ = unix.Flock(int(f.Fd()), unix.LOCK_UN) // closing it does the same, later
	_ = f.Close()
}
