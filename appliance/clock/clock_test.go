package clock_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keelblock/keelblock/appliance/clock"
)

const days = 24 * time.Hour

var start = time.Date(2026, 11, 22, 5, 0, 0, 0, time.UTC)

// host is a machine whose clocks the test moves.
type host struct {
	t     *testing.T
	path  string
	r     clock.Reading
	boots int
	alert string
	c     *clock.Clock
}

func newHost(t *testing.T) *host {
	h := &host{t: t, path: filepath.Join(t.TempDir(), "clock.json")}
	h.r = clock.Reading{Wall: start, Boot: time.Hour, BootID: "boot 0"}
	h.open()
	return h
}

func (h *host) open() {
	h.t.Helper()
	h.alert = ""
	c, err := clock.Open(h.path, clock.Options{Read: func() clock.Reading { return h.r }, Alert: func(s string) { h.alert = s }})
	if err != nil {
		h.t.Fatal(err)
	}
	h.c = c
}

// pass lets time go by, suspended or not; the clock is looked at each step.
func (h *host) pass(d time.Duration) {
	for d > 0 {
		step := min(d, time.Hour)
		h.r.Wall, h.r.Boot = h.r.Wall.Add(step), h.r.Boot+step
		h.c.Now()
		d -= step
	}
}

// set sets the wall clock.
func (h *host) set(d time.Duration) { h.r.Wall = h.r.Wall.Add(d) }

// kill ends the daemon without a save and starts it again after d, in the same boot.
func (h *host) kill(d time.Duration) {
	h.t.Helper()
	h.r.Wall, h.r.Boot = h.r.Wall.Add(d), h.r.Boot+d
	h.open()
}

// reboot stops cleanly; the host is off for d, and its clock then off by wrong.
func (h *host) reboot(d, wrong time.Duration) {
	h.t.Helper()
	if err := h.c.Save(); err != nil {
		h.t.Fatal(err)
	}
	h.boots++
	h.r = clock.Reading{Wall: h.r.Wall.Add(d + wrong + time.Minute), Boot: time.Minute, BootID: "boot " + string(rune('0'+h.boots))}
	h.open()
}

// believed fails unless the trusted time is the wall clock; proven is how far behind the
// proven time is.
func (h *host) believed(what string, proven time.Duration) {
	h.t.Helper()
	n := h.c.Now()
	if n.Doubt != "" || h.alert != "" || !n.At.Equal(h.r.Wall) {
		h.t.Errorf("%s: at %v with wall %v, doubt %q, alert %q", what, n.At, h.r.Wall, n.Doubt, h.alert)
	}
	if d := n.At.Sub(n.Proven); d != proven {
		h.t.Errorf("%s: proven is %v behind, want %v", what, d, proven)
	}
}

// doubted fails unless the wall clock is in doubt and the trusted time is at.
func (h *host) doubted(what string, at time.Time) {
	h.t.Helper()
	n := h.c.Now()
	if n.Doubt == "" || h.alert == "" || !n.At.Equal(at) || n.Proven.After(at) {
		h.t.Errorf("%s: at %v and proven %v, want %v; doubt %q, alert %q", what, n.At, n.Proven, at, n.Doubt, h.alert)
	}
	for _, part := range []string{at.Format("2006-01-02T15:04:05Z"), h.r.Wall.Format("2006-01-02T15:04:05Z"), "keelblock vault accept-clock"} {
		if !strings.Contains(n.Doubt, part) {
			h.t.Errorf("%s: %q does not name %s", what, n.Doubt, part)
		}
	}
}

func TestTimePasses(t *testing.T) {
	h := newHost(t)
	h.believed("first start", 0)
	h.pass(400 * days)
	h.believed("a year on, and suspended now and then", 0)
	h.r.Wall = h.r.Wall.In(time.FixedZone("CEST", 7200)) // daylight saving is no step
	h.pass(time.Hour)
	h.believed("another zone", 0)
	h.kill(3 * days)
	h.believed("killed and started", 0)
}

