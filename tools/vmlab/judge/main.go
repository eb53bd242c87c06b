// Command judge runs in vmlab's guest: it fills a file system that the guest's kernel
// has mounted, and says what that kernel then shows.
//
//	judge fill DIR [ENTRIES]
//	judge manifest DIR
//
// The manifest goes to standard output in the form of the golden files of the readers
// below blockdev/filesystem, without inode numbers: those that the kernel makes up for
// FAT and exFAT differ from mount to mount.
package main

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "judge:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) >= 2 && args[0] == "fill":
		c := fstest.WindowsContent{}
		if len(args) > 2 {
			n, err := strconv.Atoi(args[2])
			if err != nil {
				return err
			}
			c = fstest.WindowsContent{Entries: n, GrowSteps: n / 10, BigBytes: n * 4 << 10}
		}
		unix.Umask(0)
		return fstest.FillWindows(args[1], c)
	case len(args) == 2 && args[0] == "manifest":
		m, err := fstest.FromDir(args[1])
		if err != nil {
			return err
		}
		if err := forgetRootTimes(m, args[1]); err != nil {
			return err
		}
		_, err = os.Stdout.WriteString(m.Text(fstest.FieldInode))
		return err
	}
	return fmt.Errorf("usage: judge fill DIR [ENTRIES] | judge manifest DIR")
}

// forgetRootTimes puts the times of exFAT's root, which the kernel takes from the clock at
// each mount, to 1970, as for vfat.
func forgetRootTimes(m fstest.Manifest, dir string) error {
	const exfatMagic = 0x2011BAB0
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if s.Type == exfatMagic {
		e, epoch := m[""], time.Unix(0, 0)
		e.Attr.Atime, e.Attr.Mtime, e.Attr.Ctime, e.Attr.Birth = epoch, epoch, epoch, epoch
		m[""] = e
	}
	return nil
}
