// Package expiry lets recovery points go when their time is over, and nothing sooner.
//
//	vault.Set → points ─────────┐
//	machine.Set → Rules ────────┼→ retention.Apply → NoteDelete → … → NotePurge → collection
//	clock.Clock → trusted time ─┘
//
// A pass, once a minute, does two things in each open vault. A point that the rules of its
// machine do not keep, or whose own time has passed, is soft-deleted: it can be undeleted
// for the vault's soft-delete period. A soft-deleted point whose period is over is purged,
// and collection may free what only it needed. Both are notes, durable before they take
// effect; a kill in between leaves the point as it was, and the next pass goes on.
//
// # What is never touched
//
// The newest point of a machine in each vault; a point that is held, locked by the
// vault's immutability, or used by a reader, export, restore or cursor; a machine without
// rules. While the clock is in doubt (package clock) there is no pass at all.
//
// A pass that has something to do is a job, kind Expiry, whose result has one line for
// each point: what became of it and why. What cannot be written is an alert, until a
// pass succeeds.
//
// [Engine.Prune] applies rules to one machine at once, or only says what they would do.
package expiry
