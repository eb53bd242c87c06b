package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strconv"
	"strings"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/tools/rig"
)

const patchedBytes = 256 << 20

// patchRows compare reads of a disk whose blocks all are patches with reads of the same
// disk before, when its blocks were whole.
func (b *bench) patchRows() error {
	const machine, disk = "mpatched", "patched"
	if err := b.shell(fmt.Sprintf("keelblock disk create %s --size %d && keelblock machine create %s --disk %s", disk, patchedBytes, machine, disk)); err != nil {
		return err
	}
	src := rand.NewChaCha8([32]byte{7})
	// Half of each grain is random: it compresses by half, as data does.
	write := func(off, n int64) error {
		return b.onDisk(disk, func(d blockdev.Device) error {
			buf := make([]byte, 4096)
			for ; off < patchedBytes; off += n {
				if _, err := src.Read(buf[:2048]); err != nil {
					return err
				}
				if _, err := d.WriteAt(buf, off); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := write(0, 4096); err != nil {
		return err
	}
	whole, err := b.r.Backup(b.ctx, machine)
	if err != nil {
		return err
	}
	points := []string{whole.ID}
	for range 2 { // as deep as patches go
		if err := write(int64(src.Uint64()%16)*4096, 64<<10); err != nil {
			return err
		}
		p, err := b.r.Backup(b.ctx, machine)
		if err != nil {
			return err
		}
		points = append(points, p.ID)
	}
	var took [3]pairs
	for range b.rounds + 2 {
		var seconds [3]float64
		for i, id := range points {
			d, err := b.timed("keelblock restore file " + id + ":" + disk + " back.raw")
			if err = errors.Join(err, b.shell("rm back.raw")); err != nil {
				return err
			}
			seconds[i] = d.Seconds()
		}
		for i := range took {
			took[i].add(patchedBytes/1e6/seconds[i], patchedBytes/1e6/seconds[0])
		}
	}
	for i, depth := range []string{"", "one patch", "two patches, one over the other"} {
		if i > 0 {
			b.t.add(row{fmt.Sprintf("vault-read-patches-%d", i), mbs(median(took[i].ours)), mbs(median(took[i].peer)), took[i].faster(), 0.8,
				fmt.Sprintf("`keelblock restore file` of a disk of %s of which each block is %s, against the point where all are whole; content compresses by half", rig.Size(patchedBytes), depth)})
		}
	}
	return nil
}

// locationRows compare first backups into vaults with one, two and three locations, all
// on the same disk of this machine.
func (b *bench) locationRows() error {
	var took [3]pairs
	for round := range b.rounds {
		var rate [3]float64
		for n := range 3 {
			machine, _, err := b.freshMachine()
			if err != nil {
				return err
			}
			vault := fmt.Sprintf("v%dx%d", n+1, round)
			line := "keelblock vault create " + vault
			for l := range n + 1 {
				line += fmt.Sprintf(" --location $PWD/%s-%d", vault, l)
			}
			if err := b.shell(line + " && sync -f ."); err != nil {
				return err
			}
			d, err := b.timed("keelblock backup " + machine + " --vault " + vault)
			if err != nil {
				return err
			}
			rate[n] = mbPerSecond(b.allocated, d)
		}
		for n := range 3 {
			took[n].add(rate[n], rate[0])
		}
	}
	for n := 1; n < 3; n++ {
		b.t.add(row{fmt.Sprintf("vault-locations-%d", n+1), mbs(median(took[n].ours)), mbs(median(took[n].peer)), took[n].faster(), 0,
			fmt.Sprintf("first `keelblock backup` of %s into a vault with %d locations against one with one; all lie on one disk, which writes %d times as much", rig.Size(b.allocated), n+1, n+1)})
	}
	return nil
}

// indexRows take over what BenchmarkIndexOfMany of package blockstore says of an index
// of ten million blocks.
func (b *bench) indexRows() error {
	out, err := exec.CommandContext(b.ctx, "go", "test", "-run", "^$", "-bench", "^BenchmarkIndexOfMany$", "-benchtime", "1x", "./dedupe/blockstore").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	v := metrics(string(out))
	entries := v["entries"]
	if entries == 0 {
		return fmt.Errorf("the benchmark of the index printed no figures:\n%s", out)
	}
	of := fmt.Sprintf(" an index with %.1f million blocks, written straight into it, of 64 KiB each", entries/1e6)
	perTiB := float64(1<<40/(64<<10)) / entries
	b.t.add(row{"vault-index-bytes", mib(v["disk-B"] * perTiB / mebi), mib(mebi), mebi / (v["disk-B"] * perTiB / mebi), 0,
		fmt.Sprintf("bytes on disk per TiB of blocks, from%s (%.0f bytes an entry); the peer is the TiB", of, v["disk-B"]/entries)})
	b.t.add(row{"vault-index-memory", mib(v["anon-B"] / mebi), "256.0MiB", 256 * mebi / v["anon-B"], 0,
		"memory of its own, after 100 000 lookups at random, of" + of + fmt.Sprintf("; beside it %.0f MiB of its files are mapped; the peer is the bound of its cache", v["file-B"]/mebi)})
	b.t.add(row{"vault-index-open", sec(v["open-s"]), "1.00s", 1 / v["open-s"], 0, "opening" + of + "; the peer is one second"})
	b.t.add(row{"vault-index-lookup", fmt.Sprintf("%.1fus", v["hit-ns"]/1e3), fmt.Sprintf("%.1fus", v["miss-ns"]/1e3), v["miss-ns"] / v["hit-ns"], 0,
		"a lookup at random that finds, and beside it one that does not, of" + of + fmt.Sprintf(", which took %.0f s to write", v["fill-s"])})
	return nil
}

// metrics are the figures of one line of a Go benchmark, by unit.
func metrics(text string) map[string]float64 {
	v := map[string]float64{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		for i := 2; i+1 < len(f); i += 2 {
			if x, err := strconv.ParseFloat(f[i], 64); err == nil {
				v[f[i+1]] = x
			}
		}
	}
	return v
}
