package cbt

import (
	"context"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/keelblock/keelblock/blockdev"
)

// errNoPower is what every request gets once the power is gone.
var errNoPower = errors.New("the machine has no power")

// machine is a computer whose power goes after a number of requests to its disk or its
// intent file, while any number of goroutines use them. What it leaves is what was there
// at that instant; whatever its goroutines still do comes to nothing.
type machine struct {
	life sync.RWMutex
	left atomic.Int64
	off  atomic.Bool

	disk    *platter
	intents *platterWorld
	dir     string
	// left behind
	remains struct {
		data         sparse
		size         int64
		disk, intent unsynced
		file         []byte
	}

	vaultMu sync.Mutex
	vault   map[PointID]sparse
	next    uint64
}

// request runs do, or the power goes before it.
func (m *machine) request(do func() error) error {
	if m.left.Add(-1) == 0 {
		m.die()
	}
	m.life.RLock()
	defer m.life.RUnlock()
	if m.off.Load() {
		return errNoPower
	}
	return do()
}

func (m *machine) die() {
	m.life.Lock()
	defer m.life.Unlock()
	if m.off.Swap(true) {
		return
	}
	clone := func(u unsynced) unsynced {
		c := maps.Clone(u)
		for k := range c {
			c[k] = append([][]byte(nil), c[k]...)
		}
		return c
	}
	r := &m.remains
	m.disk.mu.Lock()
	r.data, r.size, r.disk = maps.Clone(m.disk.data), m.disk.size, clone(m.disk.pending)
	m.disk.mu.Unlock()
	r.intent = clone(m.intents.pending)
	r.file, _ = os.ReadFile(filepath.Join(m.dir, "intent"))
}

// poweredDisk and poweredFile are the platter and the intent file of a machine.
type poweredDisk struct{ m *machine }

func (d poweredDisk) ReadAt(p []byte, off int64) (n int, err error) {
	err = d.m.request(func() error { n, err = d.m.disk.ReadAt(p, off); return err })
	return n, err
}

func (d poweredDisk) WriteAt(p []byte, off int64) (n int, err error) {
	err = d.m.request(func() error { n, err = d.m.disk.WriteAt(p, off); return err })
	return n, err
}

func (d poweredDisk) Trim(off, n int64) error {
	return d.m.request(func() error { return d.m.disk.Trim(off, n) })
}

func (d poweredDisk) WriteZeroes(off, n int64, may bool) error {
	return d.m.request(func() error { return d.m.disk.WriteZeroes(off, n, may) })
}

func (d poweredDisk) Resize(n int64) error {
	return d.m.request(func() error { return d.m.disk.Resize(n) })
}

func (d poweredDisk) Flush() error { return d.m.request(d.m.disk.Flush) }
func (d poweredDisk) Size() int64  { return d.m.disk.Size() }
func (d poweredDisk) Close() error { return nil }

type poweredFile struct {
	intentIO
	m *machine
}

func (f poweredFile) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.m.request(func() error { n, err = f.intentIO.WriteAt(p, off); return err })
	return n, err
}

func (f poweredFile) Sync() error { return f.m.request(f.intentIO.Sync) }

var _ io.ReaderAt = poweredFile{}

// powerLoad is the test: machine after machine with one disk and one vault.
type powerLoad struct {
	*testing.T
	r     *rand.Rand
	m     *machine
	o     Options
	lives int

	narrow, wide, points, clears, quiet int
}

// boot starts the next machine with what the last one left.
func (p *powerLoad) boot(requests int64) *Tracker {
	p.Helper()
	before := p.m
	p.lives++
	p.m = &machine{dir: before.dir, vault: before.vault, next: before.next, intents: &platterWorld{pending: unsynced{}}}
	p.m.disk = newPlatter(before.remains.size, nil)
	p.m.disk.data = maps.Clone(before.remains.data)
	maps.Clone(before.remains.disk).cut(p.r, p.m.disk.data.write)
	if before.remains.file != nil {
		if err := os.WriteFile(p.o.IntentPath, before.remains.file, 0o600); err != nil {
			p.Fatal(err)
		}
		p.m.intents.pending = maps.Clone(before.remains.intent)
		if err := p.m.intents.powerCut(p.r, p.o.IntentPath); err != nil {
			p.Fatal(err)
		}
	}
	os.Remove(p.o.MapPath)
	p.o.BootID = "boot-" + strconv.Itoa(p.lives)
	m := p.m
	p.o.openIntent = func(f *os.File) intentIO { return poweredFile{m.intents.open(f), m} }
	m.left.Store(requests)
	t, err := Open(poweredDisk{m}, NewClock(), p.o)
	if err != nil {
		if !m.off.Load() {
			p.Fatal(err)
		}
		return nil // the power went during the recovery
	}
	return t
}

