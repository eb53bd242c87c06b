// Package decisions has no code, only tests: each reproduces a fault of a library
// around which this project is built the way it is. A test passes while the fault
// exists, and fails with "the decision falls" once the library no longer has it, so
// that the decision is taken again.
//
//   - Badger v4 holds index, references and catalog, but no payload, and only with
//     SyncWrites: DB.Sync is no durability barrier, and the value log loses live
//     values, or reads them as empty, when one bit of it is wrong. An index's tables are
//     checked before Badger opens them, because a damaged one ends the process.
//   - Of go-nbd only the protocol's definitions are used: its server waits for a
//     payload that TRIM does not have.
//
// The power cut needs root, a loop device and ext4, and is skipped without.
package decisions
