package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/keelblock/keelblock/tools/rig"
)

// tour is one run.
type tour struct {
	ctx          context.Context
	c            *console
	r            *rig.Rig
	contentBytes int64

	stage     string // the files that the disk gets
	files     int
	diskBytes int64
	mounted   string
	points    []rig.Point
	lacksFUSE bool
}

// The story: a report is overwritten and a file deleted by mistake.
const (
	reportPath = "/home/ann/report.txt"
	lostPath   = "/home/ann/holiday.txt"
	goodReport = "Quarterly report\n================\nRevenue is up, and so are the disks.\n"
	badReport  = "asdf\n"
	lostText   = "Three weeks at the sea.\n"
)

func (t *tour) give() error {
	c := t.c
	fmt.Fprintln(c.out, c.paint(bold, "Keelblock, a tour: a live disk is protected, and its files come back."))
	c.say("Everything happens in %s and is taken away at the end.", t.r.Dir)
	for _, step := range []func() error{t.makeImage, t.serve, t.fill, t.firstBackup, t.accident, t.secondBackup, t.browse, t.restore} {
		if err := t.ctx.Err(); err != nil {
			return errors.New("interrupted")
		}
		if err := step(); err != nil {
			if t.ctx.Err() != nil {
				return errors.New("interrupted")
			}
			return err
		}
	}
	return t.goodbye()
}

func (t *tour) makeImage() error {
	c := t.c
	c.heading("A disk image with this machine's own files")
	t.stage = filepath.Join(t.r.Dir, "files")
	for path, text := range map[string]string{reportPath: goodReport, lostPath: lostText} {
		p := t.stage + path
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			return err
		}
	}
	files, bytes, err := rig.Gather(t.ctx, t.stage, t.contentBytes)
	if err != nil {
		return err
	}
	t.files = files + 2
	t.diskBytes = rig.DiskSize(bytes)
	if err := t.r.MakeDisk(t.ctx, "disk.img", "files", t.diskBytes); err != nil {
		return err
	}
	c.say("A GPT with one ext4 partition: %d files, %s, on a disk of %s.", t.files, rig.Size(bytes), rig.Size(t.diskBytes))
	return nil
}

func (t *tour) serve() error {
	t.c.heading("Start the appliance, make a disk and a machine")
	out, err := t.sh("keelblock serve -d")
	if err != nil {
		return err
	}
	t.c.output(out, 3)
	if _, err := t.sh(fmt.Sprintf("keelblock disk create root0 --size %dMiB", t.diskBytes>>20)); err != nil {
		return err
	}
	_, err = t.sh("keelblock machine create web --disk root0")
	return err
}

// uri is a live disk's address for clients; commands run in t.dir.
func uri(export string) string { return "'nbd+unix:///" + export + "?socket=data/run/nbd.sock'" }

func (t *tour) fill() error {
	t.c.heading("Pour the image in, as any NBD client would")
	start := time.Now()
	if _, err := t.sh("nbdcopy --connections=4 disk.img " + uri("root0")); err != nil {
		return err
	}
	t.c.say("nbdcopy took %.1f s. What nbdinfo sees:", time.Since(start).Seconds())
	out, err := t.sh("nbdinfo " + uri("root0"))
	if err != nil {
		return err
	}
	t.c.output(pick(out, "export-size", "can_flush", "can_fua", "can_trim", "can_multi_conn", "is_read_only"), 6)
	return nil
}

// pick keeps the lines of text that hold one of the words.
func pick(text string, words ...string) string {
	var out []string
	for _, line := range strings.Split(text, "\n") {
		for _, w := range words {
			if strings.Contains(line, w) {
				out = append(out, strings.TrimSpace(line))
				break
			}
		}
	}
	return strings.Join(out, "\n")
}

func (t *tour) backup() (rig.Point, error) {
	start := time.Now()
	out, err := t.sh("keelblock backup web --json")
	if err != nil {
		return rig.Point{}, err
	}
	p, err := rig.ParsePoint(out, time.Since(start))
	if err != nil {
		return p, err
	}
	t.points = append(t.points, p)
	still := fmt.Sprintf("%d µs", p.FreezeMicros)
	if p.FreezeMicros == 0 {
		still = "less than a microsecond"
	}
	t.c.say("Recovery point %s: the disk stood still for %s, the copy took %.1f s.", p.ID[:12], still, p.Took.Seconds())
	return p, nil
}

func (t *tour) firstBackup() error {
	t.c.heading("First backup")
	p, err := t.backup()
	if err != nil {
		return err
	}
	t.c.say("Read %s, new in the vault %s, stored after deduplication and compression %s.", rig.Size(p.ReadBytes), rig.Size(p.NewBytes), rig.Size(p.StoredBytes))
	return nil
}

