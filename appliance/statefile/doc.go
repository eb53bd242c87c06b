// Package statefile keeps small states of the appliance in plain files that
// a person can read and that a torn write or a flipped bit cannot falsify.
//
// The list of live disks and the identity of the site must be readable before any
// database is opened, and when none can be opened. Each is one JSON document under
// a line with magic, version, serial and SHA-256 (see FORMAT.md), kept twice: FILE
// and FILE.copy. [Save] replaces the first, then the second, each by write, fsync,
// rename and fsync of the directory, so at every instant one of them is whole.
// [Load] takes the whole one with the higher serial and says whether the other was
// damaged.
//
// A file has one writer; the caller serialises Save.
package statefile
