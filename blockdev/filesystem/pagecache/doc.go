// Package pagecache reads the metadata of a volume in pages and keeps them, for the
// readers whose format has no structure larger than a directory: fat, exfat, ntfs.
//
//	volume → pagecache.Cache → fat.FS (contents of files go past the pages)
//
// Beside the pages a [Cache] keeps what a reader made of them, under a [Key]: a
// parsed directory, the places of a file. Both share one limit of bytes; what was
// used longest ago goes first.
//
// All methods may be called from any number of goroutines; the only lock is not held
// while the volume is read.
package pagecache
