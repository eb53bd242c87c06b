package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

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

func (b *best) least(v float64) {
	if b.v == 0 || v < b.v {
		b.v = v
	}
}

// vaultRows measure the life of a vault beside those of the field's repositories: a first
// backup, one after scattered changes, one after a run of changes, restore, verification,
// and the collection of all but the newest.
func (b *bench) vaultRows() error {
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
	seconds := func(name string, goal float64, text string) {
		p := steps[name]
		b.t.add(row{name, sec(median(p.ours)), sec(median(p.peer)), p.smaller(), goal, text})
	}
	sizes := func(name string, goal float64, text string) {
		p := steps[name]
		b.t.add(row{name, mib(median(p.ours)), mib(median(p.peer)), p.smaller(), goal, text})
	}
	seconds("vault-first", 1.4, "first `keelblock backup` of "+what+", against the faster of restic and borg (fixed chunks of 64 KiB), sync")
	sizes("vault-first-bytes", 1/1.06, "what the packs then take, against the smaller repository")
	changes := fmt.Sprintf("%s in writes of 4 KiB of random bytes, scattered", rig.Size(scatteredBytes))
	seconds("vault-scattered", 4, "the next after "+changes+", against the faster")
	sizes("vault-scattered-bytes", 1/1.1, "what it added to the packs, against the bytes that changed")
	sizes("vault-scattered-peers", 0, "the same against the smaller growth of a repository")
	seconds("vault-sequential", 2, fmt.Sprintf("the next after a run of %s, against the faster", rig.Size(sequentialRun)))
	seconds("vault-scattered-ratio", 1/1.5, fmt.Sprintf("a backup of %s scattered against one of as many in one run", rig.Size(scatteredBytes)))
	seconds("vault-restore", 1, "`keelblock restore file`, against the faster, sync")
	seconds("vault-verify", 1, "`keelblock recovery-point verify --all`, against the faster check of all data")
	seconds("vault-collect", 1, "`keelblock vault gc` when all points but the newest are gone, against the faster prune")
	sizes("vault-collect-bytes", 1/1.2, "the packs then, against what the newest point needs")
	return nil
}

// vaultRound is one round. work.img is what the peers back up; the live disk has the same
// content.
func (b *bench) vaultRound(seed uint64, add func(name string, ours, peer float64)) error {
	machine, disk, err := b.freshMachine()
	if err != nil {
		return err
	}
	clean := "rm -rf restic borg borg.base back back.raw work.img"
	if _, err := b.r.Shell(b.ctx, clean+" && cp --sparse=always disk.img work.img"); err != nil {
		return err
	}
	for _, p := range peers {
		if _, err := b.r.Shell(b.ctx, p.init+" >&2"); err != nil {
			return err
		}
	}
	backup := func(name string) (ours rig.Point, grew float64, err error) {
		if ours, err = b.r.Backup(b.ctx, machine); err != nil {
			return ours, 0, err
		}
		var fastest, smallest best
		for _, p := range peers {
			before, err := folderBytes(filepath.Join(b.r.Dir, p.name))
			if err != nil {
				return ours, 0, err
			}
			took, err := b.timed(p.backup + " && sync " + p.name)
			if err != nil {
				return ours, 0, err
			}
			after, err := folderBytes(filepath.Join(b.r.Dir, p.name))
			if err != nil {
				return ours, 0, err
			}
			fastest.least(took.Seconds())
			smallest.least(float64(after-before) / (1 << 20))
		}
		add(name, ours.Took.Seconds(), fastest.v)
		return ours, smallest.v, nil
	}

	if _, err = b.r.Shell(b.ctx, "sync"); err != nil {
		return err
	}
	_, grew, err := backup("vault-first")
	if err != nil {
		return err
	}
	packs, err := b.packBytes()
	if err != nil {
		return err
	}
	add("vault-first-bytes", packs, grew)

	if err := b.scatter(disk, seed, scatteredBytes, 4096); err != nil {
		return err
	}
	scattered, grew, err := backup("vault-scattered")
	if err != nil {
		return err
	}
	const mebi = float64(1 << 20)
	add("vault-scattered-bytes", float64(scattered.StoredBytes)/mebi, scatteredBytes/mebi)
	add("vault-scattered-peers", float64(scattered.StoredBytes)/mebi, grew)

	if err := b.scatter(disk, seed+100, sequentialRun, sequentialRun); err != nil {
		return err
	}
	if _, _, err := backup("vault-sequential"); err != nil {
		return err
	}
	// The same bytes, scattered and in a run, ours alone.
	if err := b.scatter(disk, seed+200, scatteredBytes, 4096); err != nil {
		return err
	}
	one, err := b.r.Backup(b.ctx, machine)
	if err != nil {
		return err
	}
	if err := b.scatter(disk, seed+300, scatteredBytes, scatteredBytes); err != nil {
		return err
	}
	run, err := b.r.Backup(b.ctx, machine)
	if err != nil {
		return err
	}
	add("vault-scattered-ratio", one.Took.Seconds(), run.Took.Seconds())
	return errors.Join(b.vaultAfter(machine, disk, add), b.shell(clean))
}

func (b *bench) shell(line string) error {
	_, err := b.r.Shell(b.ctx, line)
	return err
}

// vaultAfter measures what is done with points: restored, verified, collected.
func (b *bench) vaultAfter(machine, disk string, add func(name string, ours, peer float64)) error {
	for _, step := range []struct {
		name, ours string
		theirs     func(peer) string
	}{
		{"vault-restore", "keelblock restore file " + machine + "@latest:" + disk + " back.raw && sync back.raw", func(p peer) string { return "(" + p.restore + ") && sync" }},
		{"vault-verify", "keelblock recovery-point verify --all", func(p peer) string { return p.check }},
		{"vault-collect", "keelblock vault gc", func(p peer) string { return p.prune }},
	} {
		if step.name == "vault-restore" {
			if err := b.shell("rm -rf back back.raw"); err != nil {
				return err
			}
		}
		if step.name == "vault-collect" {
			if err := b.shell("for p in $(keelblock recovery-point list " + machine + " | cut -d' ' -f1 | head -n -1); do keelblock recovery-point delete $p --purge --yes; done"); err != nil {
				return err
			}
		}
		ours, err := b.timed(step.ours)
		if err != nil {
			return err
		}
		var fastest best
		for _, p := range peers {
			took, err := b.timed(step.theirs(p))
			if err != nil {
				return err
			}
			if err := b.shell("rm -rf back"); err != nil {
				return err
			}
			fastest.least(took.Seconds())
		}
		add(step.name, ours.Seconds(), fastest.v)
	}
	packs, err := b.packBytes()
	if err != nil {
		return err
	}
	live, err := b.r.LiveBytes(b.ctx)
	if err != nil {
		return err
	}
	add("vault-collect-bytes", packs, float64(live)/(1<<20))
	return nil
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
