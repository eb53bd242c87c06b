package hostdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

var (
	// ErrNoDriver: the kernel has no nbd driver, or it is not loaded.
	ErrNoDriver = errors.New("the kernel has no nbd driver loaded")
	// ErrNotPermitted: the process lacks CAP_SYS_ADMIN.
	ErrNotPermitted = errors.New("attaching a block device needs root (CAP_SYS_ADMIN)")
	// ErrNotDevice: the path does not name an nbd device.
	ErrNotDevice = errors.New("not an nbd device")
	// ErrBusy: the device is connected to something else.
	ErrBusy = errors.New("the device is in use")
	// ErrHeld: a file system, a volume manager or swap holds the device.
	ErrHeld = errors.New("the device is mounted or held")
	// ErrNoConnection: requests wait, so nothing can be written out.
	ErrNoConnection = errors.New("the device has no connection to the disk now")
	// ErrNoResize: this kernel does not change the size of a connected device.
	ErrNoResize = errors.New("the kernel did not take the new size")
	// ErrTooOld: the kernel does not keep who a device belongs to.
	ErrTooOld = errors.New("the kernel is older than 5.14 and cannot give a device back to a later process")
)

// MaxIndex is the largest number of a device that this package uses; the driver's own
// limit depends on how many partitions it makes room for.
const MaxIndex = 4095

var devicePath = regexp.MustCompile(`^/dev/nbd(0|[1-9][0-9]{0,3})$`)

// ParsePath returns the number of the device that a path names: 7 for /dev/nbd7. It
// need not exist, since the driver makes devices on demand.
func ParsePath(path string) (int, error) {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	m := devicePath.FindStringSubmatch(path)
	if m == nil {
		return 0, fmt.Errorf("%s: %w", path, ErrNotDevice)
	}
	index, err := strconv.Atoi(m[1])
	if err != nil || index > MaxIndex {
		return 0, fmt.Errorf("%s: %w: the last one is /dev/nbd%d", path, ErrNotDevice, MaxIndex)
	}
	switch info, err := os.Stat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return 0, fmt.Errorf("look at the device: %w", err)
	case info.Mode()&fs.ModeDevice == 0 || info.Mode()&fs.ModeCharDevice != 0:
		return 0, fmt.Errorf("%s: %w", path, ErrNotDevice)
	}
	return index, nil
}

// host is where the kernel shows its devices.
type host struct {
	sys, dev, mounts string // /sys/block, /dev, /proc/self/mounts
}

// status of a device.
type status struct {
	configured bool
	pid        string // of the process that connected it
	backend    string
	sizeBytes  int64
}

func (h host) path(index int) string { return fmt.Sprintf("%s/nbd%d", h.dev, index) }

func (h host) attribute(index int, name string) string {
	b, err := os.ReadFile(fmt.Sprintf("%s/nbd%d/%s", h.sys, index, name))
	if err != nil {
		return "" // the device, or the attribute, is not there now
	}
	return strings.TrimSpace(string(b))
}

// status of a device that may not exist.
func (h host) status(index int) status {
	s := status{pid: h.attribute(index, "pid"), backend: h.attribute(index, "backend")}
	s.configured = s.pid != ""
	sectors, err := strconv.ParseInt(h.attribute(index, "size"), 10, 64)
	if err == nil {
		s.sizeBytes = sectors * 512
	}
	return s
}

// user says who has a device connected.
func (h host) user(s status) string {
	if s.backend != "" {
		return fmt.Sprintf("connected to %q by process %s", s.backend, s.pid)
	}
	name, err := os.ReadFile("/proc/" + s.pid + "/comm")
	if err != nil {
		return "connected by process " + s.pid + ", which has ended"
	}
	return fmt.Sprintf("connected by process %s (%s)", s.pid, strings.TrimSpace(string(name)))
}

// holders are the mount points, and the devices above it, that keep a device from
// being taken away.
func (h host) holders(index int) []string {
	var out []string
	name := fmt.Sprintf("nbd%d", index)
	mine := func(device string) bool {
		rest, ok := strings.CutPrefix(device, h.dev+"/"+name)
		return ok && (rest == "" || rest[0] == 'p')
	}
	mounts, err := os.ReadFile(h.mounts)
	if err == nil {
		for line := range strings.Lines(string(mounts)) {
			if f := strings.Fields(line); len(f) >= 2 && mine(f[0]) {
				out = append(out, f[0]+" is mounted on "+f[1])
			}
		}
	}
	for _, pattern := range []string{"/holders/*", "/" + name + "p*/holders/*"} {
		above, err := filepath.Glob(h.sys + "/" + name + pattern)
		if err != nil {
			continue // the pattern is constant and sound
		}
		for _, a := range above {
			out = append(out, filepath.Base(a)+" is built on it")
		}
	}
	return out
}

// claim opens a device so that nothing can mount it, and writes out what is cached.
// The device is not there, or cannot be opened: release is harmless.
func (h host) claim(index int) (release func() error, err error) {
	fd, err := unix.Open(h.path(index), unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	switch {
	case err == unix.EBUSY:
		by := h.holders(index)
		if len(by) == 0 {
			return nil, ErrHeld
		}
		return nil, fmt.Errorf("%w: %s", ErrHeld, strings.Join(by, ", "))
	case err != nil:
		return func() error { return nil }, nil
	}
	if err := unix.Fsync(fd); err != nil {
		return nil, errors.Join(fmt.Errorf("write out what is cached of %s: %w", h.path(index), err), unix.Close(fd))
	}
	return func() error { return unix.Close(fd) }, nil
}
