// Package verify proves that a recovery point can be read back: it reads every block
// and every node that the point's manifest reaches, from the store, past all caches.
//
// # Place in the data path
//
//	manifest → hash tree → Store.Get of each node and block → Report
//
// [Point] does not stop at the first damage. The [Report] names every bad block with
// its disk, offset, digest and, where the store knows it, its pack, so that an
// operator sees what is lost and a healer what to fetch. A node that cannot be read
// is reported with the range of the disk below it.
//
// Blocks are read and hashed on all cores. Memory does not depend on the point's
// size. Nothing is changed and nothing is written.
package verify
