package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/tools/rig"
)

const (
	scatteredBytes = 32 << 20 // of writes of 4 KiB each, in places of their own
	sequentialRun  = 64 << 20
)

// peer is a program that keeps deduplicated copies of a file, with its repository in
// the folder that bears its name.
type peer struct {
	name                         string
	init, backup, restore, check string
	prune                        string // keeps only the newest
}

// peers are called as their manuals have it for an image of a disk, without compression
// or caching that ours does not have: each has its default compression.
var peers = []peer{
	{name: "restic",
		init:    "RESTIC_PASSWORD=bench restic --no-cache -q -r restic init",
		backup:  "RESTIC_PASSWORD=bench restic --no-cache -q -r restic backup work.img",
		restore: "RESTIC_PASSWORD=bench restic --no-cache -q -r restic restore latest --target back",
		check:   "RESTIC_PASSWORD=bench restic --no-cache -q -r restic check --read-data",
		prune:   "RESTIC_PASSWORD=bench restic --no-cache -q -r restic forget --keep-last 1 --prune"},
	{name: "borg",
		init:    "BORG_BASE_DIR=$PWD/borg.base borg init -e none borg",
		backup:  "BORG_BASE_DIR=$PWD/borg.base borg create --chunker-params fixed,65536 borg::$(date +%s%N) work.img",
		restore: "mkdir -p back && cd back && BORG_BASE_DIR=$PWD/../borg.base borg extract --sparse ../borg::$(BORG_BASE_DIR=$PWD/../borg.base borg list --short --last 1 ../borg)",
		check:   "BORG_BASE_DIR=$PWD/borg.base borg check --verify-data borg",
		prune:   "BORG_BASE_DIR=$PWD/borg.base borg prune --keep-last 1 borg && BORG_BASE_DIR=$PWD/borg.base borg compact borg"},
}

// best is the best of the peers in one round.
type best struct{ v float64 }

// least takes v when it is less, and reports whether it is.
func (b *best) least(v float64) bool {
	if b.v == 0 || v < b.v {
		b.v = v
		return true
	}
	return false
}

// vaultParts are the parts of the group, in the order in which they run.
var vaultParts = []string{"life", "patches", "locations", "index"}

// vaultRows measure the parts that the pattern names.
func (b *bench) vaultRows(pick string) error {
	chosen, err := regexp.Compile(pick)
	if err != nil {
		return err
	}
	for _, part := range vaultParts {
		if !chosen.MatchString(part) {
			continue
		}
		run := map[string]func() error{"life": b.lifeRows, "patches": b.patchRows, "locations": b.locationRows, "index": b.indexRows}[part]
		if err := run(); err != nil {
			return fmt.Errorf("%s: %w", part, err)
		}
	}
	return nil
}

