package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/keelblock/keelblock/tools/rig"
)

// browse mounts all points and copies the files of the story out of both.
func (t *tour) browse() error {
	c := t.c
	c.heading("Mount both points, copy the file out of each")
	if t.lacksFUSE {
		c.say("Skipped: no FUSE on this machine.")
		return nil
	}
	t.mounted = "points"
	start := time.Now()
	if _, err := t.sh("keelblock mount points -d"); err != nil {
		return err
	}
	out, err := t.sh("ls points/web")
	if err != nil {
		return err
	}
	c.say("The first ls came %.2f s after the mount command.", time.Since(start).Seconds())
	c.output(out, 6)
	times := slices.DeleteFunc(strings.Fields(out), func(name string) bool { return !strings.HasSuffix(name, "Z") })
	if len(times) != 2 {
		return fmt.Errorf("the mount lists %q below web, want two times", times)
	}
	slices.Sort(times) // RFC 3339 in UTC: the order of time

	before, after := "points/web/"+times[0]+"/volumes/root0-1", "points/web/"+times[1]+"/volumes/root0-1"
	if _, err := t.sh("cp " + before + reportPath + " report.before"); err != nil {
		return err
	}
	if _, err := t.sh("cp " + after + reportPath + " report.after"); err != nil {
		return err
	}
	for name, want := range map[string]string{"report.before": goodReport, "report.after": badReport} {
		got, err := os.ReadFile(filepath.Join(t.r.Dir, name))
		if err != nil {
			return err
		}
		if string(got) != want {
			return fmt.Errorf("%s holds %q, want %q", name, got, want)
		}
	}
	c.proved("the first point has the good report, the second the bad one")
	if _, err := os.Lstat(filepath.Join(t.r.Dir, before, lostPath)); err != nil {
		return fmt.Errorf("deleted file in the first point: %w", err)
	}
	if _, err := os.Lstat(filepath.Join(t.r.Dir, after, lostPath)); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("deleted file in the second point: %v, want none", err)
	}
	c.proved("the deleted file is in the first point, and gone from the second")

	n, bytes, err := t.compareTree(filepath.Join(t.r.Dir, before))
	if err != nil {
		return err
	}
	c.proved("all %d files of the first point, %s, equal those that went in", n, rig.Size(bytes))
	if _, err := t.sh("keelblock umount points"); err != nil {
		return err
	}
	t.mounted = ""
	return nil
}

// compareTree compares every staged file with what the mount shows.
func (t *tour) compareTree(mounted string) (files int, total int64, err error) {
	err = filepath.WalkDir(t.stage, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if err := t.ctx.Err(); err != nil {
			return err
		}
		rel, err := filepath.Rel(t.stage, path)
		if err != nil {
			return err
		}
		other := filepath.Join(mounted, rel)
		files++
		if d.Type()&fs.ModeSymlink != 0 {
			want, err := os.Readlink(path)
			if err != nil {
				return err
			}
			if got, err := os.Readlink(other); err != nil || got != want {
				return fmt.Errorf("%s: link to %q (%v), want %q", other, got, err, want)
			}
			return nil
		}
		want, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		got, err := os.ReadFile(other)
		if err != nil {
			return err
		}
		total += int64(len(got))
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%s differs from what went in", other)
		}
		return nil
	})
	return files, total, err
}

// restore brings back the disk, whole, in two ways.
func (t *tour) restore() error {
	c := t.c
	c.heading("Restore the whole disk")
	start := time.Now()
	if _, err := t.sh("keelblock restore disk web@latest root0-restored"); err != nil {
		return err
	}
	c.say("%s came back in %.1f s.", rig.Size(t.diskBytes), time.Since(start).Seconds())
	if _, err := t.sh("qemu-img compare -f raw -F raw " + uri("root0") + " " + uri("root0-restored")); err != nil {
		return err
	}
	c.proved("the restored disk equals the live one, bit for bit")

	c.say("And the disk as it was before the accident, as an image:")
	if _, err := t.sh("keelblock restore file " + t.points[0].ID[:16] + ":root0 before.raw"); err != nil {
		return err
	}
	if _, err := t.sh("cmp before.raw disk.img"); err != nil {
		return err
	}
	if _, err := t.sh(fmt.Sprintf("e2fsck -fn 'before.raw?offset=%d' 2>&1", rig.PartitionOffset)); err != nil {
		return err
	}
	c.proved("it equals the image that was poured in, and e2fsck finds it clean")
	return nil
}
