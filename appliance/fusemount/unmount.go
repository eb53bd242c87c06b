package fusemount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNotMounted: nothing of ours is mounted there.
var ErrNotMounted = errors.New("not a keelblock mount")

// Find says whether dir is a mount of ours, by /proc/self/mountinfo alone: asking
// the directory itself could hang or fail when its server died. It returns the path
// as the kernel has it.
func Find(dir string) (path string, found bool, err error) {
	path, err = realPath(dir)
	if err != nil {
		return "", false, err
	}
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", false, err
	}
	// Later lines cover earlier ones.
	for line := range strings.Lines(string(info)) {
		point, fstype, ok := parseMountinfo(line)
		if ok && point == path {
			found = fstype == "fuse."+SourceName
		}
	}
	return path, found, nil
}

// parseMountinfo takes mount point and type from one line; proc(5).
func parseMountinfo(line string) (point, fstype string, ok bool) {
	fields := strings.Fields(line)
	for i, f := range fields {
		if f == "-" && i > 5 && len(fields) > i+1 {
			return unescape(fields[4]), fields[i+1], true
		}
	}
	return "", "", false
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	r := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	return r.Replace(s)
}

// realPath resolves symbolic links without touching the last element when it cannot
// be asked (a mount whose server died answers ENOTCONN).
func realPath(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if p, err := filepath.EvalSymlinks(abs); err == nil {
		return p, nil
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", err
	}
	return filepath.Join(parent, filepath.Base(abs)), nil
}

// Unmount unmounts dir and waits until it is gone from the table of mounts. With lazy
// a mount in use is detached and ends when its last user leaves.
func Unmount(ctx context.Context, dir string, lazy bool) error {
	path, found, err := Find(dir)
	if err != nil {
		return fmt.Errorf("unmount %q: %w", dir, err)
	}
	if !found {
		return fmt.Errorf("unmount %q: %w", dir, ErrNotMounted)
	}
	// A file just closed may be released a moment later.
	err = unmountOnce(ctx, path, false)
	for try := 0; err != nil && try < 5; try++ {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond << try):
		}
		err = unmountOnce(ctx, path, false)
	}
	if err != nil && lazy {
		err = unmountOnce(ctx, path, true)
	}
	for err == nil {
		if _, found, ferr := Find(path); ferr != nil || !found {
			return ferr
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("unmount %q: still mounted: %w", dir, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
	return fmt.Errorf("unmount %q: %w", dir, err)
}

func unmountOnce(ctx context.Context, path string, lazy bool) error {
	if os.Geteuid() == 0 {
		flags := unix.UMOUNT_NOFOLLOW
		if lazy {
			flags |= unix.MNT_DETACH
		}
		return unix.Unmount(path, flags)
	}
	args := []string{"-u", "--", path}
	if lazy {
		args = []string{"-u", "-z", "--", path}
	}
	out, err := exec.CommandContext(ctx, "fusermount3", args...).CombinedOutput()
	if err != nil && len(out) > 0 {
		text := string(bytes.TrimSpace(out))
		if strings.Contains(text, "busy") {
			return unix.EBUSY
		}
		return errors.New(text)
	}
	return err
}
