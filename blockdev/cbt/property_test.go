package cbt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/keelblock/keelblock/blockdev"
)

var errInjected = errors.New("injected fault")

// subject is one disk of the property test with its oracle.
type subject struct {
	d    *memDisk
	o    Options
	t    *Tracker
	base []byte // content of the committed point, nil without one
	id   PointID
	// maybe is the content of a point that was prepared when the process died: the
	// candidate, committed or not.
	maybe   []byte
	maybeID PointID
	atCut   []byte
	frozen  *Frozen
}

// property runs random operations on two disks of one clock, one goroutine, so that a
// seed repeats a run. Captures are interleaved by writing from their callbacks.
type property struct {
	*testing.T
	r     *rand.Rand
	c     *Clock
	disks []*subject
	cut   *Freeze
	in    []*subject // of the cut
	next  uint64
	zeros int64   // bytes that captures told as zeros
	fault float64 // probability that a call to a disk fails
	log   []string
}

func (p *property) note(format string, args ...any) {
	p.log = append(p.log, fmt.Sprintf(format, args...))
}

func (p *property) bad(format string, args ...any) {
	p.Helper()
	p.Fatalf("%s\nlast operations: %q", fmt.Sprintf(format, args...), p.log[max(0, len(p.log)-25):])
}

func (p *property) point() (id PointID) {
	p.next++
	littleEndian.PutUint64(id[:], p.next)
	return id
}

// mutate does one write, trim or write of zeros.
func (p *property) mutate(s *subject) {
	size := s.d.Size()
	n := 1 + p.r.Int64N(20000)
	switch p.r.IntN(12) {
	case 0:
		n = 1 + p.r.Int64N(size)
	case 1, 2:
		n = 4096
	}
	off := p.r.Int64N(size)
	if p.r.IntN(2) == 0 {
		off &^= 4095
	}
	n = min(n, size-off)
	var err error
	kind := p.r.IntN(8)
	want := bytes.Clone(s.d.data[off : off+n])
	switch kind {
	case 0:
		if stats := s.t.Stats(); stats.SpillBytes+n+2*blockdev.GrainSize <= stats.SpillLimitBytes/2 {
			clear(want)
		} else {
			want = nil // some of it may stay
		}
		err = s.t.Trim(off, n)
	case 1:
		clear(want)
		err = s.t.WriteZeroes(off, n, p.r.IntN(2) == 0)
	default:
		for i := range want {
			want[i] = byte(p.r.Uint32())
		}
		_, err = s.t.WriteAt(want, off)
	}
	p.note("mutate %s %d [%d,+%d) %v", s.o.DiskID, kind, off, n, err)
	if err != nil && !errors.Is(err, errInjected) {
		p.bad("the guest's write failed: %v", err)
	}
	if err == nil && want != nil && !bytes.Equal(s.d.data[off:off+n], want) {
		p.bad("the disk does not hold what was written")
	}
}

// check: what differs is listed, if the tracker says that it may be trusted.
func (p *property) check(s *subject) {
	state, _ := s.t.Tracking()
	if state != TrackingEnabled {
		return
	}
	for _, base := range [][]byte{s.base, s.maybe} {
		if base == nil {
			continue
		}
		rest := bytes.Clone(s.d.data)
		s.t.Changed(func(e blockdev.Extent) bool {
			copy(rest[e.Offset:e.End()], base[e.Offset:e.End()])
			return true
		})
		if !bytes.Equal(rest, base) {
			at := 0
			for rest[at] == base[at] {
				at++
			}
			p.bad("disk %s differs at %d and does not list it", s.o.DiskID, at)
		}
	}
}

// freeze cuts a random set of disks.
func (p *property) freeze() {
	p.in = p.in[:0]
	for _, s := range p.disks {
		if p.r.IntN(3) > 0 {
			p.in = append(p.in, s)
		}
	}
	if len(p.in) == 0 {
		return
	}
	var ts []*Tracker
	for _, s := range p.in {
		ts = append(ts, s.t)
		if state, _ := s.t.Tracking(); state != TrackingEnabled {
			p.readWhole(s)
		}
	}
	p.cut = mustFreeze(p.T, p.c, ts...)
	for i, s := range p.in {
		s.atCut, s.frozen = bytes.Clone(s.d.data), p.cut.Disks[i]
	}
	p.note("freeze of %d", len(p.in))
}

