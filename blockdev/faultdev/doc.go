// Package faultdev is a Device that fails, delays, tears and forgets, around a
// Device that does not. It is for tests.
//
//	d := faultdev.New(inner)
//	d.Inject(func(r faultdev.Request) faultdev.Fault {
//		if r.Op == faultdev.Write && r.Offset == 4096 {
//			return faultdev.Fault{Err: blockdev.ErrNoSpace, DoneBytes: 512}
//		}
//		return faultdev.Fault{}
//	})
//
// After [Device.Forget] it remembers, sector by sector, what the Device below held
// at the last successful Flush, and [Device.PowerCut] puts a random choice of
// those sectors back: some unsynced writes are lost, others survive, and some
// survive in part. That is what a disk may do when its power goes.
//
// [Device.Hold] stops requests at the Device until the test lets them go, to force
// an interleaving.
//
// It passes trims, zeroes and extents through, and answers them itself where the
// Device below cannot (a trim does nothing, zeroes are written, everything is
// data). It is never FileBacked: that would lead reads past the faults.
package faultdev
