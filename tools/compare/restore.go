package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

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
	if _, err := b.r.Shell(b.ctx, "rm -rf repo && "+b.restic("init")+" >&2 && "+b.restic("backup disk.img")+" && sync -f ."); err != nil {
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
		oursLive, err := b.timed(fmt.Sprintf("keelblock restore disk %s@latest:%s restored%d && sync -f .", machine, disk, round))
		if err != nil {
			return err
		}
		theirs, err := b.timed(b.restic("restore latest --target restic-back") + " && sync -f .")
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
	return b.mountReadRows(machine, disk)
}

// mountReadRows read the large file through our mount and through the kernel's loop
// mount of the image, each freshly mounted: with all in the page cache that the file
// system is made from, the same file once more, and with nothing there.
func (b *bench) mountReadRows(machine, disk string) error {
	var warm, second, cold pairs
	for range b.rounds {
		kernel, err := b.loopRead(false)
		if err != nil {
			fmt.Fprintf(os.Stderr, "compare: no loop mount here, so no rows for reading: %s\n", err)
			return nil
		}
		ours, err := b.mountRead(machine, disk, false)
		if err != nil {
			return err
		}
		kernelCold, err := b.loopRead(true)
		if err != nil {
			return err
		}
		oursCold, err := b.mountRead(machine, disk, true)
		if err != nil {
			return err
		}
		rate := func(d time.Duration) float64 { return mbPerSecond(largeBytes, d) }
		warm.add(rate(ours.first), rate(kernel.first))
		second.add(rate(ours.second), rate(kernel.second))
		cold.add(rate(oursCold.first), rate(kernelCold.first))
	}
	what := fmt.Sprintf("`cat` of a file of %s through `keelblock mount`, against a loop mount of the image", rig.Size(largeBytes))
	for _, r := range []struct {
		name, how string
		p         *pairs
	}{
		{"mount-read-loop", " (warm page cache)", &warm},
		{"mount-read-second", ", a second time", &second},
		{"mount-read-cold", ", from the disk: image and packs are not in the page cache, the daemon has just started", &cold},
	} {
		b.t.add(row{r.name, mbs(median(r.p.ours)), mbs(median(r.p.peer)), r.p.faster(), 0.5, what + r.how})
	}
	return nil
}

// reads are two reads of one file, one after the other.
type reads struct{ first, second time.Duration }

func (b *bench) readTwice(path string) (r reads, err error) {
	if r.first, err = b.timed("cat " + path + " > /dev/null"); err == nil {
		r.second, err = b.timed("cat " + path + " > /dev/null")
	}
	return r, err
}

// loopRead reads the large file through a loop mount.
func (b *bench) loopRead(cold bool) (r reads, err error) {
	loop := filepath.Join(b.r.Dir, "loop")
	if err := os.MkdirAll(loop, 0o700); err != nil {
		return r, err
	}
	if out, err := exec.CommandContext(b.ctx, "mount", "-o", fmt.Sprintf("ro,loop,offset=%d", rig.PartitionOffset), b.image, loop).CombinedOutput(); err != nil {
		return r, fmt.Errorf("%w: %s", err, out)
	}
	defer func() {
		if _, umountErr := b.r.Command(b.ctx, "umount", loop); err == nil {
			err = umountErr
		}
	}()
	if cold {
		if err := dropCache(b.image); err != nil {
			return r, err
		}
	}
	return b.readTwice("loop/large")
}

// mountRead reads the large file through our mount.
func (b *bench) mountRead(machine, disk string, cold bool) (r reads, err error) {
	if cold { // its memory holds blocks too
		if _, err := b.r.Shell(b.ctx, "keelblock stop && keelblock serve -d"); err != nil {
			return r, err
		}
	}
	if _, err := b.r.Shell(b.ctx, "keelblock mount points --machine "+machine+" -d"); err != nil {
		return r, err
	}
	defer func() {
		if _, umountErr := b.r.Shell(b.ctx, "keelblock umount points"); err == nil {
			err = umountErr
		}
	}()
	if cold {
		packs, err := filepath.Glob(filepath.Join(b.r.Data, "vault", "packs", "*.pack"))
		if err != nil || len(packs) == 0 {
			return r, fmt.Errorf("find the vault's packs: %d, %w", len(packs), err)
		}
		if err := dropCache(packs...); err != nil {
			return r, err
		}
	}
	return b.readTwice("points/" + machine + "/latest/volumes/" + disk + "-1/large")
}

// dropCache makes the next reader of the files go to the disk.
func dropCache(paths ...string) error {
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = f.Sync()
		if err == nil {
			err = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("drop %q from the page cache: %w", path, err)
		}
	}
	return nil
}
