package cbt

import "github.com/keelblock/keelblock/blockdev"

var _ blockdev.FastZeroer = (*Tracker)(nil)

// ZeroesFast passes through; a Device below that cannot say does not. Marks and copies
// of what a snapshot still needs cost zeroes no more than they cost a write.
func (t *Tracker) ZeroesFast(mayPunch bool) bool {
	f, ok := t.dev.(blockdev.FastZeroer)
	return ok && f.ZeroesFast(mayPunch)
}
