package btrfs

import "github.com/keelblock/keelblock/blockdev/filesystem"

// replayLog tells the state of the volume.
func (f *FS) replayLog() filesystem.State {
	if f.super.logRoot.logical == 0 {
		return filesystem.State{Clean: true}
	}
	return filesystem.State{Reason: "its log, which has what was synced since the last commit, is not replayed; what is shown is the state as of that commit"}
}