func (t *tour) accident() error {
	t.c.heading("The accident: a report is overwritten, a file deleted, on the live disk")
	if err := os.WriteFile(filepath.Join(t.r.Dir, "bad-report"), []byte(badReport), 0o644); err != nil {
		return err
	}
	script := fmt.Sprintf("rm %s\nwrite bad-report %s\nrm %s\n", reportPath, reportPath, lostPath)
	if err := os.WriteFile(filepath.Join(t.r.Dir, "accident"), []byte(script), 0o600); err != nil {
		return err
	}
	if !rig.FUSE() {
		return t.accidentWithoutFUSE()
	}
	t.c.say("debugfs plays the guest: it edits the ext4 behind the NBD export.")
	if err := os.Mkdir(filepath.Join(t.r.Dir, "live"), 0o700); err != nil {
		return err
	}
	// nbdfuse shows the export as the file live/disk while debugfs runs. It is not a
	// daemon: it ends with the unmount, which the trap makes certain.
	_, err := t.sh("nbdfuse live/disk " + uri("root0") + " & trap 'fusermount3 -u live; wait' EXIT\n" +
		"     for i in $(seq 100); do [ -e live/disk ] && break; sleep 0.1; done\n" +
		fmt.Sprintf("     debugfs -w -f accident 'live/disk?offset=%d' 2>&1 && sync live/disk", rig.PartitionOffset))
	return err
}

// accidentWithoutFUSE edits a copy and pours the whole copy in.
func (t *tour) accidentWithoutFUSE() error {
	t.lacksFUSE = true
	t.c.say("There is no FUSE here, so debugfs edits a copy, which is then poured in as a whole.")
	if _, err := t.sh("cp --sparse=always disk.img changed.img"); err != nil {
		return err
	}
	if _, err := t.sh(fmt.Sprintf("debugfs -w -f accident 'changed.img?offset=%d' 2>&1", rig.PartitionOffset)); err != nil {
		return err
	}
	_, err := t.sh("nbdcopy changed.img " + uri("root0"))
	return err
}

func (t *tour) secondBackup() error {
	t.c.heading("Second backup: only what changed")
	p, err := t.backup()
	if err != nil {
		return err
	}
	t.c.say("Changed %s of %s, read %s, new in the vault %s, stored %s (tracking: %s).",
		rig.Size(p.ChangedBytes), rig.Size(t.diskBytes), rig.Size(p.ReadBytes), rig.Size(p.NewBytes), rig.Size(p.StoredBytes), p.Tracking)
	first := t.points[0]
	switch {
	case p.Tracking != "enabled":
		return fmt.Errorf("the second backup did not use the map: tracking is %q", p.Tracking)
	case p.StoredBytes*10 > first.StoredBytes:
		return fmt.Errorf("the second backup stored %s, the first %s: that is no increment", rig.Size(p.StoredBytes), rig.Size(first.StoredBytes))
	case !t.lacksFUSE && p.ReadBytes*10 > first.ReadBytes:
		return fmt.Errorf("the second backup read %s, the first %s: that is no increment", rig.Size(p.ReadBytes), rig.Size(first.ReadBytes))
	}
	t.c.proved("%d times less was stored than for the first", first.StoredBytes/max(p.StoredBytes, 1))
	out, err := t.sh("keelblock recovery-point list web")
	if err != nil {
		return err
	}
	t.c.output(out, 6)
	return nil
}

func (t *tour) goodbye() error {
	c := t.c
	c.heading("The appliance in one screen")
	out, err := t.sh("keelblock status")
	if err != nil {
		return err
	}
	c.output(out, 24)
	if err := t.clean(); err != nil {
		return err
	}
	fmt.Fprintf(c.out, "\n%s\n", c.paint(bold, fmt.Sprintf("Done in %.0f s. Nothing of it is left on this machine. To try yourself:", time.Since(c.began).Seconds())))
	fmt.Fprint(c.out, `
   export PATH=$PWD/bin:$PATH KEELBLOCK_DATA=$HOME/keelblock-try
   keelblock serve -d                                   # your own appliance
   keelblock disk create vm0 --size 20GiB               # a sparse disk
   keelblock disk show vm0                              # its address, for QEMU and others
   keelblock machine create vm --disk vm0
   keelblock backup vm                                  # any time, while the guest runs
   keelblock recovery-point list vm
   keelblock mount $HOME/vm-files -d                    # all points as folders; ls, cp, diff, find
   keelblock umount $HOME/vm-files
   keelblock status; keelblock stop
   keelblock help                                       # and man pages after make install
`)
	if t.lacksFUSE {
		return errNoFUSE
	}
	return nil
}

// sh shows a command and runs it in the temporary folder.
func (t *tour) sh(line string) (string, error) {
	t.c.command(line)
	return t.r.Shell(t.ctx, line)
}

// clean unmounts, stops the daemon and removes the folder. It may be called twice.
func (t *tour) clean() error {
	var err error
	if t.mounted != "" {
		// Not t.ctx: that may be the one that was interrupted.
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		_, err = t.r.Shell(ctx, "keelblock umount "+t.mounted+" || fusermount3 -u "+t.mounted)
		t.mounted = ""
	}
	return errors.Join(err, t.r.Close())
}
