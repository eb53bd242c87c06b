// Package badgerfiles looks at the files of a Badger database before Badger does.
//
//	blockstore.Open, catalog.Open → Check, RemoveEmptyLogs → badger.Open
//
// Badger 4.9.6 must not meet a damaged file: at a wrong bit of a table it panics in a
// goroutine of its own, which ends the process and with it the disks (tools/decisions has
// the test); tables behind a damaged place of the manifest it deletes; without a manifest it
// begins an empty database. What [Check] reads Badger reads again from the page cache: the
// index of a vault of 1 TiB has some 1.1 GiB of tables.
//
// Nobody else may have the database open. The package has no state.
package badgerfiles
