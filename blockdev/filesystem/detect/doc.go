// Package detect finds out which file system a volume holds and opens the reader
// for it.
//
//	volume (a partition) → detect.Open → filesystem.FS → FUSE, download
//
// It is the one place that knows all readers. A volume that no reader can open is
// refused with filesystem.ErrUnknown, and the message names what is there if its
// signature is known ("xfs", "LUKS", "swap space", ...).
package detect
