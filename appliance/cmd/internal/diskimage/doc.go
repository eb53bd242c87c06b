// Package diskimage copies a disk to a file and a file to a disk: raw and sparse, or
// as qcow2.
//
//	restore file, disk export:  Device → WriteRaw | WriteQCOW2 → file
//	disk import:                raw file → ReadRaw → Device
//
// Many requests are in flight at once, since the Device is a connection. What reads as
// zeros is neither read nor written, so that a sparse disk stays sparse. [Create]
// gives a file that appears under its name only when it is whole.
//
// The qcow2 that is written is version 3 without backing file, encryption,
// compression or snapshots, with clusters of 64 KiB, as in the document
// docs/interop/qcow2.txt of QEMU. It is written in one pass to a file that can be
// seeked.
package diskimage