// lifeRows measure the life of a vault beside those of the field's repositories: a first
// backup, one after one grain in a hundred has changed, one after scattered random
// changes, one after a run of changes, restore, verification, and the collection of all
// but the newest.
func (b *bench) lifeRows() error {
	steps := map[string]*pairs{}
	add := func(name string, ours, peer float64) {
		if steps[name] == nil {
			steps[name] = new(pairs)
		}
		steps[name].add(ours, peer)
	}
	for round := range b.rounds {
		if round > 0 {
			if err := b.restart(); err != nil {
				return err
			}
		}
		if err := b.vaultRound(uint64(round), add); err != nil {
			return err
		}
	}
	what := fmt.Sprintf("%s of data", rig.Size(b.allocated))
	rates := func(name string, goal float64, text string) {
		p := steps[name]
		b.t.add(row{name, mbs(median(p.ours)), mbs(median(p.peer)), p.faster(), goal, text})
	}
	seconds := func(name string, goal float64, text string) {
		p := steps[name]
		b.t.add(row{name, sec(median(p.ours)), sec(median(p.peer)), p.smaller(), goal, text})
	}
	sizes := func(name string, goal float64, text string) {
		p := steps[name]
		b.t.add(row{name, mib(median(p.ours)), mib(median(p.peer)), p.smaller(), goal, text})
	}
	rates("vault-first-ceiling", 0.9, "first `keelblock backup` of "+what+", encrypted, against the slower of read + SHA-256 + s2 on all cores, and appending the stored bytes + sync")
	seconds("vault-first", 1.4, "the same against the faster of restic and borg (fixed chunks of 64 KiB, not encrypted), sync")
	sizes("vault-first-bytes", 1/1.06, "what the packs then take on disk, against the repository of that faster peer")
	sizes("vault-first-bytes-least", 0, "the same against the smaller repository")
	second := "the next after 1 % of the data changed in writes of 4 KiB from elsewhere in the image"
	seconds("vault-second", 2, second+", against the faster")
	seconds("vault-second-plain", 0, "the same against reading the image once (`cat`, page cache)")
	sizes("vault-second-read", 0, "bytes of the disk that it read, against all that a peer without a list reads: the data")
	sizes("vault-second-bytes", 0, "bytes that it added to the packs, against the smaller growth of a repository; the new grains are some of the image's, each with a mark, so they compress as its data does")
	changes := fmt.Sprintf("%s in writes of 4 KiB of random bytes, scattered", rig.Size(scatteredBytes))
	seconds("vault-scattered", 4, "the next after "+changes+", against the faster")
	sizes("vault-scattered-bytes", 1/1.1, "what it added to the packs, against the bytes that changed")
	sizes("vault-scattered-peers", 0, "the same against the smaller growth of a repository")
	seconds("vault-sequential", 2, fmt.Sprintf("the next after a run of %s, against the faster", rig.Size(sequentialRun)))
	seconds("vault-scattered-ratio", 1/1.5, fmt.Sprintf("a backup of %s scattered against one of as many in one run", rig.Size(scatteredBytes)))
	seconds("vault-restore", 1, "`keelblock restore file` of the newest point to a raw file, against the faster peer's restore, sync")
	rates("vault-restore-cp", 0.8, "the same against `cp --sparse=always` of the image, sync")
	rates("vault-verify", 0, "`keelblock recovery-point verify --all` of its points, each block once, against the faster check of all data: rates of the disk's data")
	seconds("vault-collect", 1, "`keelblock vault gc` when all points but the newest are purged, against the faster prune")
	sizes("vault-collect-written", 0, "bytes that the daemon wrote meanwhile (/proc/PID/io), index included, against those that the collection freed, less what it copied to free them (vault status)")
	sizes("vault-collect-bytes", 1/1.2, "what the packs then take, against what the newest point needs")
	return nil
}

// vaultRound is one round. work.img is what the peers back up; the live disk has the same
// content.
func (b *bench) vaultRound(seed uint64, add func(name string, ours, peer float64)) error {
	machine, disk, err := b.freshMachine()
	if err != nil {
		return err
	}
	clean := "rm -rf restic borg borg.base back back.raw copy work.img"
	if err := b.shell(clean + " && cp --sparse=always disk.img work.img"); err != nil {
		return err
	}
	for _, p := range peers {
		if err := b.shell(p.init + " >&2"); err != nil {
			return err
		}
	}
	r := vaultLife{b, machine, disk, seed, add}
	err = b.shell("sync -f .")
	for _, step := range []func() error{r.first, r.second, r.scattered, r.after} {
		if err == nil {
			err = step()
		}
	}
	return errors.Join(err, b.shell(clean))
}

// vaultLife is one disk through all steps.
type vaultLife struct {
	*bench
	machine, disk string
	seed          uint64
	add           func(name string, ours, peer float64)
}

const mebi = float64(1 << 20)

// backup backs up by all sides. It returns what the repository of the fastest peer grew
// by, and what the one grew by that grew least, in MiB.
func (l *vaultLife) backup(name string) (ours rig.Point, ofFastest, least float64, err error) {
	if err = l.shell("sync -f ."); err != nil {
		return ours, 0, 0, err
	}
	if ours, err = l.r.Backup(l.ctx, l.machine); err != nil {
		return ours, 0, 0, err
	}
	var fastest, smallest best
	for _, p := range peers {
		dir := filepath.Join(l.r.Dir, p.name)
		before, err := folderBytes(dir)
		if err != nil {
			return ours, 0, 0, err
		}
		took, err := l.timed(p.backup + " && sync " + p.name)
		if err != nil {
			return ours, 0, 0, err
		}
		after, err := folderBytes(dir)
		if err != nil {
			return ours, 0, 0, err
		}
		grew := float64(after-before) / mebi
		if fastest.least(took.Seconds()) {
			ofFastest = grew
		}
		smallest.least(grew)
	}
	l.add(name, ours.Took.Seconds(), fastest.v)
	return ours, ofFastest, smallest.v, nil
}

