package doctor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/appliance/disks"
	"github.com/keelblock/keelblock/appliance/vault"
)

// Result of a check.
type Result string

// The results.
const (
	OK   Result = "ok"
	Warn Result = "warn"
	Fail Result = "fail"
)

// Finding is the result of one check.
type Finding struct {
	Check  string
	Result Result
	Text   string
}

// minFiles is how many open files a daemon with many disks and connections needs.
const minFiles = 8192

// Doctor knows what to look at.
type Doctor struct {
	DataDir, MapDir string
	// DiskReserveBytes and VaultReserveBytes are kept free in DataDir.
	DiskReserveBytes, VaultReserveBytes int64
}

// Check makes all checks.
func (d *Doctor) Check(context.Context) []Finding {
	return []Finding{d.maps(), d.mapSpace(), d.Space(), d.dataDir(), files(), fuse(), clock()}
}

func (d *Doctor) maps() Finding {
	f := Finding{Check: "map directory", Result: OK, Text: d.MapDir + " is on tmpfs: change maps survive a kill of the daemon"}
	if !disks.IsTmpfs(d.MapDir) {
		f.Result, f.Text = Warn, d.MapDir+" is not on tmpfs: after a kill each next backup compares whole disks; give --map-dir a folder of a tmpfs"
	}
	return f
}

func (d *Doctor) mapSpace() Finding {
	f := Finding{Check: "map space", Result: OK}
	s, err := vault.SpaceOf(d.MapDir)
	switch {
	case err != nil:
		return Finding{"map space", Fail, err.Error()}
	case s.Free < 64<<20:
		f.Result = Warn
		f.Text = fmt.Sprintf("%d MiB are free in %s; a map takes up to 32 MiB for each TiB of its disk", s.Free>>20, d.MapDir)
	default:
		f.Text = fmt.Sprintf("%d MiB are free in %s", s.Free>>20, d.MapDir)
	}
	return f
}

// Space checks the free space alone; it is cheap.
func (d *Doctor) Space() Finding {
	s, err := vault.SpaceOf(d.DataDir)
	if err != nil {
		return Finding{"free space", Fail, err.Error()}
	}
	f := Finding{Check: "free space", Result: OK,
		Text: fmt.Sprintf("%d MiB of %d MiB are free in %s; disks leave %d MiB free, the vault %d MiB", s.Free>>20, s.Total>>20,
			d.DataDir, d.DiskReserveBytes>>20, d.VaultReserveBytes>>20)}
	switch {
	case s.Free <= d.DiskReserveBytes:
		f.Result, f.Text = Fail, f.Text+": guests' new writes and backups are refused; free space now"
	case s.Free <= d.VaultReserveBytes:
		f.Result, f.Text = Fail, f.Text+": backups are refused; free space"
	case s.Free < s.Total/10:
		f.Result, f.Text = Warn, f.Text+": less than a tenth is left"
	}
	return f
}

func (d *Doctor) dataDir() Finding {
	st, err := os.Stat(d.DataDir)
	if err != nil {
		return Finding{"data directory", Fail, err.Error()}
	}
	if st.Mode().Perm()&0o007 != 0 {
		return Finding{"data directory", Warn, fmt.Sprintf("%s has mode %04o: others may read disks; chmod 0750", d.DataDir, st.Mode().Perm())}
	}
	return Finding{"data directory", OK, fmt.Sprintf("%s has mode %04o", d.DataDir, st.Mode().Perm())}
}

func files() Finding {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return Finding{"open files", Fail, err.Error()}
	}
	if l.Cur < minFiles {
		return Finding{"open files", Warn, fmt.Sprintf("the limit is %d; with many disks set LimitNOFILE=%d in the unit", l.Cur, minFiles)}
	}
	return Finding{"open files", OK, fmt.Sprintf("the limit is %d", l.Cur)}
}

func fuse() Finding {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return Finding{"fuse", Warn, "there is no /dev/fuse: keelblock mount does not work here; modprobe fuse"}
	}
	if _, err := exec.LookPath("fusermount3"); err != nil {
		return Finding{"fuse", Warn, "fusermount3 is missing: only the superuser can mount; install fuse3"}
	}
	return Finding{"fuse", OK, "/dev/fuse and fusermount3 are there"}
}

// clock: points are named by time, so a clock that nobody disciplines matters.
func clock() Finding {
	now := time.Now()
	if now.Year() < 2025 {
		return Finding{"clock", Fail, fmt.Sprintf("it says %s: points would be named wrongly; set it", now.UTC().Format(time.RFC3339))}
	}
	var tx unix.Timex
	state, err := unix.Adjtimex(&tx)
	if err != nil {
		return Finding{"clock", Warn, "the kernel does not say whether it is synchronised: " + err.Error()}
	}
	const timeError = 5 // TIME_ERROR of linux/timex.h: not synchronised
	if state == timeError {
		return Finding{"clock", Warn, "it is not synchronised; run an NTP client"}
	}
	return Finding{"clock", OK, "it is synchronised"}
}
