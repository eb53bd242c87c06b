package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/keelblock/keelblock/tools/rig"
)

// lab is one run.
type lab struct {
	ctx    context.Context
	r      *rig.Rig
	image  image
	accel  string
	update bool // write test data
	began  time.Time
	guests []*guest
}

// point is a recovery point and what it must hold.
type point struct {
	rig.Point
	atLeast int // entries that the guest had reported before the backup began
}

// Waits. A boot takes 5 s with KVM, 40 s with TCG on a quiet machine.
const (
	bootLimit  = 5 * time.Minute
	entryLimit = 2 * time.Minute
)

// live is the scenario of a guest that lives on a disk of ours.
func (l *lab) live() error {
	for _, args := range [][]string{
		{"serve", "-d"},
		{"disk", "create", "vm0", "--size", fmt.Sprint(l.image.sizeBytes)},
		{"machine", "create", "vm", "--disk", "vm0"},
	} {
		if _, err := l.keelblock(args...); err != nil {
			return err
		}
	}
	if _, err := l.command("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", l.image.disk, l.r.URI("vm0")); err != nil {
		return err
	}
	l.say("the guest's root disk is on the export vm0")

	g, err := l.boot(l.drive("vm0"), "write back")
	if err != nil {
		return err
	}
	if err := l.entries(g, 5); err != nil {
		return err
	}
	first, err := l.backup(g)
	if err != nil {
		return err
	}
	if err := l.entries(g, g.newest()+8); err != nil {
		return fmt.Errorf("after the first backup: %w", err)
	}
	second, err := l.backup(g)
	if err != nil {
		return err
	}
	switch {
	case second.Tracking != "enabled":
		return fmt.Errorf("the second backup's tracking is %q, want enabled", second.Tracking)
	case second.ReadBytes*4 > first.ReadBytes:
		return fmt.Errorf("the second backup read %d bytes, the first %d: that is no increment", second.ReadBytes, first.ReadBytes)
	}
	if err := l.entries(g, g.newest()+5); err != nil {
		return fmt.Errorf("after the second backup: %w", err)
	}
	if err := l.restart(g); err != nil {
		return err
	}
	beyond := g.newest()
	g.cutPower()
	l.say("the guest's power was cut at entry %d", beyond)

	if err := l.bootRestored(second, beyond); err != nil {
		return fmt.Errorf("boot the restored disk: %w", err)
	}
	if err := l.bootExport(first, second.atLeast+20); err != nil {
		return fmt.Errorf("boot the exported point: %w", err)
	}
	if err := l.check(second); err != nil {
		return err
	}
	if _, err := l.keelblock("recovery-point", "verify", "--all"); err != nil {
		return err
	}
	l.say("every block of every point verified; all is well")
	return nil
}

// boot starts a guest and waits until it writes.
func (l *lab) boot(drive, wantCache string) (*guest, error) {
	g, err := boot(l.ctx, l.image, l.accel, drive, "", l.r.Dir)
	if err != nil {
		return nil, err
	}
	l.guests = append(l.guests, g)
	if err := g.await(l.ctx, "the guest's service", bootLimit, func() bool { return g.found >= 0 }); err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	l.say("the guest is up; it found %d entries; its disk's cache is %q", g.found, g.cache)
	if wantCache != "" && g.cache != wantCache {
		return nil, fmt.Errorf("the guest's kernel takes the disk for %q: its fsync would not reach us", g.cache)
	}
	if g.bad != 0 {
		return nil, fmt.Errorf("entry %d is damaged", g.bad)
	}
	return g, nil
}

// entries waits until the guest has reported entry n.
func (l *lab) entries(g *guest, n int) error {
	return g.await(l.ctx, fmt.Sprintf("entry %d", n), entryLimit, func() bool { return g.synced >= n })
}

