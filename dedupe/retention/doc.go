// Package retention decides which recovery points of a machine are kept and which have
// had their time. It is a pure function of points, rules and a time: it reads no clock
// and no store, and deletes nothing.
//
//	recoverypoint.Index → []Point ─┐
//	Rules (policy, prune) ─────────┼→ Apply → []Decision → expiry, prune, dry runs
//	trusted time ──────────────────┘
//
// # What the rules mean
//
// They are those of restic and Proxmox Backup Server. Each rule of N keeps the newest
// point of each of the N newest hours, days, ISO weeks, months or years in which there
// is a point; a period without one does not count. Last keeps the N newest. A point is
// kept when any rule keeps it: the rules do not share or take from each other, so that
// another rule, or a higher number, never makes a point expire. Rules that are all zero
// keep everything.
//
// "Newest" goes by the order of the points, which is that of (generation, sequence), and
// not by the clock: a point whose clock was wrong takes the slot of the period that it
// claims, and no other point's.
//
// Periods are those of Rules.TimeZone. A day is a local date, 23 to 25 hours long. The
// hour that a zone repeats in autumn is two hours, since they differ in their offset.
//
// # What no rule decides
//
//   - The newest point of a machine never expires.
//   - A point with RetainUntil, made by hand for a time, is kept until then and expires
//     after; it takes no slot, whatever the rules say.
//   - A point under Protection (held, locked, in use) is kept; its reason says that the
//     rules would let it go.
//
// # An example
//
//	rules := retention.Rules{Last: 3, Daily: 7, Weekly: 4}
//	decisions, err := retention.Apply(points, rules, now)
package retention