// readWhole is what a first backup and a compare do: it leaves in base what was read
// from the live disk, with more reading of what was listed meanwhile.
func (p *property) readWhole(s *subject) {
	fault := p.fault
	p.fault = 0
	defer func() { p.fault = fault }()
	if err := p.c.Baseline([]*Tracker{s.t}); err != nil {
		p.bad("baseline: %v", err)
	}
	s.base = make([]byte, s.d.Size())
	read := func(e blockdev.Extent) {
		for ; e.Length > 0; e.Offset, e.Length = e.Offset+min(e.Length, 1<<18), e.Length-min(e.Length, 1<<18) {
			copy(s.base[e.Offset:min(e.End(), e.Offset+1<<18)], s.d.data[e.Offset:])
			p.mutate(s)
		}
	}
	read(blockdev.Extent{Length: s.d.Size()})
	if p.r.IntN(2) == 0 {
		var again []blockdev.Extent
		if err := p.c.Advance([]*Tracker{s.t}, func(_ int, e blockdev.Extent) { again = append(again, e) }); err != nil {
			p.bad("advance: %v", err)
		}
		for _, e := range again {
			read(e)
		}
	}
	p.note("read %s in full", s.o.DiskID)
}

// finish captures the open cut and commits or aborts it.
func (p *property) finish() {
	defer func() {
		p.cut = nil
		for _, s := range p.in {
			s.atCut, s.frozen = nil, nil
		}
	}()
	giveUp := p.r.IntN(4) == 0
	var contents [][]byte
	var err error
	for _, s := range p.in {
		content := bytes.Clone(s.base)
		err = errors.Join(err, s.frozen.Capture(context.Background(), Sink{Write: func(off int64, b []byte) error {
			if !bytes.Equal(b, s.atCut[off:off+int64(len(b))]) {
				p.bad("the capture of %s hands on at %d what is not of the cut", s.o.DiskID, off)
			}
			copy(content[off:], b)
			if p.r.IntN(3) == 0 {
				p.mutate(p.disks[p.r.IntN(len(p.disks))])
			}
			return nil
		}, Zero: func(off, n int64) error {
			if slices.ContainsFunc(s.atCut[off:off+n], func(b byte) bool { return b != 0 }) {
				p.bad("the capture of %s calls %d bytes at %d zeros that were none at the cut", s.o.DiskID, n, off)
			}
			clear(content[off : off+n])
			p.zeros += n
			if p.r.IntN(3) == 0 {
				p.mutate(p.disks[p.r.IntN(len(p.disks))])
			}
			return nil
		}}))
		if err == nil && !bytes.Equal(content, s.atCut) {
			p.bad("the snapshot of %s is not the disk at the cut", s.o.DiskID)
		}
		contents = append(contents, content)
	}
	if err != nil && !errors.Is(err, ErrAborted) && !errors.Is(err, errInjected) {
		p.bad("capture: %v", err)
	}
	p.note("capture: %v", err)
	if err != nil || giveUp {
		p.abort()
		return
	}
	id := p.point()
	for _, s := range p.in {
		if err := s.frozen.Prepare(id); err != nil {
			p.bad("prepare: %v", err)
		}
	}
	if p.r.IntN(5) == 0 { // killed before or after the vault's commit
		for i, s := range p.in {
			s.maybe, s.maybeID = contents[i], id
		}
		p.kill()
		return
	}
	for i, s := range p.in {
		if err := s.frozen.Commit(); err != nil {
			p.bad("commit: %v", err)
		}
		s.base, s.id = contents[i], id
		if state, reason := s.t.Tracking(); state != TrackingEnabled && p.fault == 0 {
			p.bad("after a commit: %v: %s", state, reason)
		}
	}
	p.note("commit")
}

func (p *property) abort() {
	for _, s := range p.in {
		if err := errors.Join(s.frozen.Abort(), s.frozen.Abort()); err != nil {
			p.bad("abort: %v", err)
		}
		s.t.DropBaseline()
	}
	p.note("abort")
}