func (l *vaultLife) first() error {
	ours, ofFastest, least, err := l.backup("vault-first")
	if err != nil {
		return err
	}
	packs, err := l.packBytes()
	if err != nil {
		return err
	}
	l.add("vault-first-bytes", packs, ofFastest)
	l.add("vault-first-bytes-least", packs, least)
	limit, err := l.ceiling(ours.StoredBytes)
	if err != nil {
		return err
	}
	l.add("vault-first-ceiling", mbPerSecond(l.allocated, ours.Took), mbPerSecond(l.allocated, limit))
	return nil
}

func (l *vaultLife) second() error {
	if err := l.scatterFromImage(l.allocated / 100); err != nil {
		return err
	}
	ours, _, least, err := l.backup("vault-second")
	if err != nil {
		return err
	}
	if ours.Tracking != "enabled" {
		return fmt.Errorf("the second backup's tracking is %q", ours.Tracking)
	}
	plain, err := l.timed("cat work.img > /dev/null")
	if err != nil {
		return err
	}
	l.add("vault-second-plain", ours.Took.Seconds(), plain.Seconds())
	l.add("vault-second-read", float64(ours.ReadBytes)/mebi, float64(l.allocated)/mebi)
	l.add("vault-second-bytes", float64(ours.StoredBytes)/mebi, least)
	return nil
}

func (l *vaultLife) scattered() error {
	if err := l.scatter(l.disk, l.seed, scatteredBytes, 4096); err != nil {
		return err
	}
	scattered, _, least, err := l.backup("vault-scattered")
	if err != nil {
		return err
	}
	l.add("vault-scattered-bytes", float64(scattered.StoredBytes)/mebi, scatteredBytes/mebi)
	l.add("vault-scattered-peers", float64(scattered.StoredBytes)/mebi, least)

	if err := l.scatter(l.disk, l.seed+100, sequentialRun, sequentialRun); err != nil {
		return err
	}
	if _, _, _, err := l.backup("vault-sequential"); err != nil {
		return err
	}
	// The same bytes, scattered and in a run, ours alone.
	var took [2]float64
	for i, piece := range []int64{4096, scatteredBytes} {
		if err := l.scatter(l.disk, l.seed+200+uint64(i), scatteredBytes, piece); err != nil {
			return err
		}
		p, err := l.r.Backup(l.ctx, l.machine)
		if err != nil {
			return err
		}
		took[i] = p.Took.Seconds()
	}
	l.add("vault-scattered-ratio", took[0], took[1])
	return nil
}

// after measures what is done with points: restored, verified, collected.
func (l *vaultLife) after() error {
	if err := l.shell("sync -f ."); err != nil {
		return err
	}
	ours, theirs, err := l.against("keelblock restore file "+l.machine+"@latest:"+l.disk+" back.raw && sync back.raw",
		func(p peer) string { return "(" + p.restore + ") && sync back" })
	if err != nil {
		return err
	}
	l.add("vault-restore", ours, theirs)
	if err := l.shell("cmp back.raw work.img && rm back.raw && sync -f ."); err != nil {
		return err
	}
	cp, err := l.timed("cp --sparse=always work.img copy && sync copy")
	if err != nil {
		return err
	}
	data, err := allocatedBytes(filepath.Join(l.r.Dir, "copy"))
	if err != nil {
		return err
	}
	l.add("vault-restore-cp", float64(data)/1e6/ours, mbPerSecond(data, cp))

	if err := l.shell("rm copy"); err != nil {
		return err
	}
	ours, theirs, err = l.against("keelblock recovery-point verify --all", func(p peer) string { return p.check })
	if err != nil {
		return err
	}
	l.add("vault-verify", float64(data)/1e6/ours, float64(data)/1e6/theirs)
	return l.collect()
}

// against times our line and the fastest of theirs.
func (l *vaultLife) against(ours string, theirs func(peer) string) (our, their float64, err error) {
	took, err := l.timed(ours)
	if err != nil {
		return 0, 0, err
	}
	var fastest best
	for _, p := range peers {
		theirTook, err := l.timed(theirs(p))
		if err = errors.Join(err, l.shell("rm -rf back")); err != nil {
			return 0, 0, err
		}
		fastest.least(theirTook.Seconds())
	}
	return took.Seconds(), fastest.v, nil
}

