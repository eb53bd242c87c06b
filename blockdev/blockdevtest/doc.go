// Package blockdevtest is the conformance suite of blockdev.Device.
//
// Every implementation and every wrapper runs it, also at the far end of an NBD
// connection:
//
//	func TestConformance(t *testing.T) {
//		blockdevtest.Run(t, func(t *testing.T, sizeBytes int64) blockdev.Device { … })
//	}
//
// [Run] is for Devices that can be written, [RunReadOnly] for those that cannot.
// The optional abilities of blockdev are tested where the Device has them. The
// suite closes each Device that it was given.
//
// The random part compares the Device with a plain byte slice. Its seed is
// printed when it fails; BLOCKDEVTEST_SEED=N repeats it.
package blockdevtest
