package clock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/appliance/statefile"
)

// DefaultLeap is how far ahead of the last witness a new boot's wall clock may be.
const DefaultLeap = 7 * 24 * time.Hour

const (
	tolerance    = 5 * time.Minute
	drift        = 2000
	settle       = 10 * time.Minute
	saveInterval = 5 * time.Minute
	tick         = time.Second
	kind         = "clock"
)

// Options of a Clock.
type Options struct {
	// Leap: see DefaultLeap. 0: that.
	Leap time.Duration
	// Read is the host's clocks; nil: System.
	Read func() Reading
	// Alert tells, or with text "" takes back, that the wall clock is in doubt; nil: only
	// the log.
	Alert  func(text string)
	Logger *slog.Logger
}

// Time is one look at the clock.
type Time struct {
	// At is the trusted time. It never goes back by itself.
	At time.Time
	// Proven is what surely passed: what locks are compared with.
	Proven time.Time
	// Doubt says why the wall clock is not believed, with the next step; "": it is. In
	// doubt nothing expires and nothing is purged.
	Doubt string
}

// Clock is trusted time. All methods may be called from any number of goroutines.
type Clock struct {
	o     Options
	rules rules
	path  string

	mu     sync.Mutex // also held over the writing of the witness: it is small, and in order
	s      state
	fresh  bool // there was no witness
	serial uint64
	saved  time.Duration // time since boot of the last save
}

// Open reads the witness at path. One that cannot be read is an error of the second
// result only: the Clock is usable, and in doubt until it is accepted.
func Open(path string, o Options) (*Clock, error) {
	if o.Leap == 0 {
		o.Leap = DefaultLeap
	}
	if o.Read == nil {
		o.Read = System
	}
	if o.Alert == nil {
		o.Alert = func(string) {}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Clock{o: o, path: path, rules: rules{tolerance: tolerance, drift: drift, leap: o.Leap, settle: settle}}
	l, err := statefile.Load(path, kind, &c.s)
	if err == nil && l.Serial > 0 && c.s.BootID == "" {
		err = fmt.Errorf("%s: %w", path, statefile.ErrDamaged)
	}
	if err != nil {
		// Nothing is known of the time before, so nothing is proven until a person says so.
		c.s = state{BootID: "unknown", At: time.Unix(1, 0).UTC(), Proven: time.Unix(1, 0).UTC()}
		err = fmt.Errorf("read the clock's witness: %w", err)
	}
	c.serial, c.fresh = l.Serial, err == nil && l.Serial == 0
	c.mu.Lock()
	defer c.mu.Unlock()
	c.s = c.s.next(c.o.Read(), c.rules)
	c.tell(false) // a doubt of the last run is news to this one
	return c, errors.Join(err, c.save())
}

// look takes a reading and tells of a doubt that began or ended. mu is held.
func (c *Clock) look() {
	was := c.s.InDoubt
	c.s = c.s.next(c.o.Read(), c.rules)
	c.tell(was)
}

// tell makes known that a doubt began or ended. mu is held.
func (c *Clock) tell(was bool) {
	if c.s.InDoubt == was {
		return
	}
	if c.s.InDoubt {
		c.o.Alert(c.doubt())
		c.o.Logger.Error("the clock is in doubt", "wall", c.s.Wall, "trusted", c.s.At)
	} else {
		c.o.Alert("")
		c.o.Logger.Warn("the clock is believed again", "wall", c.s.Wall, "trusted", c.s.At)
	}
	if err := c.save(); err != nil {
		c.o.Logger.Error("the clock's witness is not saved", "error", err)
	}
}

func (c *Clock) doubt() string {
	if !c.s.InDoubt {
		return ""
	}
	return fmt.Sprintf("the clock says %s, and by what this appliance has counted it is %s: nothing expires, is purged or unlocked; set the clock right, or, when it is right, keelblock vault accept-clock",
		stamp(c.s.Wall), stamp(c.s.At))
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

// Now is the time now.
func (c *Clock) Now() Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.look()
	return Time{At: c.s.At.UTC(), Proven: c.s.Proven.UTC(), Doubt: c.doubt()}
}

// Evidence is a time that has surely come, as a note of the vault states it. It counts
// only when there was no witness, and then puts a clock that is behind it in doubt.
func (c *Clock) Evidence(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.fresh || !c.s.At.Add(tolerance).Before(t) {
		return
	}
	was := c.s.InDoubt
	c.s.At, c.s.Proven = t, t
	c.s.Settled, c.s.OpenAt, c.s.OpenProven, c.s.OpenBoot = false, t, t, c.s.Boot
	c.s = c.s.next(c.o.Read(), c.rules)
	c.tell(was)
}

// Accept takes the wall clock for right, because a person says so. It returns the time
// before and after.
func (c *Clock) Accept() (before, after Time, err error) {
	before = c.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.s
	c.s = c.s.accept(c.o.Read())
	if err := c.save(); err != nil { // durable before its effect
		c.s = was
		return before, before, err
	}
	c.fresh = false
	c.tell(was.InDoubt)
	c.o.Logger.Warn("the clock was accepted", "trusted", was.At, "wall", c.s.Wall)
	return before, Time{At: c.s.At.UTC(), Proven: c.s.Proven.UTC()}, nil
}

// Run looks at the clock every second and keeps the witness, until ctx ends.
func (c *Clock) Run(ctx context.Context) error {
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return c.Save()
		case <-t.C:
			c.mu.Lock()
			c.look()
			if (c.s.Boot - c.saved).Abs() >= saveInterval {
				if err := c.save(); err != nil {
					c.o.Logger.Error("the clock's witness is not saved", "error", err)
				}
			}
			c.mu.Unlock()
		}
	}
}

// Save makes the witness of now durable.
func (c *Clock) Save() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.look()
	return c.save()
}

// save writes the witness. mu is held.
func (c *Clock) save() error {
	c.serial++
	c.saved = c.s.Boot // also when it fails: the next try is no sooner
	if err := statefile.Save(c.path, kind, c.serial, c.s); err != nil {
		return fmt.Errorf("save the clock's witness: %w", err)
	}
	return nil
}

// System reads the clocks of this host.
func System() Reading {
	r := Reading{Wall: time.Now().UTC().Round(0), BootID: "unknown boot"}
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) == nil {
		r.Boot = time.Duration(ts.Nano())
	}
	if b, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		r.BootID = strings.TrimSpace(string(b))
	}
	return r
}
