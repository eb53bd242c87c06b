package cbt

import "time"

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
