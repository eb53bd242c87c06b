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

// vol is a volume of a point: of one disk, or spanning several.
type vol struct {
	point    *pointVolumes
	name     string // DISK-N, VG-LV, ...
	node     *volume.Node
	readable bool // listed as a directory: its files can be read, or the error says why not
	raw      bool // shown as a raw file instead
	holds    string

	mu sync.Mutex
	fs filesystem.FS
}

var errNoReader = errors.New("no reader for it")

// pointVolumes are the volumes of a point, found at the first use.
type pointVolumes struct {
	tree     *Tree
	point    Point
	disks    []*disk
	problems problemLog // of volumes that span disks

	findMu sync.Mutex // held while the volumes are looked for; taken before mu

	treesMu sync.Mutex // held while guests' trees are looked for; taken before findMu
	trees   []*guestTree
	treesOf *foundVolumes // what they were found in

	mu    sync.Mutex
	found *foundVolumes
}

// foundVolumes is what was found on the disks of a point.
type foundVolumes struct {
	vols     []*vol
	warnings [][]string // by disk
	failed   []error    // by disk
}

// volumes gives the volumes of a point, the same ones each time.
func (t *Tree) volumes(p Point) *pointVolumes {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.points[p.ID] == nil {
		t.points[p.ID] = &pointVolumes{tree: t, point: p, problems: problemLog{tree: t, machine: p.Machine, point: p.ID}}
	}
	return t.points[p.ID]
}

// find looks for the volumes, once. After a disk that could not be read the next caller
// looks again; the others' volumes are given all the same.
func (p *pointVolumes) find(point Point) *foundVolumes {
	p.findMu.Lock()
	defer p.findMu.Unlock()
	p.mu.Lock()
	found := p.found
	p.mu.Unlock()
	if found != nil {
		return found
	}
	disks := make([]*disk, len(point.Disks))
	for i, d := range point.Disks {
		disks[i] = p.tree.disk(point, d)
	}
	p.mu.Lock()
	p.disks = disks
	p.mu.Unlock()
	found, whole := p.look(disks)
	p.mu.Lock()
	defer p.mu.Unlock()
	if whole {
		p.found = found
	}
	return found
}

// look assembles the disks. whole: nothing failed that may work another time.
func (p *pointVolumes) look(disks []*disk) (*foundVolumes, bool) {
	in := make([]volume.Disk, len(disks))
	for i, d := range disks {
		in[i] = volume.Disk{Name: d.key.name, Reader: d, Size: d.size}
	}
	var set *volume.Set
	err := safely(func() error {
		set = volume.Assemble(in, volume.Options{Unlock: p.tree.keys.unlock})
		return nil
	})
	if err != nil {
		p.problems.add(fmt.Sprintf("look for volumes: %v", err))
		failed := make([]error, len(disks))
		for i := range failed {
			failed[i] = err
		}
		return &foundVolumes{warnings: make([][]string, len(disks)), failed: failed}, false
	}
	found := &foundVolumes{warnings: set.Warnings, failed: set.Failed}
	for i, err := range set.Failed {
		if err != nil {
			disks[i].problems.add(fmt.Sprintf("look for volumes: %v", err))
		}
	}
	for _, n := range set.Nodes {
		found.vols = append(found.vols, p.newVol(n, disks))
	}
	return found, !set.Unread
}

func (p *pointVolumes) newVol(n *volume.Node, disks []*disk) *vol {
	v := &vol{point: p, name: n.Name, node: n}
	// What spans disks has no place to show it raw, and a whole disk is there as
	// DISK.raw already.
	partition := n.Disk >= 0 && n.Volume.Scheme != volume.SchemeWhole
	switch {
	case n.Err != nil:
		v.raw = partition
		v.readable = n.Disk < 0
		return v
	case n.Member != "":
		return v
	}
	var holds string
	err := safely(func() (err error) {
		holds, err = detect.Name(n.Content, n.Size)
		return err
	})
	switch {
	case err != nil:
		// What it holds is not known, and Open will say the same.
		v.Report("look at it", err)
		v.readable = true
	case holds == "":
		v.holds, v.raw = "no known file system", partition
	case holds == detect.Blank:
		v.holds = holds
	default:
		v.readable, v.holds = detect.Readable(holds), holds
		v.raw = partition && !v.readable
	}
	return v
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

// Open opens the file system at its first use.
func (v *vol) Open(context.Context) (filesystem.FS, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.fs != nil {
		return v.fs, nil
	}
	if v.node.Err != nil {
		return nil, v.node.Err
	}
	if !v.readable {
		return nil, fmt.Errorf("%s: %w", v.holds, errNoReader)
	}
	fs, err := detect.Open(v.node.Content, v.node.Size)
	if err != nil {
		return nil, err
	}
	v.fs = fs
	return fs, nil
}

// Report keeps a problem for STATUS.
func (v *vol) Report(what string, err error) {
	v.point.mu.Lock()
	problems := &v.point.problems
	if i := v.node.Disk; i >= 0 && i < len(v.point.disks) {
		problems = &v.point.disks[i].problems
	}
	v.point.mu.Unlock()
	problems.add(fmt.Sprintf("%s: %s: %v", v.name, what, err))
}

// forget drops the readers and what they keep in memory. Inode numbers stay what they
// are, so the next use just opens them again.
func (p *pointVolumes) forget() {
	p.mu.Lock()
	found := p.found
	p.mu.Unlock()
	if found == nil {
		return
	}
	for _, v := range found.vols {
		v.mu.Lock()
		v.fs = nil
		v.mu.Unlock()
	}
}
