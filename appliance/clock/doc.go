// Package clock is the time that deletions go by: a clock set forward or back must not
// expire a recovery point, nor bring one back, without anybody being told.
//
//	wall clock, CLOCK_BOOTTIME, boot id → Clock.Now → Time{At, Proven, Doubt}
//	Time → expiry (nothing while in Doubt), notes (At), locks (Proven)
//
// The wall clock alone proves nothing: an operator sets it, a dead battery begins in 1970,
// a virtual machine resumes an old snapshot. But the kernel counts the time since boot,
// suspended time included, and nobody can set that. So a witness on disk says what both
// showed when they were last seen, and [Clock.Now] judges by it.
//
// # Within a boot
//
// The wall clock must go as the count goes. Small steps pass, as time servers and leap
// seconds make them: five minutes in sum since the boot was believed, and a two-thousandth
// of the time since. A larger step, either way, is a doubt: trusted time goes on by the
// count, and the wall clock is asked again each time. When it is back, the doubt ends.
//
// # Across boots
//
// How long the host was off nobody counted. The wall clock is believed when it is not
// behind the last witness and at most Options.Leap (7 days) ahead of it; for the first ten
// minutes it may be corrected within that. A clock that was in doubt when last seen is not
// believed because of a reboot: it has to have been set back meanwhile.
//
// # Accept
//
// A person may say that the wall clock is right ([Clock.Accept]). That moves Time.At. It
// never moves Time.Proven forward, with which locks are compared: a clock set forward,
// accepted or not, unlocks nothing. Time that passed while the host was off for longer
// than the leap is lost for locks; they hold that much longer.
//
// # The witness
//
// A state file, written every five minutes, at each doubt and its end, and at a clean stop.
// Without one (the first start) the wall clock is believed, unless the vault's notes state
// a later time ([Clock.Evidence]).
package clock