func TestSmallStepsPass(t *testing.T) {
	h := newHost(t)
	h.set(-time.Second) // a leap second
	before := h.c.Now().At
	h.pass(time.Hour)
	h.believed("leap second", 0)
	if h.c.Now().At.Before(before) {
		t.Error("trusted time went back")
	}
	h.set(2 * time.Minute)
	h.believed("time server", 0)
	h.set(-4 * time.Minute)
	h.c.Now()
	h.pass(time.Hour)
	if n := h.c.Now(); n.Doubt != "" || !n.At.Equal(h.r.Wall) {
		t.Errorf("back four minutes: %+v", n)
	}
}

func TestSmallStepsDoNotCreep(t *testing.T) {
	h := newHost(t)
	h.set(4 * time.Minute)
	h.believed("one step", 0)
	at := h.r.Wall
	h.set(4 * time.Minute)
	h.doubted("the next", at)
}

func TestBackAnHour(t *testing.T) {
	h := newHost(t)
	h.set(-time.Hour)
	h.doubted("back an hour", start)
	h.pass(2 * time.Hour)
	h.doubted("time goes on by the count", start.Add(2*time.Hour))
	h.set(time.Hour)
	h.believed("corrected", 0)
}

func TestForwardTenYears(t *testing.T) {
	h := newHost(t)
	h.pass(days)
	h.set(3652 * days)
	at := start.Add(days)
	h.doubted("forward", at)
	h.kill(time.Hour)
	h.doubted("killed", at.Add(time.Hour))
	h.reboot(0, 0)
	h.doubted("rebooted", at.Add(time.Hour+time.Minute))
	h.reboot(2*days, -3652*days) // the battery is new
	h.believed("corrected while it was off", 0)
}

func TestAJumpWithinTheLeapIsNotLaunderedByAReboot(t *testing.T) {
	h := newHost(t)
	h.set(6 * days)
	h.doubted("forward six days", start)
	h.reboot(0, 0)
	h.doubted("rebooted", start.Add(time.Minute))
	h.pass(time.Hour)
	h.doubted("an hour later", start.Add(time.Hour+time.Minute))
	h.set(-6 * days)
	h.believed("corrected", 0)
}

func TestAcceptMovesTimeButNoLock(t *testing.T) {
	h := newHost(t)
	h.set(3652 * days)
	before, after, err := h.c.Accept()
	if err != nil || !before.At.Equal(start) || !after.At.Equal(h.r.Wall) || !after.Proven.Equal(start) {
		t.Fatalf("%+v %+v %v", before, after, err)
	}
	h.believed("accepted", 3652*days)
	h.pass(30 * days)
	h.reboot(2*days, 0)
	h.pass(time.Hour)
	h.believed("and kept", 3652*days)
	h.set(-3652 * days)
	if _, after, err = h.c.Accept(); err != nil || !after.Proven.Equal(h.r.Wall) {
		t.Fatalf("back: %+v %v", after, err)
	}
	h.set(-days) // proven time goes back with a clock that is accepted, never ahead of it
	if _, after, err = h.c.Accept(); err != nil || !after.Proven.Equal(h.r.Wall) || !after.At.Equal(h.r.Wall) {
		t.Fatalf("back: %+v %v", after, err)
	}
	h.believed("back", 0)
}

func TestRebootsAreBelieved(t *testing.T) {
	h := newHost(t)
	h.reboot(3*time.Hour, 0)
	h.believed("three hours off", 0)
	h.reboot(6*days, time.Hour) // the hardware clock runs in local time
	h.set(-time.Hour)           // and the time server sets it right
	h.pass(2 * time.Hour)
	h.believed("corrected after the boot", 0)
}

func TestLongOffIsDoubted(t *testing.T) {
	h := newHost(t)
	h.reboot(30*days, 0)
	h.doubted("thirty days off", start.Add(time.Minute))
	if _, _, err := h.c.Accept(); err != nil {
		t.Fatal(err)
	}
	h.believed("accepted", 30*days)
}

func TestDeadBattery(t *testing.T) {
	h := newHost(t)
	h.pass(5 * days)
	right := h.r.Wall.Add(2 * time.Hour)
	h.reboot(0, time.Unix(60, 0).Sub(h.r.Wall))
	h.doubted("1970", start.Add(5*days+time.Minute))
	h.pass(10 * time.Minute)
	h.r.Wall = right // the time server answers
	h.believed("set right", 0)
}

