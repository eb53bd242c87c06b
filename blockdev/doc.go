// Package blockdev is the contract of everything that behaves like a disk.
//
// A [Device] is a fixed-size array of bytes that can be read and written at any
// offset. Disk files, host block devices, the changed-block tracker, a frozen
// snapshot, a recovery point in the vault, a partition of another device and a
// remote NBD export are all Devices, so each part of Keelblock is written once,
// against this package, and a filter is a Device around a Device.
//
// # Place in the data path
//
//	guest → nbd/server → cbt (the tracker, a Device) → localdisk (a Device)
//	recovery point (a Device) → nbd/server, restore, volume → filesystem → FUSE
//
// The packages below blockdev/ import this one and never the other way round;
// nothing here imports another package of ours.
//
// # Words
//
//	disk      a live, writable virtual disk of the appliance
//	export    the name of a Device on NBD
//	extent    (offset, length) on a Device, in bytes
//	grain     the unit of changed-block tracking: 4 KiB, aligned
//	block     the unit of the vault: 64 KiB, aligned (package dedupe)
//	hole      a range for which no storage is allocated; it reads as zeros
//	freeze    the instant at which all disks of a cut stand still for the reader
//	cut       one freeze of a set of disks, at one instant
//
// # Optional abilities
//
// What not every Device can do is an interface of its own: [Trimmer], [Zeroer],
// [FastZeroer], [ExtentLister], [NowaitReader], [FileBacked]. They are asked for once, when a
// Device is opened or exported, and not per request. A filter implements exactly
// the abilities that it can keep for the Device below it.
package blockdev
