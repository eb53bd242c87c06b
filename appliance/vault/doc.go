// Package vault is the appliance's vault: a block store with its points, opened
// under a guard so that it can never take the disks down.
//
//	backup → Vault.Use → Store, Points     (writes a point)
//	restore, readers → Vault.Use, Pin      (reads points)
//
// [Vault] has three states: opening, open, closed with a reason and a next step.
// [Vault.Use] waits while it is opening and is ErrUnavailable when it is closed.
//
// # The guard
//
// Badger dies by SIGBUS on a full file system and may panic on a damaged table; a
// start that always died would take the disks with it. So a [Marker] is written
// before catalog and vault are opened and removed after. A start that finds the
// marker of two dead ones leaves the vault closed and serves disks; rebuilding the
// index from the packs is the way out. A [Ballast] file beside them is given up
// first when the file system is full at a start.
//
// # Pins
//
// [Vault.Pin] keeps a point from being purged while a reader, export, restore or
// verification uses it. A soft-deleted point stays readable. The base of a disk's
// map is pinned in another way: when it was purged, the next backup compares
// hashes with another point, or reads the whole disk.
package vault
