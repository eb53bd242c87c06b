package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/nbd/client"
	"github.com/keelblock/keelblock/tools/rig"
)

// restic is called so: a repository beside everything else, default compression,
// one password, no cache that would stay behind.
func (b *bench) restic(args string) string {
	return "RESTIC_PASSWORD=bench restic --no-cache -q -r repo " + args
}

// backupRows measure the first backup of a disk, a second one after scattered and
// compact changes, and what both store.
func (b *bench) backupRows() error {
	var first, firstCp, ceiling, second, secondCp pairs
	var firstBytes, secondBytes pairs
	for round := range b.rounds {
		if round > 0 {
			if err := b.restart(); err != nil {
				return err
			}
		}
		machine, disk, err := b.freshMachine()
		if err != nil {
			return err
		}
		// The changes go to a copy: the file system in the image stays whole.
		if _, err := b.r.Shell(b.ctx, "rm -rf repo copy work.img && cp --sparse=always disk.img work.img && "+b.restic("init")+" >&2 && sync -f ."); err != nil {
			return err
		}

		ours, err := b.r.Backup(b.ctx, machine)
		if err != nil {
			return err
		}
		restic, err := b.timed(b.restic("backup work.img") + " && sync repo")
		if err != nil {
			return err
		}
		cp, err := b.timed("cp --sparse=always work.img copy && sync copy")
		if err != nil {
			return err
		}
		limit, err := b.ceiling(ours.StoredBytes)
		if err != nil {
			return err
		}
		rate := mbPerSecond(b.allocated, ours.Took)
		first.add(rate, mbPerSecond(b.allocated, restic))
		firstCp.add(rate, mbPerSecond(b.allocated, cp))
		ceiling.add(rate, mbPerSecond(b.allocated, limit))
		resticFirst, err := folderBytes(filepath.Join(b.r.Dir, "repo"))
		if err != nil {
			return err
		}
		vaultFirst, err := folderBytes(filepath.Join(b.r.Data, "vault", "packs"))
		if err != nil {
			return err
		}
		firstBytes.add(float64(vaultFirst)/(1<<20), float64(resticFirst)/(1<<20))

		if err := b.change(disk, uint64(round)); err != nil {
			return err
		}
		oursSecond, err := b.r.Backup(b.ctx, machine)
		if err != nil {
			return err
		}
		if oursSecond.Tracking != "enabled" {
			return fmt.Errorf("the second backup's tracking is %q", oursSecond.Tracking)
		}
		if restic, err = b.timed(b.restic("backup work.img") + " && sync repo"); err != nil {
			return err
		}
		if cp, err = b.timed("cp --sparse=always work.img copy && sync copy"); err != nil {
			return err
		}
		second.add(oursSecond.Took.Seconds(), restic.Seconds())
		secondCp.add(oursSecond.Took.Seconds(), cp.Seconds())
		resticSecond, err := folderBytes(filepath.Join(b.r.Dir, "repo"))
		if err != nil {
			return err
		}
		secondBytes.add(float64(oursSecond.StoredBytes)/(1<<20), float64(resticSecond-resticFirst)/(1<<20))
		if _, err := b.r.Shell(b.ctx, "rm -rf repo copy work.img"); err != nil {
			return err
		}
	}
	what := fmt.Sprintf("GPT + ext4, %s of data in %d files", rig.Size(b.allocated), b.files)
	b.t.add(row{"backup-first-ceiling", mbs(median(ceiling.ours)), mbs(median(ceiling.peer)), ceiling.faster(), 0.9,
		"first `keelblock backup`, " + what + "; against the slower of read + SHA-256 + s2 on all cores, and appending the stored bytes + sync"})
	b.t.add(row{"backup-first-restic", mbs(median(first.ours)), mbs(median(first.peer)), first.faster(), 1,
		"the same against `restic backup` of the image into a new repository (default settings), sync"})
	b.t.add(row{"backup-first-cp", mbs(median(firstCp.ours)), mbs(median(firstCp.peer)), firstCp.faster(), 0,
		"the same against `cp --sparse=always`, sync"})
	b.t.add(row{"backup-first-bytes-restic", mib(median(firstBytes.ours)), mib(median(firstBytes.peer)), firstBytes.smaller(), 0,
		"size of the packs against restic's repository"})
	b.t.add(row{"backup-first-bytes-cp", mib(median(firstBytes.ours)), mib(float64(b.allocated) / (1 << 20)), float64(b.allocated) / (1 << 20) / median(firstBytes.ours), 0,
		"size of the packs against the copy"})
	change := fmt.Sprintf("after %d scattered writes of 4 KiB and one of %s", scatteredWrites, rig.Size(compactBytes))
	b.t.add(row{"backup-second-restic", sec(median(second.ours)), sec(median(second.peer)), second.smaller(), 1,
		"second `keelblock backup` " + change + ", against restic's second"})
	b.t.add(row{"backup-second-cp", sec(median(secondCp.ours)), sec(median(secondCp.peer)), secondCp.smaller(), 0,
		"the same against `cp --sparse=always`, sync"})
	b.t.add(row{"backup-second-bytes-restic", mib(median(secondBytes.ours)), mib(median(secondBytes.peer)), secondBytes.smaller(), 0,
		"stored by the second backup against what restic's repository grew"})
	return b.sizeRow()
}

