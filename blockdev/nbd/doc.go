// Package nbd is the codec of the Network Block Device protocol: constants,
// headers and replies, without any I/O.
//
// The source of truth is the protocol document of the NBD project (doc/proto.md);
// constants keep its spelling in Go case and name its section. Those that
// github.com/pojntfx/go-nbd defines are taken from there, the others stand beside
// them. Nothing else of go-nbd is used: its server never advertises FLUSH (a guest
// then takes the disk for write-through and never flushes), answers a read with
// success before it has read, lets a write past the end grow the file, and waits
// for a payload that never comes on TRIM and WRITE_ZEROES.
//
// # Place in the data path
//
//	guest → nbd/server → cbt → localdisk
//	nbd/client (a blockdev.Device) → any NBD server
//
// Both use this package. All integers on the wire are big endian. Requests and replies
// have a compact and an extended form, each with its own types and functions.
//
// # Use
//
// Append functions add one message to a byte slice, Parse functions read one from
// the start of a slice of the length that they name. Neither keeps the slice.
// Parse functions accept any bytes: they check, bound and never panic.
package nbd
