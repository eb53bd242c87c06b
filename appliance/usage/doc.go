// Package usage says what protection takes: of each machine the size of what is
// protected and what its recovery points store, of each vault the whole.
//
//	vaults (recoverypoint.Index.Usage) + machines → Report → API
//
// # What is counted
//
// The protected size of a machine is the storage that its disks occupied at its newest
// backup, without temporary and excluded ones: a disk of 64 GB of which the guest has
// used 10 counts 10. It is taken at the cut, so that it does not change between backups,
// nor after the machine or its disks are gone.
//
// What points store is counted in records of packs, exactly; see package recoverypoint.
// Unique bytes of all points plus the shared ones, once, are the vault's live bytes.
//
// # States
//
// A machine is charged from its first successful backup on, at the size of the newest,
// and until its last point is gone for good, also after its protection has ended.
package usage
