package disks

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/cbt"
	"github.com/keelblock/keelblock/blockdev/localdisk"
)

// Role says whether a disk is protected.
type Role string

// The roles.
const (
	// Data disks are in every point of their machine.
	Data Role = "data"
	// Temporary disks (swap, scratch) are excluded, and points record that.
	Temporary Role = "temporary"
)

// Entry is a disk as the list has it.
type Entry struct {
	// ID is random, 32 hexadecimal digits, never reused.
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	SizeBytes int64     `json:"sizeBytes"`
	Role      Role      `json:"role"`
	File      string    `json:"file,omitempty"`    // below Options.Dir, or
	Backing   string    `json:"backing,omitempty"` // an absolute path that was given
	CreatedAt time.Time `json:"createdAt"`
	// ResizeTo is the size that the disk is getting, 0 when none: a kill leaves the file
	// with this one or with SizeBytes.
	ResizeTo int64 `json:"resizeTo,omitempty"`
	// Allow are the common names of the client certificates that may use the disk over
	// TCP; none: no restriction. See Registry.Allowed.
	Allow []string `json:"allow,omitempty"`
	// Exclusive has a client that opens the disk cut those before it; see server.Export.
	Exclusive bool `json:"exclusive,omitempty"`
	// Attached is only set in the list; Registry.Device tells it of a Disk.
	Attached *Attached `json:"attached,omitempty"`
	Origin
}

// Origin is the disk of a point that a restored disk equalled when it appeared.
type Origin struct {
	Point  string `json:"originPoint,omitempty"`
	DiskID string `json:"originDiskId,omitempty"`
}

// State of a live disk.
type State string

// The states.
const (
	Online State = "online"
	// Suspect: its map is in doubt, so the next backup compares hashes.
	Suspect State = "suspect"
	// Offline: its file or block device could not be opened; see Disk.Reason.
	Offline State = "offline"
)

// Disk is one live disk. A disk that goes offline, or gets another role, is another Disk
// in the table; size and access change in place, so that who holds it sees them.
type Disk struct {
	mu    sync.Mutex // over reading all of entry, and with Registry.mu over changing it
	entry Entry      // ID, Name, Role, File, Backing and Origin never change

	path    string
	file    *localdisk.Disk // nil when offline
	tracker *cbt.Tracker    // nil when offline, temporary or untracked
	reason  error           // why it is offline
	// untracked is why a data disk is served without a tracker, or nil.
	untracked error
	holds     atomic.Int64 // jobs that use it; guarded against Delete by Registry.mu
}

// Entry is what the list says.
func (d *Disk) Entry() Entry {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.entry
}

// Name of the disk and of its export.
func (d *Disk) Name() string { return d.entry.Name }

// Path of its file or block device.
func (d *Disk) Path() string { return d.path }

// Tracker is the disk as guests see it, or nil when it is offline, temporary, or
// served untracked because the file system was full at the start.
func (d *Disk) Tracker() *cbt.Tracker { return d.tracker }

// Device is what is exported, or nil when it is offline.
func (d *Disk) Device() blockdev.Device {
	switch {
	case d.tracker != nil:
		return d.tracker
	case d.file != nil:
		return d.file
	}
	return nil
}

// AllocatedBytes is the storage that the disk occupies; 0 when it is offline.
func (d *Disk) AllocatedBytes() int64 {
	if d.file == nil {
		return 0
	}
	n, err := d.file.AllocatedBytes()
	if err != nil {
		return 0
	}
	return n
}

// UsedBytes is how much of the disk has storage, without what the file system needs to
// keep account of it; 0 when it is offline.
func (d *Disk) UsedBytes() int64 {
	if d.file == nil {
		return 0
	}
	var sum int64
	err := d.file.Extents(0, d.file.Size(), func(x blockdev.Extent, s blockdev.ExtentStatus) bool {
		if !s.Hole {
			sum += x.Length
		}
		return true
	})
	if err != nil {
		return d.AllocatedBytes()
	}
	return sum
}

// State and, unless it is online, why.
func (d *Disk) State() (State, string) {
	if d.file == nil {
		return Offline, fmt.Sprint(d.reason)
	}
	if d.untracked != nil {
		return Suspect, "served untracked; free space and start the daemon again: " + d.untracked.Error()
	}
	if d.tracker != nil {
		if s, reason := d.tracker.Tracking(); s == cbt.TrackingCompare {
			return Suspect, reason
		}
	}
	return Online, ""
}

// close flushes and closes what is open. The tracker closes the file below it.
func (d *Disk) close() error {
	switch {
	case d.tracker != nil:
		return d.tracker.Close()
	case d.file != nil:
		if err := d.file.Flush(); err != nil {
			d.file.Close()
			return err
		}
		return d.file.Close()
	}
	return nil
}
