// Package lru keeps what a reader of a file system made of a volume's metadata: the
// values that were used most recently, up to a number of bytes.
//
//	ext, xfs → lru.Cache ← pagecache ← fat, exfat, ntfs
//
// A volume does not change while it is read, so a value is put in once and never
// replaced. All functions may be called from any number of goroutines.
package lru
