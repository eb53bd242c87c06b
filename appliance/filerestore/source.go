package filerestore

import (
	"context"
	"time"

	"github.com/keelblock/keelblock/blockdev"
)

// Source is where points come from: the daemon, seen from a client.
type Source interface {
	// Points lists the points that exist now, those of a machine oldest first.
	Points(ctx context.Context) ([]Point, error)
	// Open opens a disk of a point for reading.
	Open(ctx context.Context, pointID, disk string) (Reader, error)
}

// Reader is an open disk of a point.
type Reader interface {
	blockdev.Device
	blockdev.ExtentLister
}

// Point is a recovery point as it is listed.
type Point struct {
	ID       string
	Machine  string
	FrozenAt time.Time
	// Name is the time with as many digits as tell it from the machine's other
	// points, as the daemon spells it.
	Name        string
	Consistency string
	Note        string
	Disks       []Disk
}

// Disk is a disk of a point.
type Disk struct {
	Name      string
	SizeBytes int64
}
