package ingest_test

import (
	"time"

	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// manifest is a valid one without disks.
func manifest() *recoverypoint.Manifest {
	return &recoverypoint.Manifest{
		MachineID: recoverypoint.ID{1}, MachineName: "web", CutID: recoverypoint.ID{2}, CutMachines: []recoverypoint.ID{{1}},
		Generation: recoverypoint.Generation{Number: 1, ID: recoverypoint.ID{3}}, Sequence: 1,
		FrozenAt:    time.Date(2026, 11, 21, 19, 30, 0, 0, time.UTC),
		Consistency: recoverypoint.Crash, Tracking: recoverypoint.TrackingFull,
	}
}
