package cbt

import (
	"os"
	"testing"
	"time"
)

// configurations of the model. Of the freeze alone: one disk of two blocks; the same
// with a kill and a second life; two disks in cuts of their own, one cut while the other
// is captured; two overlapping groups, {A, B} and {B}, with dependent writes to A and
// then B. With the intent map, and the power cut at every state: one disk of two regions,
// and of one; the same disk cut again while its first cut still clears; two overlapping
// groups; and a power cut with a kill, or with another power cut, of the recovery and of
// the life after it. full is 59 410 188 states, all hold.
func configurations(full bool) map[string]model {
	if full {
		return map[string]model{
			"one disk":      {perDisk: 2, writes: [2]uint8{2, 2}, masks: [2]uint8{1, 0}, freezes: [2]uint8{2, 0}, fails: 1},
			"killed":        {perDisk: 2, writes: [2]uint8{2, 1}, masks: [2]uint8{1, 0}, freezes: [2]uint8{2, 0}, kills: 1},
			"two groups":    {perDisk: 1, writes: [2]uint8{1, 1}, masks: [2]uint8{1, 2}, freezes: [2]uint8{1, 1}, fails: 1},
			"overlap":       {perDisk: 1, writes: [2]uint8{2, 1}, masks: [2]uint8{3, 2}, freezes: [2]uint8{1, 1}, sequence: true},
			"power":         {perDisk: 2, writes: [2]uint8{2, 1}, masks: [2]uint8{1, 0}, freezes: [2]uint8{1, 0}, intents: true, coarse: true, powerCuts: 1},
			"power, fine":   {perDisk: 1, writes: [2]uint8{1, 1}, masks: [2]uint8{1, 0}, freezes: [2]uint8{2, 0}, intents: true, powerCuts: 1},
			"one region":    {perDisk: 2, writes: [2]uint8{2, 1}, masks: [2]uint8{1, 0}, freezes: [2]uint8{1, 0}, intents: true, oneRegion: true, coarse: true, powerCuts: 1},
			"cut again":     {perDisk: 1, writes: [2]uint8{2, 1}, masks: [2]uint8{1, 1}, freezes: [2]uint8{1, 1}, intents: true, coarse: true, powerCuts: 1},
			"killed, power": {perDisk: 1, writes: [2]uint8{1, 1}, masks: [2]uint8{1, 0}, freezes: [2]uint8{2, 0}, intents: true, coarse: true, kills: 1, powerCuts: 1},
			"groups, power": {perDisk: 1, writes: [2]uint8{1, 1}, masks: [2]uint8{3, 2}, freezes: [2]uint8{1, 1}, intents: true, coarse: true, powerCuts: 1},
			"recovery":      {perDisk: 2, writes: [2]uint8{1, 1}, masks: [2]uint8{1, 0}, freezes: [2]uint8{1, 0}, intents: true, coarse: true, kills: 1, powerCuts: 2},
		}
	}
	return map[string]model{
		"one disk":      {perDisk: 2, writes: [2]uint8{2, 1}, masks: [2]uint8{1, 0}, freezes: [2]uint8{2, 0}, fails: 1},
		"killed":        {perDisk: 2, writes: [2]uint8{1, 1}, masks: [2]uint8{1, 0}, freezes: [2]uint8{2, 0}, kills: 1},
		"two groups":    {perDisk: 1, writes: [2]uint8{2, 0}, masks: [2]uint8{1, 2}, freezes: [2]uint8{1, 1}, fails: 1},
		"overlap":       {perDisk: 1, writes: [2]uint8{2, 0}, masks: [2]uint8{3, 2}, freezes: [2]uint8{1, 1}, sequence: true},
		"power":         {perDisk: 2, writes: [2]uint8{1, 1}, masks: [2]uint8{1, 0}, freezes: [2]uint8{1, 0}, intents: true, coarse: true, powerCuts: 1},
		"one region":    {perDisk: 2, writes: [2]uint8{1, 1}, masks: [2]uint8{1, 0}, freezes: [2]uint8{1, 0}, intents: true, oneRegion: true, coarse: true, powerCuts: 1},
		"cut again":     {perDisk: 1, writes: [2]uint8{1, 1}, masks: [2]uint8{1, 1}, freezes: [2]uint8{1, 1}, intents: true, coarse: true, powerCuts: 1},
		"groups, power": {perDisk: 1, writes: [2]uint8{1, 0}, masks: [2]uint8{3, 2}, freezes: [2]uint8{1, 1}, intents: true, coarse: true, powerCuts: 1},
		"killed, power": {perDisk: 1, writes: [2]uint8{1, 1}, masks: [2]uint8{1, 0}, freezes: [2]uint8{1, 0}, intents: true, coarse: true, kills: 1, powerCuts: 1},
		"recovery":      {perDisk: 2, writes: [2]uint8{1, 0}, masks: [2]uint8{1, 0}, freezes: [2]uint8{1, 0}, intents: true, coarse: true, kills: 1, powerCuts: 2},
	}
}

