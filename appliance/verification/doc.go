// Package verification reads vaults back: on demand, and by itself so that each point is
// read at least once in a period; it heals what can be healed, and keeps the locations
// of vaults complete.
//
//	API → Engine.Start        (one point, or all)
//	Engine.Run → jobs         (points that are due; locations that came back)
//
// # A run
//
// A run takes its points one after the other; scheduled, the one that was verified
// longest ago first. A block that several points share is read once. After each point
// what was found is saved in verify.json, so that a run that a restart interrupts goes
// on with the points that it had not come to. A run over a whole vault ends with its
// copies: every pack at every location.
//
// # Damage
//
// The store has asked every location already when a block or node is reported bad. A
// block of the newest point of a machine is then read from the live disk: when the guest
// has not changed it since, its digest tells that it is the one, and it is stored again.
// What cannot be healed is put into quarantine, where it is not held: the next backup
// that meets the content stores it anew.
package verification
