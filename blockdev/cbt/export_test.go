package cbt

import (
	"fmt"
	"time"
)

// WithGap makes every freeze stand still for gap after it has stored this disk's word.
// Tests of package cbt_test need it: they cut through package snapshot, which imports
// this one.
func WithGap(o Options, gap time.Duration) Options {
	o.hooks = func(h hook, _ *Tracker) {
		if h == hookWordsStored {
			time.Sleep(gap)
		}
	}
	return o
}

// AcceptBase makes p, which is one of Bases, the base and forgets the candidate. The
// caller found it committed. Backups need no such step: the cut after names its base. The list stays as it is: it holds for both.
func (t *Tracker) AcceptBase(p PointID) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.IsZero() || p != t.header.base && p != t.header.candidate {
		return fmt.Errorf("accept base of disk %q: point %x is neither base nor candidate", t.opts.DiskID, p[:8])
	}
	t.header.base, t.header.candidate = p, PointID{}
	return t.store()
}
