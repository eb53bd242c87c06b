package filerestore

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/detect"
	"github.com/keelblock/keelblock/blockdev/volume"
)

// vol is a volume of a disk.
type vol struct {
	disk     *disk
	name     string // DISK-N
	volume   volume.Volume
	readable bool // there is a reader for what it seems to hold
	raw      bool // shown as a raw file instead
	blank    bool
	holds    string // what it seems to hold, when there is no reader

	mu sync.Mutex
	fs filesystem.FS
}

var errNoReader = errors.New("no reader for it")

// volumes lists the volumes of the disk, once. A block that cannot be read makes it
// fail, and the next caller tries again.
func (d *disk) volumes(context.Context) ([]*vol, error) {
	d.mu.Lock()
	vols := d.vols
	d.mu.Unlock()
	if vols != nil {
		return vols, nil
	}
	var warnings []string
	err := safely(func() (err error) {
		vols, warnings, err = d.findVolumes()
		return err
	})
	if err != nil {
		d.report(fmt.Sprintf("read the partition table: %v", err))
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.vols == nil {
		d.vols, d.warnings = vols, warnings
	}
	return d.vols, nil
}

func (d *disk) findVolumes() ([]*vol, []string, error) {
	found, warnings, err := volume.List(d, d.size)
	if err != nil {
		return nil, nil, err
	}
	vols := make([]*vol, 0, len(found))
	for _, v := range found {
		n := &vol{disk: d, name: fmt.Sprintf("%s-%d", d.key.name, v.Number), volume: v}
		holds, err := detect.Name(v.Section(d), v.Size)
		switch {
		case err != nil:
			// What it holds is not known, and Open will say the same.
			d.report(fmt.Sprintf("%s: %v", n.name, err))
			n.readable = true
		case holds == "":
			n.holds = "no known file system"
		case holds == detect.Blank:
			n.blank, n.holds = true, holds
		default:
			n.readable = readers[holds]
			n.holds = holds
		}
		// A whole disk is there as DISK.raw already.
		n.raw = !n.readable && !n.blank && v.Scheme != volume.SchemeWhole
		vols = append(vols, n)
	}
	return vols, warnings, nil
}

// safely turns a panic of a parser into an error: what a guest wrote must not end the
// mount of the others.
func safely(parse func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the reader failed: %v", p)
		}
	}()
	return parse()
}

// readers are what detect.Open opens.
var readers = map[string]bool{"ext": true}

// Open opens the file system at its first use.
func (v *vol) Open(context.Context) (filesystem.FS, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.fs != nil {
		return v.fs, nil
	}
	if !v.readable {
		return nil, fmt.Errorf("%s: %w", v.holds, errNoReader)
	}
	fs, err := detect.Open(v.volume.Section(v.disk), v.volume.Size)
	if err != nil {
		return nil, err
	}
	v.fs = fs
	return fs, nil
}

// Report keeps a problem for STATUS.
func (v *vol) Report(what string, err error) {
	v.disk.report(fmt.Sprintf("%s: %s: %v", v.name, what, err))
}

// forget drops the reader and what it keeps in memory. Inode numbers stay what they
// are, so the next use just opens it again.
func (v *vol) forget() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.fs = nil
}