func TestVirtualMachineResumes(t *testing.T) {
	h := newHost(t)
	h.pass(days)
	h.r.Wall = h.r.Wall.Add(12 * time.Hour) // paused: the count stood still
	h.doubted("paused for twelve hours", start.Add(days))
	if _, _, err := h.c.Accept(); err != nil {
		t.Fatal(err)
	}
	h.believed("accepted", 12*time.Hour)
	// An old memory image beside a newer disk: the count is behind the witness.
	if err := h.c.Save(); err != nil {
		t.Fatal(err)
	}
	h.r.Boot -= 3 * time.Hour
	h.r.Wall = h.r.Wall.Add(-3 * time.Hour)
	h.doubted("old image", start.Add(days+12*time.Hour))
	h.r.Wall = h.r.Wall.Add(4 * time.Hour)
	h.believed("its clock is set", 12*time.Hour)
}

func TestDamagedWitnessIsDoubt(t *testing.T) {
	h := newHost(t)
	if err := h.c.Save(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(h.path, []byte("rot"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.open() // its copy is good
	h.believed("one copy", 0)
	for _, p := range []string{h.path, h.path + ".copy"} {
		if err := os.WriteFile(p, []byte("rot"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := clock.Open(h.path, clock.Options{Read: func() clock.Reading { return h.r }})
	if err == nil {
		t.Error("no error")
	}
	n := c.Now()
	if n.Doubt == "" || n.Proven.After(start.AddDate(-50, 0, 0).Add(24*days)) {
		t.Errorf("%+v", n)
	}
	if _, n, err := c.Accept(); err != nil || !n.At.Equal(h.r.Wall) {
		t.Errorf("%+v %v", n, err)
	}
}

func TestEvidenceOfTheVault(t *testing.T) {
	h := newHost(t)
	h.c.Evidence(start.Add(-days))
	h.believed("an older note", 0)
	h.c.Evidence(start.Add(20 * days))
	h.doubted("a newer note", start.Add(20*days))
	h.set(21 * days)
	h.believed("set right", 0)
	h.kill(0)
	h.c.Evidence(start.Add(90 * days)) // there is a witness now
	h.believed("with a witness", 0)
}

// TestProvenIsNeverAheadOfWhatPassed plays an enemy of the wall clock: whatever he sets,
// kills and accepts within a boot, no more is proven than passed, and the small steps.
func TestProvenIsNeverAheadOfWhatPassed(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 3))
	for range 12 {
		h := newHost(t)
		passed, last := time.Duration(0), h.c.Now()
		for range 60 {
			accepted, forgotten := false, time.Duration(0)
			switch rng.IntN(5) {
			case 0:
				d := time.Duration(rng.Int64N(int64(48 * time.Hour)))
				passed += d
				h.pass(d)
			case 1:
				h.set(time.Duration(rng.Int64N(int64(20*time.Minute))) - 10*time.Minute)
			case 2:
				h.set(time.Duration(rng.Int64N(int64(8000*days))) - 4000*days)
				h.r.Wall = later(h.r.Wall, time.Unix(1e9, 0))
			case 3:
				h.kill(time.Minute)
				passed += time.Minute
				forgotten = 10 * time.Minute // small steps since the last witness
			case 4:
				if rng.IntN(4) == 0 {
					if _, _, err := h.c.Accept(); err != nil {
						t.Fatal(err)
					}
					accepted = true
				}
			}
			n := h.c.Now()
			steps := 5 * time.Minute * 60 // one tolerance for each time it was accepted
			if limit := start.Add(passed + passed/2000 + steps); n.Proven.After(limit) || n.Proven.After(n.At) {
				t.Fatalf("proven %v at %v, %v passed since %v", n.Proven, n.At, passed, start)
			}
			if !accepted && n.At.Before(last.At.Add(-forgotten)) {
				t.Fatalf("trusted time went from %v to %v", last.At, n.At)
			}
			last = n
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func TestSystemReads(t *testing.T) {
	a := clock.System()
	b := clock.System()
	if a.BootID == "" || a.BootID != b.BootID || b.Boot < a.Boot || a.Boot == 0 {
		t.Errorf("%+v, then %+v", a, b)
	}
}
