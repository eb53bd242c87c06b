package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/keelblock/keelblock/tools/rig"
)

// restoreRows measure a whole disk coming back, as a file and as a disk.
func (b *bench) restoreRows() error {
	machine, disk, err := b.freshMachine()
	if err != nil {
		return err
	}
	if _, err := b.r.Backup(b.ctx, machine); err != nil {
		return err
	}
	var file, live, restic pairs
	if _, err := b.r.Shell(b.ctx, "rm -rf repo && "+b.restic("init")+" >&2 && "+b.restic("backup disk.img")+" && sync"); err != nil {
		return err
	}
	for round := range b.rounds {
		ours, err := b.timed("keelblock restore file " + machine + "@latest:" + disk + " back.raw && sync back.raw")
		if err != nil {
			return err
		}
		if _, err := b.r.Shell(b.ctx, "cmp back.raw disk.img && rm back.raw"); err != nil {
			return err
		}
		cp, err := b.timed("cp --sparse=always disk.img copy && sync copy")
		if err != nil {
			return err
		}
		oursLive, err := b.timed(fmt.Sprintf("keelblock restore disk %s@latest:%s restored%d && sync", machine, disk, round))
		if err != nil {
			return err
		}
		theirs, err := b.timed(b.restic("restore latest --target restic-back") + " && sync")
		if err != nil {
			return err
		}
		if _, err := b.r.Shell(b.ctx, fmt.Sprintf("rm -rf copy restic-back; keelblock disk delete restored%d --yes", round)); err != nil {
			return err
		}
		cpRate := mbPerSecond(b.allocated, cp)
		file.add(mbPerSecond(b.allocated, ours), cpRate)
		live.add(mbPerSecond(b.allocated, oursLive), cpRate)
		restic.add(mbPerSecond(b.allocated, ours), mbPerSecond(b.allocated, theirs))
	}
	what := rig.Size(b.allocated) + " of data"
	b.t.add(row{"restore-file-cp", mbs(median(file.ours)), mbs(median(file.peer)), file.faster(), 0.8,
		"`keelblock restore file` to a raw file, " + what + ", sync; against `cp --sparse=always` of the image, sync"})
	b.t.add(row{"restore-disk-cp", mbs(median(live.ours)), mbs(median(live.peer)), live.faster(), 0.8,
		"`keelblock restore disk` to a new disk, sync; against the same copy"})
	b.t.add(row{"restore-file-restic", mbs(median(restic.ours)), mbs(median(restic.peer)), restic.faster(), 1,
		"`keelblock restore file` against `restic restore`, sync"})
	_, err = b.r.Shell(b.ctx, "rm -rf repo")
	return err
}

// mountRows measure file recovery: how soon files can be seen on a disk of 1 TiB,
// and how fast a large one is read.
func (b *bench) mountRows() error {
	if !rig.FUSE() {
		fmt.Fprintln(os.Stderr, "compare: no FUSE here, so no rows of mount")
		return nil
	}
	var first []float64
	if _, err := b.r.Shell(b.ctx, `truncate -s 1T huge.img
echo 'start=2048, type=linux' | sfdisk -q --label gpt huge.img
mkdir -p seed && echo hello > seed/hello && mke2fs -q -F -t ext4 -E lazy_itable_init=1,lazy_journal_init=1,nodiscard,offset=1048576 -d seed huge.img 1000G
keelblock disk create huge --size 1TiB && keelblock machine create mhuge --disk huge
qemu-img convert -n -f raw -O raw huge.img '`+b.r.URI("huge")+`'
keelblock backup mhuge && rm huge.img`); err != nil {
		return err
	}
	for range b.rounds {
		took, err := b.timed("keelblock mount points --machine mhuge -d && ls points/mhuge/latest/volumes/huge-1/hello")
		if _, umountErr := b.r.Shell(b.ctx, "keelblock umount points"); err == nil {
			err = umountErr
		}
		if err != nil {
			return err
		}
		first = append(first, took.Seconds())
	}
	b.t.add(row{"mount-first-ls-1TiB", sec(median(first)), sec(1), 1 / median(first), 1,
		"`keelblock mount -d` and `ls` of a file on an ext4 of 1 TiB; the peer is the bar of one second"})

	machine, disk, err := b.freshMachine()
	if err != nil {
		return err
	}
	if _, err := b.r.Backup(b.ctx, machine); err != nil {
		return err
	}
	return b.mountReadRow(machine, disk)
}

// mountReadRow reads the large file through our mount and through the kernel's
// loop mount of the image, each freshly mounted.
func (b *bench) mountReadRow(machine, disk string) error {
	loop := filepath.Join(b.r.Dir, "loop")
	if err := os.MkdirAll(loop, 0o700); err != nil {
		return err
	}
	var p pairs
	for range b.rounds {
		if out, err := exec.CommandContext(b.ctx, "mount", "-o", fmt.Sprintf("ro,loop,offset=%d", rig.PartitionOffset), b.image, loop).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "compare: no loop mount here, so no row for reading: %s", out)
			return nil
		}
		kernel, err := b.timed("cat loop/large > /dev/null")
		if _, umountErr := b.r.Command(b.ctx, "umount", loop); err == nil {
			err = umountErr
		}
		if err != nil {
			return err
		}
		if _, err := b.r.Shell(b.ctx, "keelblock mount points --machine "+machine+" -d"); err != nil {
			return err
		}
		var ours time.Duration
		ours, err = b.timed("cat points/" + machine + "/latest/volumes/" + disk + "-1/large > /dev/null")
		if _, umountErr := b.r.Shell(b.ctx, "keelblock umount points"); err == nil {
			err = umountErr
		}
		if err != nil {
			return err
		}
		p.add(mbPerSecond(largeBytes, ours), mbPerSecond(largeBytes, kernel))
	}
	b.t.add(row{"mount-read-loop", mbs(median(p.ours)), mbs(median(p.peer)), p.faster(), 0.5,
		fmt.Sprintf("`cat` of a file of %s through `keelblock mount`, against a loop mount of the image (warm page cache)", rig.Size(largeBytes))})
	return nil
}