// restart stops the daemon under the running guest and starts it again: QEMU connects
// anew and sends again what was not answered, so the guest's writes only wait.
func (l *lab) restart(g *guest) error {
	before := g.newest()
	for _, args := range [][]string{{"stop"}, {"serve", "-d"}} {
		if _, err := l.keelblock(args...); err != nil {
			return err
		}
	}
	if err := l.entries(g, before+5); err != nil {
		return fmt.Errorf("after a restart of the daemon: %w", err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, line := range g.tail {
		if strings.Contains(line, "I/O error") || strings.Contains(line, "EXT4-fs error") {
			return fmt.Errorf("after a restart of the daemon the guest says %q", line)
		}
	}
	l.say("the daemon was stopped and started under the guest, which wrote on from entry %d to %d without an error", before, g.synced)
	return nil
}

func (l *lab) backup(g *guest) (point, error) {
	p := point{atLeast: g.newest()}
	var err error
	if p.Point, err = l.r.Backup(l.ctx, "vm"); err != nil {
		return p, err
	}
	l.say("point %.12s while the guest runs: at least %d entries, freeze %d µs, read %d KiB, changed %d KiB, stored %d KiB, tracking %s",
		p.ID, p.atLeast, p.FreezeMicros, p.ReadBytes>>10, p.ChangedBytes>>10, p.StoredBytes>>10, p.Tracking)
	return p, nil
}

func (l *lab) bootRestored(p point, beyond int) error {
	if _, err := l.keelblock("restore", "disk", p.ID+":vm0", "vm1"); err != nil {
		return err
	}
	g, err := l.boot(l.drive("vm1"), "write back")
	if err != nil {
		return err
	}
	if err := l.holds(g, p, beyond); err != nil {
		return err
	}
	if err := l.entries(g, g.found+2); err != nil {
		return err
	}
	l.say("the restored disk booted and is written again")
	g.cutPower()
	return nil
}

// bootExport boots a point straight from a read-only export; QEMU keeps what the
// guest writes in an overlay.
func (l *lab) bootExport(p point, fewerThan int) error {
	if _, err := l.keelblock("export", p.ID+":vm0", "--as", "old"); err != nil {
		return err
	}
	g, err := l.boot(l.drive("old")+",snapshot=on", "")
	if err != nil {
		return err
	}
	if err := l.holds(g, p, fewerThan); err != nil {
		return err
	}
	if err := l.entries(g, g.found+2); err != nil {
		return err
	}
	l.say("the exported point booted, on an overlay")
	g.cutPower()
	_, err = l.keelblock("unexport", "old")
	return err
}

// holds compares what the guest found with what the point must hold: all that was
// reported before the backup began, and nothing from after it.
func (l *lab) holds(g *guest, p point, fewerThan int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.found < p.atLeast {
		return fmt.Errorf("LOST: %d entries found, %d were on disk before the backup began", g.found, p.atLeast)
	}
	if g.found >= fewerThan {
		return fmt.Errorf("%d entries found, more than the point can hold (%d)", g.found, fewerThan)
	}
	return nil
}

// check lets e2fsck judge the point: the journal replays, then all is clean.
func (l *lab) check(p point) error {
	if _, err := l.keelblock("restore", "file", p.ID+":vm0", "judged.raw"); err != nil {
		return err
	}
	// The partition alone: e2fsck 1.47 loses ?offset= when it opens again after a
	// replay.
	const target = "judged.ext4"
	if _, err := l.command("dd", "if=judged.raw", "of="+target, "bs=1M", fmt.Sprintf("skip=%d", rig.PartitionOffset>>20), "conv=sparse", "status=none"); err != nil {
		return err
	}
	if out, err := l.command("e2fsck", "-fp", target); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 { // 1: the journal was replayed
			return fmt.Errorf("replay the journal: %w\n%s", err, out)
		}
	}
	if _, err := l.command("e2fsck", "-fn", target); err != nil {
		return err
	}
	l.say("e2fsck: the journal replays and the file system is clean")
	return nil
}

// drive is the -drive value for an export.
func (l *lab) drive(export string) string {
	return "if=virtio,format=raw,discard=unmap,file.driver=nbd,file.reconnect-delay=60,file.server.type=unix,file.server.path=" +
		l.r.Socket() + ",file.export=" + export
}

func (l *lab) keelblock(args ...string) (string, error) { return l.r.Keelblock(l.ctx, args...) }

func (l *lab) command(name string, args ...string) (string, error) {
	return l.r.Command(l.ctx, name, args...)
}

// clean ends guests and daemon and removes the folder.
func (l *lab) clean() error {
	for _, g := range l.guests {
		g.cutPower()
	}
	return l.r.Close()
}
