package cbt

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"github.com/keelblock/keelblock/blockdev"
)

// powerSeed repeats one run of the power-cut property: KEELBLOCK_CBT_POWER_SEED=7.
const powerSeed = "KEELBLOCK_CBT_POWER_SEED"

// powerWorld is one disk over a platter, its files, and the vault. Everything random
// comes from one seed, one goroutine does it all, and the machine may stop at any
// request to the disk or to the intent file.
type powerWorld struct {
	testing.TB
	r     *rand.Rand
	d     *platter
	f     *platterWorld
	steps *countdown
	o     Options
	boots int
	t     *Tracker
	vault map[PointID]sparse
	next  uint64

	// bugs that a test puts in
	unsyncedData, clearEarly, clearBlind bool

	cuts, kills, narrow, wide, points int
	log                               []string
	violated                          string
}

func newPowerWorld(tb testing.TB, seed uint64) *powerWorld {
	dir := tb.TempDir()
	steps := &countdown{}
	w := &powerWorld{TB: tb, r: rand.New(rand.NewPCG(seed, 2)), steps: steps, vault: map[PointID]sparse{},
		d: newPlatter(12*regionBytes+5*4096+512, steps), f: &platterWorld{steps: steps, pending: unsynced{}}}
	w.o = Options{DiskID: "power", MapPath: filepath.Join(shm(tb), "map"), SavePath: filepath.Join(dir, "saved"),
		IntentPath: filepath.Join(dir, "intent"), openIntent: w.f.open,
		Witness: func() (Witness, bool) { return Witness{Size: w.d.Size()}, true }}
	return w
}

func (w *powerWorld) note(format string, args ...any) {
	w.log = append(w.log, fmt.Sprintf(format, args...))
}

// bad notes the first violation. Seeded bugs are supposed to lead here.
func (w *powerWorld) bad(format string, args ...any) {
	if w.violated == "" {
		w.violated = fmt.Sprintf(format, args...) + fmt.Sprintf("\nlast steps: %q", w.log[max(0, len(w.log)-30):])
	}
}

func (w *powerWorld) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatalf("%v\nlast steps: %q", err, w.log[max(0, len(w.log)-30):])
	}
}

// open opens the disk, and stops the machine in it now and then.
func (w *powerWorld) open() {
	for {
		if w.r.IntN(4) == 0 {
			w.steps.left = 1 + w.r.IntN(8)
		}
		ok := survives(func() {
			w.o.BootID = "boot-" + strconv.Itoa(w.boots)
			t, err := Open(w.d, NewClock(), w.o)
			w.must(err)
			w.t = t
		})
		w.steps.left = 0
		if ok {
			return
		}
		w.note("crash in Open")
		w.stop(w.r.IntN(2) == 0)
	}
}

// stop is the end of the machine, or of the process.
func (w *powerWorld) stop(power bool) {
	w.t = nil // its locks may be held: it is left where it is
	if !power {
		w.kills++
		w.note("kill")
		return
	}
	w.cuts++
	w.boots++
	w.note("power cut")
	w.d.powerCut(w.r)
	w.must(w.f.powerCut(w.r, w.o.IntentPath))
	if w.r.IntN(2) == 0 {
		os.Remove(w.o.MapPath)
	}
}

// check compares the disk with all points that may be the base.
func (w *powerWorld) check() {
	state, reason := w.t.Tracking()
	var doubt []blockdev.Extent
	w.t.Doubtful(func(e blockdev.Extent) bool { doubt = append(doubt, e); return true })
	if state == TrackingEnabled && doubt != nil {
		w.bad("enabled, and in doubt at %v", doubt)
	}
	whole := state != TrackingEnabled && (len(doubt) == 1 && doubt[0].Length == w.d.Size())
	switch {
	case state == TrackingEnabled:
	case !whole:
		w.narrow++
	case len(w.vault) > 0:
		w.wide++
		w.note("wide: %s", reason)
	}
	base, candidate := w.t.Bases()
	for _, id := range []PointID{base, candidate} {
		point, ok := w.vault[id]
		if !ok || whole {
			continue
		}
		point = maps.Clone(point) // what the disk gained is zeros, what it lost is gone
		point.truncate(w.d.Size())
		if i := w.d.data.differ(point, append(doubt, listed(w.t)...)); i >= 0 {
			w.bad("the disk differs at %d (region %d) from point %x and does not say so (%v: %s)", i<<12, i>>12, id[:2], state, reason)
		}
	}
}

// mutate writes somewhere, more often where it wrote before.
func (w *powerWorld) mutate() {
	size := w.d.Size()
	region := int64(w.r.ExpFloat64()*2) % regionsOf(size)
	off := region<<regionShift + w.r.Int64N(40)*1024
	if w.r.IntN(6) == 0 {
		off = (region+1)<<regionShift - 2048
	}
	n := min(512+w.r.Int64N(5000), size-off)
	if off >= size || n <= 0 {
		return
	}
	kind := w.r.IntN(8)
	var err error
	switch kind {
	case 0:
		err = w.t.Trim(off, n)
	case 1:
		err = w.t.WriteZeroes(off, n, true)
	default:
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(w.r.Uint32())
		}
		_, err = w.t.WriteAt(p, off)
	}
	w.note("mutate %d [%d,+%d): %v", kind, off, n, err)
	if err != nil && !errors.Is(err, errInjected) {
		w.must(err)
	}
}

func (w *powerWorld) resize() {
	size := int64(10+w.r.IntN(4))*regionBytes + int64(w.r.IntN(3))*2560
	err := w.t.Resize(context.Background(), size)
	w.note("resize to %d: %v", size, err)
	w.must(err)
}

