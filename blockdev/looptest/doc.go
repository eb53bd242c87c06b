// Package looptest gives a test a file system of its own, on a loop device, and
// cuts its power. It is for tests.
//
//	fs := looptest.New(t, "ext4", 64<<20)
//	… write below fs.Dir …
//	fs.CutPower()  // what was not synced is lost
//	fs.Remount()   // the reboot: the journal is replayed
//
// A kill of the process cannot see a missing sync, since the page cache lives on; a
// power cut of this kind does. It does not forget what the file system has sent to
// its device, so a missing flush of the device itself stays unseen.
package looptest
