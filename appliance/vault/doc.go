// Package vault is the appliance's vaults: each a block store with its points, opened
// under a guard so that it can never take the disks down.
//
//	backup → Set.Use → Store, Points       (writes a point into one vault)
//	restore, readers → Set.Find, Set.Pin   (reads points, in whichever vault)
//
// A [Set] has the vault named default, which exists from the first start, and those that
// were made since; vaults.json lists them. Vaults share nothing: each has its own key
// domain, so that a block of two vaults is stored in both. A vault belongs to a site, and
// owner.json in its folder says to which.
//
// [Vault] has three states: opening, open, closed with a reason and a next step.
// [Vault.Use] waits while it is opening and is ErrUnavailable when it is closed.
//
// # The guard
//
// Badger dies by SIGBUS on a full file system and may panic on a damaged table; a
// start that always died would take the disks with it. So a [Marker] is written
// before a vault is opened, the catalog with the default one, and removed after. A start that finds the
// marker of two dead ones leaves the vault closed and serves disks; rebuilding the
// index from the packs is the way out. A [Ballast] file beside them is given up
// first when the file system is full at a start or a stop, and before a deletion or a
// collection is refused for want of room; it is made again after a collection, or when the
// daemon sees room for it. A vault on another file system than the data folder's has one of
// its own.
//
// # A folder that is empty
//
// vaults.json has the id of each vault that was open. Its folder found empty is not a first
// start: most likely a file system is not mounted, and a new vault there would take the
// backups and hide the points. So the vault stays closed, its reason is [ErrGone], until
// something is in the folder again, until [Vault.RebuildIndex] makes it again from another
// location, or until somebody says with [Set.Create] that it is to be made anew.
//
// # Collections
//
// [Handle.Collect] frees what no point needs (package collection); collection.json in the
// vault's folder says how the last one went, also one that a kill ended. The daemon makes
// one a day, and one before its time when a backup met a full vault or less than twice the
// reserve is free: if points were purged since the last one, or failed backups may have
// left something, and at most every quarter of an hour while that does not help.
//
// A point that cannot be read stops them, as what it needs is not known. Before each, and at
// each verification, it is read again: a location may have come back. [Set.Delete] gives it
// up, by its id, unless it is held or locked.
//
// # Pins
//
// [Set.Pin] keeps a point from being purged while a reader, export, restore or
// verification uses it. Whether a point is pinned is asked, and its purge noted, without
// a pin in between: who pins meanwhile waits and is refused. A soft-deleted point stays
// readable. The base of a disk's map is pinned in another way: when it was purged, the
// next backup compares hashes with another point, or reads the whole disk.
package vault