const (
	scatteredWrites = 1000
	compactBytes    = 16 << 20
)

// change writes the same bytes to the live disk, through NBD, and to work.img:
// grains taken from other places of the image, so that they compress as real
// data does, each marked so that it is new.
func (b *bench) change(disk string, seed uint64) (err error) {
	f, err := os.OpenFile(filepath.Join(b.r.Dir, "work.img"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	rnd := rand.New(rand.NewPCG(seed, 4))
	return b.onDisk(disk, func(d blockdev.Device) error {
		write := func(off, n int64) error {
			buf := make([]byte, n)
			if _, err := f.ReadAt(buf, rnd.Int64N(d.Size()-n)/4096*4096); err != nil {
				return err
			}
			copy(buf, fmt.Sprintf("change %d at %d", seed, off))
			if _, err := f.WriteAt(buf, off); err != nil {
				return err
			}
			_, err := d.WriteAt(buf, off)
			return err
		}
		for range scatteredWrites {
			if err := write(rnd.Int64N(d.Size()/4096)*4096, 4096); err != nil {
				return err
			}
		}
		return write(rnd.Int64N((d.Size()-compactBytes)/4096)*4096, compactBytes)
	})
}

// onDisk calls use with a live disk, over NBD, and flushes it.
func (b *bench) onDisk(disk string, use func(blockdev.Device) error) (err error) {
	d, err := client.Dial(b.ctx, b.r.URI(disk))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	if err := use(d); err != nil {
		return err
	}
	return d.Flush()
}

// sizeRow compares the second backup of a small disk with that of a huge sparse
// one with the same changes: its time must not follow the disk's size.
func (b *bench) sizeRow() error {
	var p pairs
	for _, size := range []string{"4GiB", "4TiB"} {
		name := "s" + strings.ToLower(size)
		if _, err := b.r.Keelblock(b.ctx, "disk", "create", name, "--size", size); err != nil {
			return err
		}
		if _, err := b.r.Keelblock(b.ctx, "machine", "create", "m"+name, "--disk", name); err != nil {
			return err
		}
	}
	fill := func(disk string, seed uint64) error {
		rnd := rand.NewChaCha8([32]byte{byte(seed)})
		return b.onDisk(disk, func(d blockdev.Device) error {
			buf := make([]byte, 4096)
			for range 500 {
				if _, err := rnd.Read(buf); err != nil {
					return err
				}
				if _, err := d.WriteAt(buf, int64(rnd.Uint64()%(1<<20))*4096); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for round := range b.rounds + 1 {
		var took [2]float64
		for i, disk := range []string{"s4tib", "s4gib"} {
			if err := fill(disk, uint64(2*round+i)); err != nil {
				return err
			}
			point, err := b.r.Backup(b.ctx, "m"+disk)
			if err != nil {
				return err
			}
			took[i] = point.Took.Seconds()
		}
		if round > 0 { // the first is the first backup
			p.add(took[0], took[1])
		}
	}
	b.t.add(row{"backup-second-disk-size", sec(median(p.ours)), sec(median(p.peer)), p.smaller(), 0.9,
		"second backup of a 4 TiB disk against one of a 4 GiB disk, 500 scattered writes of 4 KiB each"})
	return nil
}