// kill ends the process and starts the next, sometimes twice, since recovery may be
// killed too.
func (p *property) kill() {
	p.c = NewClock()
	for _, s := range p.disks {
		abandon(p, s.t)
		for range 1 + p.r.IntN(2) {
			if s.t != nil {
				abandonAgain(p, s)
			}
			s.t = mustOpen(p, s.d, p.c, s.o)
		}
		if base, cand := s.t.Bases(); s.maybe != nil && (base != s.id || cand != s.maybeID) {
			if state, _ := s.t.Tracking(); state == TrackingEnabled {
				p.bad("after a kill base %x candidate %x, want %x and %x", base[:2], cand[:2], s.id[:2], s.maybeID[:2])
			}
		}
		p.check(s)
		if s.maybe != nil {
			if p.r.IntN(2) == 0 { // the vault has the point
				if err := s.t.AcceptBase(s.maybeID); err != nil {
					p.bad("accept: %v", err)
				}
				s.base, s.id = s.maybe, s.maybeID
			}
			s.maybe = nil
		}
	}
	p.cut = nil
	p.note("kill")
}

func abandonAgain(p *property, s *subject) {
	if !s.t.closed {
		abandon(p, s.t)
	}
}

// restart is a clean stop, or, with a new boot id, a power cut.
func (p *property) restart(power bool) {
	p.c = NewClock()
	for _, s := range p.disks {
		state, _ := s.t.Tracking()
		fault := p.fault
		p.fault = 0
		if power {
			abandon(p, s.t)
			s.o.BootID = "boot-" + strconv.FormatUint(p.r.Uint64(), 36)
		} else if err := s.t.Close(); err != nil {
			p.bad("close: %v", err)
		}
		s.t = mustOpen(p, s.d, p.c, s.o)
		p.fault = fault
		switch after, reason := s.t.Tracking(); {
		case power && after == TrackingEnabled:
			p.bad("the map was trusted after a power cut")
		case !power && after != state:
			p.bad("tracking was %v and is %v after a clean stop: %s", state, after, reason)
		}
	}
	p.note("restart, power cut: %t", power)
}

func (p *property) step() {
	switch k := p.r.IntN(40); {
	case k < 24:
		p.mutate(p.disks[p.r.IntN(len(p.disks))])
	case k < 31 && p.cut == nil:
		p.freeze()
	case k < 37 && p.cut != nil:
		p.finish()
	case k == 37 && p.cut != nil:
		p.abort()
		p.cut = nil
	case k == 38:
		p.kill()
	case k == 39 && p.cut == nil:
		p.restart(p.r.IntN(3) == 0)
	}
	for _, s := range p.disks {
		p.check(s)
	}
}

// TestRandomOperations: SEED repeats one run, ROUNDS sets the number of runs.
func TestRandomOperations(t *testing.T) {
	first, rounds := rand.Uint64(), 10
	if n, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64); err == nil {
		first, rounds = n, 1
	}
	if n, err := strconv.Atoi(os.Getenv("ROUNDS")); err == nil {
		rounds = n
	}
	for i := range uint64(rounds) {
		seed := first + i
		t.Run("SEED="+strconv.FormatUint(seed, 10), func(t *testing.T) {
			p := &property{T: t, r: rand.New(rand.NewPCG(seed, 0)), c: NewClock()}
			for k := range 2 {
				d := newMemDisk(2*mib + int64(p.r.IntN(9))*512)
				s := &subject{d: d, o: options(t, d)}
				s.o.DiskID = "disk-" + strconv.Itoa(k)
				switch p.r.IntN(3) {
				case 0:
					s.o.SpillBytes = 64 << 10
				case 1:
					s.o.SpillBytes = mib / 2
				}
				d.fault = func(op string, _, _ int64) error {
					if p.fault > 0 && op != "flush" && p.r.Float64() < p.fault {
						return errInjected
					}
					return nil
				}
				s.t = mustOpen(t, d, p.c, s.o)
				p.disks = append(p.disks, s)
			}
			if p.r.IntN(3) == 0 {
				p.fault = 0.02
			}
			for range 120 {
				p.step()
			}
		})
	}
}
