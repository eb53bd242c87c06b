package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/keelblock/keelblock/tools/rig"
)

// Sizes of what the group files measures.
const (
	manyFiles   = 1_000_000
	smallFiles  = 20_000
	gigabyte    = 1 << 30
	filesMemory = 256 << 20 // bytes: the limit of the readers' heap
)

// filesParts are the parts of the group, in the order in which they run.
var filesParts = []string{"many", "large", "small"}

// filesRows measure file recovery as a user has it, on three disks: one of 1 TiB with a
// million files, one with a file of 1 GiB, one with 20 000 small files. Peers are the
// kernel's loop mount of the same image, and borg mount of it.
func (b *bench) filesRows(pick string) error {
	chosen, err := regexp.Compile(pick)
	if err != nil {
		return err
	}
	if !rig.FUSE() || os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "compare: the rows of files need root, loop devices and FUSE")
		return nil
	}
	for _, part := range filesParts {
		if !chosen.MatchString(part) {
			continue
		}
		run := map[string]func() error{"many": b.manyFilesRows, "large": b.largeFileRows, "small": b.smallFilesRows}[part]
		if err := run(); err != nil {
			return fmt.Errorf("%s: %w", part, err)
		}
	}
	return nil
}

// filled makes an image with ext4, fills it through the kernel, imports it as a disk of
// a machine of that name and backs it up. The image stays.
func (b *bench) filled(name string, size int64, mkfs string, fill func(dir string) error) error {
	if _, err := b.r.Shell(b.ctx, fmt.Sprintf("truncate -s %d %s.img && mke2fs -q -F -t ext4 -E lazy_itable_init=1,lazy_journal_init=1,nodiscard %s %s.img && mkdir -p loop && mount -o loop,noatime,noinit_itable %s.img loop",
		size, name, mkfs, name, name)); err != nil {
		return err
	}
	err := fill(filepath.Join(b.r.Dir, "loop"))
	if _, umountErr := b.r.Shell(b.ctx, "umount loop"); err == nil {
		err = umountErr
	}
	if err != nil {
		return err
	}
	_, err = b.r.Shell(b.ctx, fmt.Sprintf("keelblock disk create %s --size %d && keelblock machine create m%s --disk %s && qemu-img convert -n -f raw -O raw %s.img '%s' && keelblock backup m%s",
		name, size, name, name, name, b.r.URI(name), name))
	return err
}