// base is the point that a backup starts from, as the planner chooses it.
func (w *powerWorld) base() sparse {
	base, candidate := w.t.Bases()
	if p, ok := w.vault[candidate]; ok {
		return p
	}
	return w.vault[base]
}

// backup does what package backup does; each step may be the last.
func (w *powerWorld) backup() {
	old := w.base()
	content := maps.Clone(old)
	if old == nil {
		content = sparse{}
	}
	content.truncate(w.d.Size())
	state, _ := w.t.Tracking()
	if state != TrackingEnabled || old == nil {
		if state == TrackingEnabled {
			w.t.Distrust("the base is gone")
		}
		w.must(w.t.clock.Baseline([]*Tracker{w.t}))
		var read []blockdev.Extent
		w.t.Doubtful(func(e blockdev.Extent) bool { read = append(read, e); return true })
		for _, e := range read {
			content.copyRange(w.d.data, e)
			w.mutate()
		}
	}
	z, err := w.t.clock.Freeze([]*Tracker{w.t})
	w.must(err)
	f := z.Disks[0]
	atCut := maps.Clone(w.d.data)
	w.must(f.Drain(context.Background()))
	if w.unsyncedData {
		f.synced.Store(true)
	}
	w.mutate()
	w.must(f.Capture(context.Background(), Sink{Write: func(off int64, b []byte) error {
		content.write(b, off)
		return nil
	}}))
	if w.r.IntN(8) == 0 {
		w.must(f.Abort())
		w.t.DropBaseline()
		w.note("backup aborted")
		return
	}
	if i := content.differ(atCut, nil); i >= 0 {
		w.bad("the point does not hold at %d what the disk held", i<<12)
	}
	w.next++
	var id PointID
	littleEndian.PutUint64(id[:], w.next)
	if w.clearEarly {
		w.clearAll()
	}
	w.must(f.Prepare(id))
	w.mutate()
	w.steps.step()
	w.vault[id] = content
	w.points++
	w.steps.step()
	w.mutate()
	w.must(f.Commit())
	if w.clearBlind {
		w.clearAll()
	}
	w.note("backup %d", w.next)
}

// clearAll is what the intent map must not do.
func (w *powerWorld) clearAll() {
	w.t.intents.clear(slices.Clone(w.t.intents.active), func(int64) bool { return false }, func() {})
}

func (w *powerWorld) run(rounds int) {
	w.open()
	for range rounds {
		w.steps.left = 1 + w.r.IntN(60)
		ok := survives(func() {
			for range 1 + w.r.IntN(12) {
				switch w.r.IntN(12) {
				case 0, 1, 2:
					w.backup()
				case 3:
					w.must(w.t.Flush())
				case 4:
					w.resize()
				case 5:
					w.note("clean stop")
					w.must(w.t.Close())
					w.steps.left = 0
					if w.r.IntN(2) == 0 {
						w.stop(true)
					}
					w.open()
					w.check()
					w.steps.left = 1 + w.r.IntN(60)
				default:
					w.mutate()
				}
			}
		})
		w.steps.left = 0
		if ok {
			w.check()
		}
		if ok && w.r.IntN(3) > 0 {
			continue
		}
		w.stop(w.r.IntN(3) > 0)
		w.open()
		w.check()
		if w.violated != "" {
			return
		}
	}
	if w.t != nil {
		w.must(w.t.Close())
	}
}

// After a crash at any step, of the process or of the machine, all that differs from
// the base is in doubt or listed.
func TestPowerCutAtAnyStep(t *testing.T) {
	seeds, rounds := uint64(8), 40
	if raceEnabled {
		seeds = 2
	}
	first := uint64(1)
	if s := os.Getenv(powerSeed); s != "" {
		first, _ = strconv.ParseUint(s, 10, 64)
		seeds = 1
	}
	var cuts, kills, narrow, wide, points int
	for seed := first; seed < first+seeds; seed++ {
		w := newPowerWorld(t, seed)
		w.run(rounds)
		if w.violated != "" {
			t.Fatalf("seed %d: %s", seed, w.violated)
		}
		cuts, kills, narrow, wide, points = cuts+w.cuts, kills+w.kills, narrow+w.narrow, wide+w.wide, points+w.points
	}
	t.Logf("%d power cuts, %d kills, %d points; %d times narrowed, %d times all in doubt", cuts, kills, points, narrow, wide)
	if narrow < wide || points == 0 {
		t.Errorf("the comparison was narrowed %d times and not %d times", narrow, wide)
	}
}

// Each way to get it wrong is found by the same test.
func TestPowerCutFindsSeededBugs(t *testing.T) {
	for _, bug := range []struct {
		name string
		put  func(w *powerWorld)
	}{
		{"no intent", func(w *powerWorld) { w.f.dropSectors = true }},
		{"intent not synced", func(w *powerWorld) { w.f.skipSync = true }},
		{"clear before commit", func(w *powerWorld) { w.clearEarly = true }},
		{"clear while the new epoch wrote", func(w *powerWorld) { w.clearBlind = true }},
		{"clear without data sync", func(w *powerWorld) { w.unsyncedData = true }},
	} {
		t.Run(bug.name, func(t *testing.T) {
			for seed := uint64(1); seed <= 40; seed++ {
				w := newPowerWorld(t, seed)
				bug.put(w)
				w.run(40)
				if w.violated != "" {
					t.Logf("seed %d, %d power cuts", seed, w.cuts)
					return
				}
			}
			t.Error("not found")
		})
	}
}