// check compares the disk with its bases outside of what is in doubt or listed, and
// reports whether all of it is in doubt. Nobody writes.
func (p *powerLoad) check(t *Tracker) (whole bool) {
	p.Helper()
	state, reason := t.Tracking()
	if len(p.m.vault) == 0 {
		return true
	}
	if state == TrackingEnabled {
		p.Fatalf("the map is trusted after a power cut")
	}
	var doubt []blockdev.Extent
	t.Doubtful(func(e blockdev.Extent) bool { doubt = append(doubt, e); return true })
	if len(doubt) == 1 && doubt[0].Length == t.Size() {
		p.wide++
		return true
	}
	p.narrow++
	base, candidate := t.Bases()
	for _, id := range []PointID{base, candidate} {
		if point, ok := p.m.vault[id]; ok {
			point = maps.Clone(point)
			point.truncate(t.Size())
			if i := p.m.disk.data.differ(point, append(doubt, listed(t)...)); i >= 0 {
				p.Fatalf("life %d: the disk differs at %d (region %d) from point %x and does not say so: %s; in doubt %v",
					p.lives, i<<12, i>>12, id[:2], reason, doubt)
			}
		}
	}
	return false
}

// backup does what package backup does, and returns the content of the point, or nil.
func (p *powerLoad) backup(t *Tracker, r *rand.Rand) sparse {
	m := p.m
	base, candidate := t.Bases()
	m.vaultMu.Lock()
	old, ok := m.vault[candidate]
	if !ok {
		old, ok = m.vault[base]
	}
	m.vaultMu.Unlock()
	content := maps.Clone(old)
	if content == nil {
		content = sparse{}
	}
	if state, _ := t.Tracking(); state != TrackingEnabled || !ok {
		if t.clock.Baseline([]*Tracker{t}) != nil {
			return nil
		}
		content.truncate(t.Size())
		failed := false
		t.Doubtful(func(e blockdev.Extent) bool {
			p := make([]byte, 1<<18)
			for off := e.Offset; off < e.End() && !failed; off += int64(len(p)) {
				p = p[:min(int64(len(p)), e.End()-off)]
				if _, err := t.ReadAt(p, off); err != nil {
					failed = true
				}
				content.write(p, off)
			}
			return !failed
		})
		if failed {
			t.DropBaseline()
			return nil
		}
	}
	z, err := t.clock.Freeze([]*Tracker{t})
	if err != nil {
		t.DropBaseline()
		return nil
	}
	f := z.Disks[0]
	content.truncate(f.Size())
	err = f.Drain(context.Background())
	if err == nil {
		err = f.Capture(context.Background(), Sink{Write: func(off int64, b []byte) error { content.write(b, off); return nil }})
	}
	if err != nil || r.IntN(6) == 0 {
		f.Abort()
		t.DropBaseline()
		return nil
	}
	m.vaultMu.Lock()
	m.next++
	var id PointID
	littleEndian.PutUint64(id[:], m.next)
	m.vaultMu.Unlock()
	if f.Prepare(id) != nil {
		f.Abort()
		return nil
	}
	// The vault's commit is durable, or not made.
	err = m.request(func() error {
		m.vaultMu.Lock()
		defer m.vaultMu.Unlock()
		m.vault[id] = content
		return nil
	})
	if err != nil {
		f.Abort()
		return nil
	}
	f.Commit()
	return content
}