// collect purges all points but the newest and frees what only they needed.
func (l *vaultLife) collect() error {
	out, err := l.r.Keelblock(l.ctx, "recovery-point", "list", l.machine, "--json")
	if err != nil {
		return err
	}
	var points []struct{ ID string }
	if err := json.Unmarshal([]byte(out), &points); err != nil {
		return fmt.Errorf("list the points: %w", err)
	}
	for _, p := range points[:max(len(points)-1, 0)] {
		if _, err := l.r.Keelblock(l.ctx, "recovery-point", "delete", p.ID, "--purge", "--yes"); err != nil {
			return err
		}
	}
	written, err := l.daemonWrote()
	if err != nil {
		return err
	}
	ours, theirs, err := l.against("keelblock vault gc", func(p peer) string { return p.prune })
	if err != nil {
		return err
	}
	l.add("vault-collect", ours, theirs)
	now, err := l.daemonWrote()
	if err != nil {
		return err
	}
	packs, err := l.packBytes()
	if err != nil {
		return err
	}
	freed, err := l.r.FreedBytes(l.ctx)
	if err != nil {
		return err
	}
	l.add("vault-collect-written", float64(now-written)/mebi, float64(freed)/mebi)
	live, err := l.r.LiveBytes(l.ctx)
	if err != nil {
		return err
	}
	l.add("vault-collect-bytes", packs, float64(live)/mebi)
	return nil
}

// daemonWrote is what the daemon has had written to disk so far, in bytes.
func (b *bench) daemonWrote() (n int64, err error) {
	pid, err := b.r.Shell(b.ctx, "fuser data/lock 2>/dev/null || true")
	if err != nil {
		return 0, err
	}
	text, err := os.ReadFile(filepath.Join("/proc", strings.TrimSpace(pid), "io"))
	if err != nil {
		return 0, fmt.Errorf("the daemon's counters: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "write_bytes: "); ok {
			return strconv.ParseInt(strings.TrimSpace(value), 10, 64)
		}
	}
	return 0, errors.New("the kernel does not count what the daemon writes")
}

func (b *bench) shell(line string) error {
	_, err := b.r.Shell(b.ctx, line)
	return err
}

// packBytes is what the packs take, in MiB.
func (b *bench) packBytes() (float64, error) {
	n, err := folderBytes(filepath.Join(b.r.Data, "vault", "packs"))
	return float64(n) / (1 << 20), err
}

// scatter writes bytes of random content to the live disk and to work.img, in pieces of
// the size given, each in a place of its own.
func (b *bench) scatter(disk string, seed uint64, bytes, piece int64) (err error) {
	f, err := os.OpenFile(filepath.Join(b.r.Dir, "work.img"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	src := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	rnd := rand.New(src)
	return b.onDisk(disk, func(d blockdev.Device) error {
		buf := make([]byte, piece)
		places := rnd.Perm(int(d.Size() / piece))
		for i := range bytes / piece {
			if _, err := src.Read(buf); err != nil {
				return err
			}
			off := int64(places[i]) * piece
			if _, err := f.WriteAt(buf, off); err != nil {
				return err
			}
			if _, err := d.WriteAt(buf, off); err != nil {
				return err
			}
		}
		return nil
	})
}

// scatterFromImage changes single grains: each becomes one from elsewhere in the image,
// so that it compresses as data does, with a mark that makes it new.
func (l *vaultLife) scatterFromImage(bytes int64) (err error) {
	f, err := os.OpenFile(filepath.Join(l.r.Dir, "work.img"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	rnd := rand.New(rand.NewPCG(l.seed, 5))
	return l.onDisk(l.disk, func(d blockdev.Device) error {
		buf := make([]byte, 4096)
		for i := range bytes / 4096 {
			off := rnd.Int64N(d.Size()/4096) * 4096
			if _, err := f.ReadAt(buf, rnd.Int64N(d.Size()/4096)*4096); err != nil {
				return err
			}
			copy(buf, fmt.Sprintf("change %d of round %d", i, l.seed))
			if _, err := f.WriteAt(buf, off); err != nil {
				return err
			}
			if _, err := d.WriteAt(buf, off); err != nil {
				return err
			}
		}
		return nil
	})
}