// TestModelHolds: MODEL=full takes the larger configurations, some minutes.
func TestModelHolds(t *testing.T) {
	if raceEnabled {
		t.Skip("the model has one goroutine; it runs without -race")
	}
	for name, m := range configurations(os.Getenv("MODEL") == "full") {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			states, violation, trace := m.search()
			if violation != "" {
				t.Fatalf("%s after %d states: %v", violation, states, trace)
			}
			t.Logf("%d states in %v, all hold", states, time.Since(start).Round(time.Millisecond))
		})
	}
}

// TestModelFindsSeededBugs: a model that lets a bug pass proves nothing about the
// protocol without it.
func TestModelFindsSeededBugs(t *testing.T) {
	if raceEnabled {
		t.Skip("the model has one goroutine; it runs without -race")
	}
	for _, tc := range []struct {
		bug    seededBug
		config string
		name   string
	}{
		{bugBitAfterData, "one disk", "bit after data"},
		{bugNoRecheck, "one disk", "no second look after registering"},
		{bugNotMerged, "one disk", "frozen map not merged back"},
		{bugMergeBeforeDrain, "one disk", "merge before the drain"},
		{bugLoserDoesNotWait, "one disk", "the loser does not wait"},
		{bugPendingTrustedInTransition, "one disk", "pending trusted in the transition"},
		{bugClearBeforeCommit, "one disk", "clear before commit"},
		{bugClearBeforeHeader, "one disk", "clear before the header names the base"},
		{bugClaimBeforeRead, "one disk", "capture claims before it reads"},
		{bugCopyAfterData, "one disk", "copy after the overwrite"},
		{bugNoWaitForPreservers, "one disk", "end does not wait for preservers"},
		{bugAbortedCutCommits, "one disk", "an aborted cut is committed"},
		{bugRecoveryForgetsFrozen, "killed", "recovery takes the live map only"},
		{bugPreserveUnderSharedLock, "one disk", "preserve under a shared lock"},
		{bugSharedPastExclusive, "one disk", "a shared holder beside the exclusive one"},
		{bugEpochBeforeWords, "overlap", "epoch before the words"},
		{bugDiskAfterDisk, "overlap", "one epoch per disk"},
		{bugNoIntent, "power", "no intent"},
		{bugIntentNotSynced, "power", "intent not synced"},
		{bugIntentClearBeforeCommit, "power", "region cleared before the commit"},
		{bugIntentClearBeforeBase, "power", "region cleared before the intent file names the base"},
		{bugClearWhatTheNewEpochWrote, "one region", "region cleared while the new epoch wrote it"},
		{bugClearWhatIsFrozen, "cut again", "region cleared while it is frozen again"},
		{bugClearWithoutDataSync, "power", "region cleared without a sync of its data"},
		{bugFlushBeforeDrain, "power", "data synced before the drain"},
		{bugClearWithoutHandshake, "power", "region cleared without the handshake"},
		{bugRecoveryTrustsPageCache, "killed, power", "recovery takes the page cache for durable"},
		{bugRecoveryForgetsDoubt, "recovery", "a kill forgets what is in doubt"},
		{bugRecoveryEmptiesIntents, "recovery", "recovery begins an empty intent file"},
		{bugDoubtfulBeforeBaseline, "recovery", "asked for the doubtful regions before the baseline"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := configurations(false)[tc.config]
			m.bug = tc.bug
			states, violation, trace := m.search()
			if violation == "" {
				t.Fatalf("not found in %d states", states)
			}
			t.Logf("found after %d states and %d steps: %s", states, len(trace), violation)
		})
	}
}
