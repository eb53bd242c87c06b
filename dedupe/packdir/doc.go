// Package packdir keeps the pack files of a vault in one to three folders, its
// locations, which should be on different disks.
//
//	blockstore → Set.Create → File (written and synced at every location)
//	blockstore → Set.OpenRead, Set.List, Set.Remove
//
// # One write, all copies
//
// A [File] is a pack.File whose operations happen at every location at once and have
// happened when all are done. What Sync acknowledges is durable at every location
// that is in.
package packdir