// makeFiles makes n files of some bytes, 1 000 in a folder.
func makeFiles(dir string, n, bytes int) error {
	content := []byte(strings.Repeat("keelblock ", bytes/10+1))[:bytes]
	for i := range n {
		sub := fmt.Sprintf("%s/d%04d", dir, i/1000)
		if i%1000 == 0 {
			if err := os.Mkdir(sub, 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(fmt.Sprintf("%s/file-%07d", sub, i), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// withLoop runs do while the image is mounted by the kernel, freshly.
func (b *bench) withLoop(name string, do func() error) (err error) {
	if _, err := b.r.Shell(b.ctx, "mount -o ro,loop "+name+".img loop"); err != nil {
		return err
	}
	defer func() {
		if _, umountErr := b.r.Shell(b.ctx, "umount loop"); err == nil {
			err = umountErr
		}
	}()
	return do()
}

// withMount runs do while the machine's points are mounted by us, freshly.
func (b *bench) withMount(name string, do func() error) (err error) {
	if _, err := b.r.Shell(b.ctx, "keelblock mount points --machine m"+name+" -d"); err != nil {
		return err
	}
	defer func() {
		if _, umountErr := b.r.Shell(b.ctx, "keelblock umount points"); err == nil {
			err = umountErr
		}
	}()
	return do()
}

// timedIn is the time of a line inside a mount that is made for it.
func (b *bench) timedIn(mount func(string, func() error) error, name, line string) (took time.Duration, err error) {
	err = mount(name, func() error {
		took, err = b.timed(line)
		return err
	})
	return took, err
}

// peak runs our binary and gives its time and the most memory it had, in bytes.
func (b *bench) peak(args ...string) (time.Duration, int64, error) {
	cmd := exec.CommandContext(b.ctx, b.r.Bin, args...)
	cmd.Dir = b.r.Dir
	cmd.Env = append(os.Environ(), "KEELBLOCK_DATA="+b.r.Data)
	start := time.Now()
	out, err := cmd.Output()
	took := time.Since(start)
	if err != nil {
		return 0, 0, fmt.Errorf("keelblock %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return 0, 0, fmt.Errorf("keelblock %s: no account of its memory", args[0])
	}
	return took, usage.Maxrss << 10, nil
}

// manyFilesRows measure a disk of 1 TiB with a million files.
func (b *bench) manyFilesRows() error {
	const name = "many"
	err := b.filled(name, 1<<40, fmt.Sprintf("-N %d", 4*manyFiles), func(dir string) error { return makeFiles(dir, manyFiles, 0) })
	if err != nil {
		return err
	}
	var first, without []float64
	var findMount, findFiles pairs
	var most int64
	for range b.rounds {
		took, err := b.timed("keelblock mount points --machine m" + name + " -d && ls points/mmany/latest/volumes/many-0/d0500 > list && test $(wc -l < list) = 1000")
		if _, umountErr := b.r.Shell(b.ctx, "keelblock umount points"); err == nil {
			err = umountErr
		}
		if err != nil {
			return err
		}
		first = append(first, took.Seconds())
		if took, err = b.timed("keelblock files ls -1 mmany@latest:/d0500 > list && test $(wc -l < list) = 1000"); err != nil {
			return err
		}
		without = append(without, took.Seconds())
		kernel, err := b.timedIn(b.withLoop, name, "test $(find loop -name 'file-*' | wc -l) = 1000000")
		if err != nil {
			return err
		}
		mounted, err := b.timedIn(b.withMount, name, "test $(find points/mmany/latest/volumes/many-0 -name 'file-*' | wc -l) = 1000000")
		if err != nil {
			return err
		}
		took, memory, err := b.peak("files", "find", "mmany@latest:/", "file-*")
		if err != nil {
			return err
		}
		most = max(most, memory)
		findMount.add(1/mounted.Seconds(), 1/kernel.Seconds())
		findFiles.add(1/took.Seconds(), 1/kernel.Seconds())
	}
	what := "on an ext4 of 1 TiB with a million files"
	b.t.add(row{"files-mount-first-ls", sec(median(first)), sec(1), 1 / median(first), 1, "`keelblock mount -d` and `ls` of 1 000 entries " + what + "; the peer is the bar of one second"})
	b.t.add(row{"files-ls", sec(median(without)), sec(1), 1 / median(without), 1, "`keelblock files ls` of 1 000 entries " + what + ", without a mount; the same bar"})
	b.t.add(row{"files-mount-find", sec(1 / median(findMount.ours)), sec(1 / median(findMount.peer)), findMount.faster(), 0.3, "`find -name` through `keelblock mount` " + what + ", against a loop mount of the image"})
	b.t.add(row{"files-find", sec(1 / median(findFiles.ours)), sec(1 / median(findFiles.peer)), findFiles.faster(), 0.3, "`keelblock files find` " + what + ", against `find` in a loop mount"})
	b.t.add(row{"files-find-memory", mib(float64(most) / (1 << 20)), mib(filesMemory >> 20), filesMemory / float64(most), 1, "the most memory of `keelblock files find`; the peer is the limit of its heap"})
	_, err = b.r.Shell(b.ctx, "rm "+name+".img")
	return err
}

// largeFileRows measure a file of 1 GiB, by our mount, files cp, the kernel and borg.
func (b *bench) largeFileRows() error {
	const name = "large"
	err := b.filled(name, 1500<<20, "", func(dir string) error { return writeNoise(filepath.Join(dir, "large"), gigabyte) })
	if err != nil {
		return err
	}
	const borg = "BORG_BASE_DIR=$PWD/borg.base BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes borg"
	if _, err := b.r.Shell(b.ctx, borg+" init -e none borg && "+borg+" create --chunker-params fixed,65536 borg::one "+name+".img && mkdir -p borgmount"); err != nil {
		return err
	}
	var kernel, theirs, copied pairs
	var most int64
	for range b.rounds {
		loop, err := b.timedIn(b.withLoop, name, "cat loop/large > /dev/null")
		if err != nil {
			return err
		}
		ours, err := b.timedIn(b.withMount, name, "cat points/mlarge/latest/volumes/large-0/large > /dev/null")
		if err != nil {
			return err
		}
		// Of borg the image is read, as its mount knows no guests: the first GiB of it.
		if _, err := b.r.Shell(b.ctx, borg+" mount borg::one borgmount"); err != nil {
			return err
		}
		borgTook, err := b.timed("head -c 1G borgmount/" + name + ".img > /dev/null")
		if _, umountErr := b.r.Shell(b.ctx, borg+" umount borgmount"); err == nil {
			err = umountErr
		}
		if err != nil {
			return err
		}
		cp, err := b.timedIn(b.withLoop, name, "cp -a loop/large theirs && sync theirs && rm theirs")
		if err != nil {
			return err
		}
		start := time.Now()
		_, memory, err := b.peak("files", "cp", "mlarge@latest:/large", "mine")
		if err != nil {
			return err
		}
		if _, err := b.r.Shell(b.ctx, "sync mine"); err != nil {
			return err
		}
		took := time.Since(start)
		if err := b.withLoop(name, func() error {
			_, err := b.r.Shell(b.ctx, "cmp mine loop/large && rm mine")
			return err
		}); err != nil {
			return err
		}
		most = max(most, memory)
		rate := func(d time.Duration) float64 { return mbPerSecond(gigabyte, d) }
		kernel.add(rate(ours), rate(loop))
		theirs.add(rate(ours), rate(borgTook))
		copied.add(rate(took), rate(cp))
	}
	b.t.add(row{"files-read-loop", mbs(median(kernel.ours)), mbs(median(kernel.peer)), kernel.faster(), 0.5, "`cat` of a file of 1 GiB through `keelblock mount`, against a loop mount of the image (warm page cache)"})
	b.t.add(row{"files-read-borg", mbs(median(theirs.ours)), mbs(median(theirs.peer)), theirs.faster(), 2, "the same, against 1 GiB of the image through `borg mount`"})
	b.t.add(row{"files-cp-large", mbs(median(copied.ours)), mbs(median(copied.peer)), copied.faster(), 0.5, "`keelblock files cp` of that file, sync; against `cp -a` from the loop mount, sync"})
	b.t.add(row{"files-cp-memory", mib(float64(most) / (1 << 20)), mib(filesMemory >> 20), filesMemory / float64(most), 1, "the most memory of that `files cp`; the peer is the limit of its heap"})
	_, err = b.r.Shell(b.ctx, "rm -rf borg borg.base "+name+".img")
	return err
}

// smallFilesRows measure 20 000 files of 4 KiB.
func (b *bench) smallFilesRows() error {
	const name = "small"
	err := b.filled(name, 512<<20, "", func(dir string) error { return makeFiles(dir, smallFiles, 4096) })
	if err != nil {
		return err
	}
	var direct, mounted, archive pairs
	var most int64
	for range b.rounds {
		kernel, err := b.timedIn(b.withLoop, name, "cp -a loop theirs")
		if err != nil {
			return err
		}
		took, memory, err := b.peak("files", "cp", "msmall@latest:/", "mine")
		if err != nil {
			return err
		}
		most = max(most, memory)
		if _, err := b.r.Shell(b.ctx, "diff -rq theirs mine && rm -rf mine"); err != nil {
			return err
		}
		through, err := b.timedIn(b.withMount, name, "cp -a points/msmall/latest/volumes/small-0 mine")
		if err != nil {
			return err
		}
		tarTook, err := b.timed("keelblock files tar msmall@latest:/ > mine.tar")
		if err != nil {
			return err
		}
		kernelTar, err := b.timedIn(b.withLoop, name, "tar -C loop --format=pax --xattrs -cf theirs.tar .")
		if err != nil {
			return err
		}
		if _, err := b.r.Shell(b.ctx, "rm -rf mine theirs mine.tar theirs.tar"); err != nil {
			return err
		}
		rate := func(d time.Duration) float64 { return smallFiles / d.Seconds() }
		direct.add(rate(took), rate(kernel))
		mounted.add(rate(through), rate(kernel))
		archive.add(rate(tarTook), rate(kernelTar))
	}
	perSecond := func(v []float64) string { return fmt.Sprintf("%.0f/s", median(v)) }
	b.t.add(row{"files-cp-small", perSecond(direct.ours), perSecond(direct.peer), direct.faster(), 0, "`keelblock files cp` of 20 000 files of 4 KiB, against `cp -a` from a loop mount of the image"})
	b.t.add(row{"files-cp-small-mount", perSecond(mounted.ours), perSecond(mounted.peer), mounted.faster(), 0, "`cp -a` of them through `keelblock mount`, against the same"})
	b.t.add(row{"files-tar-small", perSecond(archive.ours), perSecond(archive.peer), archive.faster(), 0, "`keelblock files tar` of them, against `tar` in the loop mount"})
	b.t.add(row{"files-cp-small-memory", mib(float64(most) / (1 << 20)), mib(filesMemory >> 20), filesMemory / float64(most), 1, "the most memory of that `files cp`; the peer is the limit of its heap"})
	_, err = b.r.Shell(b.ctx, "rm "+name+".img")
	return err
}
