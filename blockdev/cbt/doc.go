// Package cbt is the changed-block tracker: a filter around a disk that knows,
// grain by grain of 4 KiB, what differs from the last committed recovery point,
// and that can freeze any number of disks at one instant.
//
// # Place in the data path
//
//	guest → nbd/server → Tracker → localdisk
//	                        └→ Frozen (what package snapshot hands to the backup)
//
// A [Tracker] is a [blockdev.Device]. Every write, trim and write of zeros marks
// its grains before it touches the disk below. [Clock] is shared by all trackers of
// a daemon; [Clock.Freeze] cuts a set of them. Package snapshot puts slots, commit
// and abort on top and is what a backup uses.
//
//	c := cbt.NewClock()
//	t, err := cbt.Open(disk, c, cbt.Options{DiskID: id, MapPath: m, SavePath: s, SpillPath: sp})
//	t.WriteAt(p, 0)                         // the guest
//	t.Changed(func(e blockdev.Extent) bool { … })
//	t.Close()                               // the clean stop: saves the map
//
// # Durability
//
// The map lives in a file on tmpfs, so that it survives the death of the process
// exactly and vanishes with the kernel. A clean stop saves it beside the data. In
// every other case, and in any doubt, [Tracker.Tracking] says [TrackingCompare] and
// the next backup compares hashes: of all that [Tracker.Doubtful] yields. After a
// power cut these are the regions of 16 MiB that the intent file beside the data has,
// where a region is entered, durably, before its first write. FORMAT.md has the three
// files to the byte; freeze.go, intent.go and resize.go begin with their protocols.
//
// # Locks, in the order in which they are taken
//
//	stripes    RW locks over 256 KiB of a disk, by index; held over the data call, since
//	           that is what they order: a write against a copy-before-write. Each counts
//	           the writes that are registered, too
//	life       of each disk, by disk id: a change of its freeze word. It is held while a
//	           freeze ends or a Baseline is taken, which waits for writes under way: until
//	           then no other change of the word may come
//	Clock.mu   one freeze at a time
//	Frozen.use a capture against commit and abort
//	maps       readers of whole maps against merge and clear
//	header     base points, trust and the header page
//	intents    the one writer of the intent file; held over its syncs
//	leaves     of each map: which pages of the map file are backed
//
// The guest's path takes stripes and, once per 128 MiB and epoch, leaves. It does
// not allocate. The first write of a region gives its stripes back before it takes
// intents, and waits for a sync. A Resize takes life before all stripes, which is safe as
// nobody waits for life with a stripe held.
package cbt