// live has guests, backups, flushes and resizes at once until the power goes.
func (p *powerLoad) live(t *Tracker) {
	m := p.m
	var wg sync.WaitGroup
	seed := p.r.Uint64()
	hot := p.r.Int64N(8) // a life writes some regions, and few others
	loop := func(n uint64, do func(r *rand.Rand)) {
		r := rand.New(rand.NewPCG(seed, n))
		wg.Go(func() {
			for !m.off.Load() {
				do(r)
			}
		})
	}
	for w := range uint64(3) {
		loop(w, func(r *rand.Rand) {
			size := t.Size()
			region := (hot + r.Int64N(3)) % regionsOf(size)
			if r.IntN(100) == 0 {
				region = r.Int64N(regionsOf(size))
			}
			off := region<<regionShift + r.Int64N(16)*2048
			n := min(512+r.Int64N(6000), size-off)
			if n <= 0 {
				return
			}
			switch r.IntN(6) {
			case 0:
				t.Trim(off, n)
			case 1:
				t.WriteZeroes(off, n, true)
			default:
				b := make([]byte, n)
				for i := range b {
					b[i] = byte(r.Uint32())
				}
				t.WriteAt(b, off)
			}
		})
	}
	var points atomic.Int64
	loop(10, func(r *rand.Rand) {
		if p.backup(t, r) != nil {
			points.Add(1)
		}
	})
	loop(11, func(r *rand.Rand) {
		for range r.IntN(400) { // now and then
			if m.off.Load() {
				return
			}
			m.disk.Size()
		}
		if r.IntN(3) > 0 {
			t.Flush()
			return
		}
		t.Resize(context.Background(), int64(10+r.IntN(3))*regionBytes+int64(r.IntN(3))*2560)
	})
	wg.Wait()
	p.points += int(points.Load())
	p.clears += int(t.Stats().IntentsCleared)
}

// The power goes at any request while guests write, trim and flush, backups are made and
// given up, and the disk changes its size, all at once. After each cut all that differs
// from the base is in doubt; in some lives a backup without load has to equal the disk
// first. POWERCUTS=N and SEED=N.
func TestPowerCutUnderLoad(t *testing.T) {
	lives, seed := 25, rand.Uint64N(1<<32)
	if raceEnabled {
		lives = 8
	}
	if n, err := strconv.Atoi(os.Getenv("POWERCUTS")); err == nil {
		lives = n
	}
	if n, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64); err == nil {
		seed = n
	}
	t.Logf("seed %d", seed)
	dir := t.TempDir()
	p := &powerLoad{T: t, r: rand.New(rand.NewPCG(seed, 4)), m: &machine{dir: dir, vault: map[PointID]sparse{}}}
	p.m.remains.size, p.m.remains.data = 10*regionBytes+512, sparse{}
	p.o = Options{DiskID: "load", MapPath: filepath.Join(shm(t), "map"), SavePath: filepath.Join(dir, "saved"),
		IntentPath: filepath.Join(dir, "intent"), SpillBytes: 1 << 30}
	for p.lives < lives {
		requests := int64(20 + p.r.ExpFloat64()*1500)
		if p.r.IntN(6) == 0 {
			requests = 1 + p.r.Int64N(10) // during the recovery
		}
		tr := p.boot(requests)
		if tr == nil {
			continue
		}
		// A compare of the whole disk under load would seldom come to its end.
		if p.check(tr) || p.r.IntN(3) == 0 {
			left := p.m.left.Swap(1 << 40) // in peace
			content := p.backup(tr, p.r)
			if content != nil {
				p.quiet++
				if i := content.differ(p.m.disk.data, nil); i >= 0 {
					t.Fatalf("life %d: the point does not hold at %d what the disk holds", p.lives, i<<12)
				}
			}
			p.m.left.Store(max(left, 1))
		}
		p.live(tr)
		abandon(t, tr)
	}
	t.Logf("rounds=%d seed=%d lost=0: %d points, %d regions cleared, %d compares narrowed, %d whole, %d quiet points equal the disk",
		p.lives, seed, p.points, p.clears, p.narrow, p.wide, p.quiet)
	if p.narrow == 0 || p.clears == 0 || p.points == 0 {
		t.Error("the intent map had nothing to do")
	}
}
