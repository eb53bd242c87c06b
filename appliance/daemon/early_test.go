package daemon

import (
	"testing"
	"time"

	"github.com/keelblock/keelblock/appliance/vault"
)

// A collection before its time has something to do, and does not follow one that failed.
func TestMayCollect(t *testing.T) {
	for _, tt := range []struct {
		name             string
		freeable, failed bool
		last             vault.Outcome
		since            time.Duration
		want             bool
	}{
		{"nothing was purged and no backup failed", false, false, "", time.Hour, false},
		{"the first time", true, false, "", time.Hour, true},
		{"low for a while", true, false, vault.CollectionCompleted, time.Minute, false},
		{"a backup failed after a purge", true, true, vault.CollectionCompleted, time.Second, true},
		{"a backup failed, and nothing was purged", false, true, vault.CollectionCompleted, time.Minute, false},
		{"what failed backups left", false, true, vault.CollectionCompleted, time.Hour, true},
		{"the last one failed just now", true, true, vault.CollectionFailed, time.Minute, false},
		{"the last one failed long ago", true, true, vault.CollectionFailed, time.Hour, true},
		{"the last one had no room", true, true, vault.CollectionNoSpace, time.Minute, false},
	} {
		if got := mayCollect(tt.freeable, tt.failed, vault.LastCollection{Outcome: tt.last}, tt.since); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}
