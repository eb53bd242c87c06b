package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// tour is one run.
type tour struct {
	ctx          context.Context
	c            *console
	bin          string
	dir          string // everything lies below it
	data         string // the daemon's folder
	contentBytes int64

	stage     string // the files that the disk gets
	image     string // the disk as it was poured in
	files     int
	diskBytes int64
	daemonPID int
	mounted   string
	points    []point
	lacksFUSE bool
}

// point is what the tour shows of backup --json.
type point struct {
	ID           string
	FrozenAt     time.Time
	Tracking     string
	ReadBytes    int64
	ChangedBytes int64
	NewBytes     int64
	StoredBytes  int64
	FreezeMicros int64
	took         time.Duration
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
	c.say("Everything happens in %s and is taken away at the end.", t.dir)
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
	t.stage = filepath.Join(t.dir, "files")
	for path, text := range map[string]string{reportPath: goodReport, lostPath: lostText} {
		p := t.stage + path
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			return err
		}
	}
	files, bytes, err := gather(t.ctx, t.stage, t.contentBytes)
	if err != nil {
		return err
	}
	t.files = files + 2
	t.diskBytes = sizeFor(bytes)
	t.image = filepath.Join(t.dir, "disk.img")
	if err := os.WriteFile(t.image, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(t.image, t.diskBytes); err != nil {
		return err
	}
	if _, err := t.sh("echo 'start=2048, type=linux, name=root' | sfdisk -q --label gpt disk.img"); err != nil {
		return err
	}
	blocks := (t.diskBytes - partitionOffset - gptTailBytes) / 1024
	if _, err := t.sh(fmt.Sprintf("mke2fs -q -F -t ext4 -L demo -d files -E offset=%d disk.img %dk", partitionOffset, blocks)); err != nil {
		return err
	}
	c.say("A GPT with one ext4 partition: %d files, %s, on a disk of %s.", t.files, size(bytes), size(t.diskBytes))
	return nil
}

