// Package catalog keeps the appliance's small durable collections (machines, jobs)
// in one Badger database. It is generic: it knows keys and JSON documents and no
// type of the domain.
//
//	db, err := catalog.Open(dir, catalog.Options{})
//	machines := catalog.NewCollection[Machine](db, "machine")
//	err = machines.Put("web", m)
//	m, ok, err := machines.Get("web")
//
// The catalog holds nothing that the recovery points need: with the catalog lost,
// disks are served and points are read, and machines are made anew.
//
// # Durability and damage
//
// Badger runs with SyncWrites, because its Sync is no barrier in 4.9.6 (measured: a
// power cut after a memtable rotation lost 9 642 of 75 000 acknowledged keys;
// with SyncWrites none), and with an empty value log. Each value carries a version
// and a CRC-32C of key and document, as a missing value of Badger can read as empty
// without an error. See FORMAT.md.
//
// All methods may be called from any number of goroutines.
package catalog