func (t *tour) serve() error {
	t.c.heading("Start the appliance, make a disk and a machine")
	out, err := t.sh("keelblock serve -d")
	if err != nil {
		return err
	}
	t.c.output(out, 3)
	for _, word := range strings.Fields(out) {
		if pid, ok := strings.CutPrefix(word, "pid="); ok {
			t.daemonPID, _ = strconv.Atoi(pid) // stays 0: then only `keelblock stop` ends it
		}
	}
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

func (t *tour) backup() (point, error) {
	start := time.Now()
	out, err := t.sh("keelblock backup web --json")
	if err != nil {
		return point{}, err
	}
	p := point{took: time.Since(start)}
	if err := json.Unmarshal([]byte(out), &p); err != nil {
		return point{}, fmt.Errorf("backup --json printed %q: %w", out, err)
	}
	if p.ID == "" || p.FrozenAt.IsZero() {
		return point{}, fmt.Errorf("backup --json printed no id or time: %q", out)
	}
	t.points = append(t.points, p)
	t.c.say("Recovery point %s: the disk stood still for %d µs, the copy took %.1f s.", p.ID[:12], p.FreezeMicros, p.took.Seconds())
	return p, nil
}

func (t *tour) firstBackup() error {
	t.c.heading("First backup")
	p, err := t.backup()
	if err != nil {
		return err
	}
	t.c.say("Read %s, new in the vault %s, stored after deduplication and compression %s.", size(p.ReadBytes), size(p.NewBytes), size(p.StoredBytes))
	return nil
}

func (t *tour) accident() error {
	t.c.heading("The accident: a report is overwritten, a file deleted, on the live disk")
	if err := os.WriteFile(filepath.Join(t.dir, "bad-report"), []byte(badReport), 0o644); err != nil {
		return err
	}
	script := fmt.Sprintf("rm %s\nwrite bad-report %s\nrm %s\n", reportPath, reportPath, lostPath)
	if err := os.WriteFile(filepath.Join(t.dir, "accident"), []byte(script), 0o600); err != nil {
		return err
	}
	if !haveFUSE() {
		return t.accidentWithoutFUSE()
	}
	t.c.say("debugfs plays the guest: it edits the ext4 behind the NBD export.")
	if err := os.Mkdir(filepath.Join(t.dir, "live"), 0o700); err != nil {
		return err
	}
	// nbdfuse shows the export as the file live/disk while debugfs runs. It is not a
	// daemon: it ends with the unmount, which the trap makes certain.
	_, err := t.sh("nbdfuse live/disk " + uri("root0") + " & trap 'fusermount3 -u live; wait' EXIT\n" +
		"     for i in $(seq 100); do [ -e live/disk ] && break; sleep 0.1; done\n" +
		fmt.Sprintf("     debugfs -w -f accident 'live/disk?offset=%d' 2>&1 && sync live/disk", partitionOffset))
	return err
}

// accidentWithoutFUSE edits a copy and pours the whole copy in.
func (t *tour) accidentWithoutFUSE() error {
	t.lacksFUSE = true
	t.c.say("There is no FUSE here, so debugfs edits a copy, which is then poured in as a whole.")
	if _, err := t.sh("cp --sparse=always disk.img changed.img"); err != nil {
		return err
	}
	if _, err := t.sh(fmt.Sprintf("debugfs -w -f accident 'changed.img?offset=%d' 2>&1", partitionOffset)); err != nil {
		return err
	}
	_, err := t.sh("nbdcopy changed.img " + uri("root0"))
	return err
}

func haveFUSE() bool {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	return f.Close() == nil
}

func (t *tour) secondBackup() error {
	t.c.heading("Second backup: only what changed")
	p, err := t.backup()
	if err != nil {
		return err
	}
	t.c.say("Changed %s of %s, read %s, new in the vault %s, stored %s (tracking: %s).",
		size(p.ChangedBytes), size(t.diskBytes), size(p.ReadBytes), size(p.NewBytes), size(p.StoredBytes), p.Tracking)
	first := t.points[0]
	switch {
	case p.Tracking != "enabled":
		return fmt.Errorf("the second backup did not use the map: tracking is %q", p.Tracking)
	case p.StoredBytes*10 > first.StoredBytes:
		return fmt.Errorf("the second backup stored %s, the first %s: that is no increment", size(p.StoredBytes), size(first.StoredBytes))
	case !t.lacksFUSE && p.ReadBytes*10 > first.ReadBytes:
		return fmt.Errorf("the second backup read %s, the first %s: that is no increment", size(p.ReadBytes), size(first.ReadBytes))
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

// sh shows a command and runs it by bash in the temporary folder. It returns what
// the command printed on standard output; what it printed on standard error is
// part of the error.
func (t *tour) sh(line string) (string, error) {
	t.c.command(line)
	return t.quietly(t.ctx, line)
}

func (t *tour) quietly(ctx context.Context, line string) (string, error) {
	cmd := exec.CommandContext(ctx, "bash", "-c", "set -e -o pipefail; "+line)
	cmd.Dir = t.dir
	cmd.Env = t.commandEnv()
	// The command and what it starts are ended together, gently, on an interrupt.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		first, _, _ := strings.Cut(line, "\n")
		return stdout.String(), fmt.Errorf("%s: %w\n%s%s", first, err, stderr.String(), stdout.String())
	}
	return stdout.String(), nil
}

// clean unmounts, stops the daemon and removes the folder, in this order, and goes
// on where something fails. It may be called twice.
func (t *tour) clean() error {
	if t.dir == "" {
		return nil
	}
	// Not t.ctx: that may be the one that was interrupted.
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	var errs []error
	if t.mounted != "" {
		if _, err := t.quietly(ctx, "keelblock umount "+t.mounted+" || fusermount3 -u "+t.mounted); err != nil {
			errs = append(errs, err)
		}
		t.mounted = ""
	}
	if _, err := os.Stat(filepath.Join(t.data, "run", "api.sock")); err == nil {
		if _, err := t.quietly(ctx, "keelblock stop"); err != nil {
			errs = append(errs, err)
			if t.daemonPID > 1 {
				_ = syscall.Kill(t.daemonPID, syscall.SIGKILL) // it may be gone
			}
		}
	}
	if err := os.RemoveAll(t.dir); err != nil {
		errs = append(errs, err)
	}
	t.dir = ""
	return errors.Join(errs...)
}
