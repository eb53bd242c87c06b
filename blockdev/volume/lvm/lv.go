package lvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"sort"
)

// LV is a logical volume. It reads as one range of Size bytes.
type LV struct {
	Name string
	UUID string
	// Type is what its segments are: "linear", "striped", "raid1", "thin", ...
	Type string
	Size int64
	// Err says why it cannot be read: ErrMissing, ErrUnsupported or ErrCorrupt.
	Err error
	// Notes are what one should know of what is read, in a sentence each.
	Notes []string

	segments []segment
}

// segment is a range of a volume. Its bytes lie on the legs in turn, stripe bytes on
// each; with one leg they are just there. Without legs it reads as zeros.
type segment struct {
	start, length int64
	stripe        int64
	legs          []leg
	kind          string // its type, where the metadata's is not the word for it
}

// leg is where a part of a segment lies.
type leg struct {
	r      io.ReaderAt
	offset int64
}

// ReadAt reads the volume.
func (lv *LV) ReadAt(p []byte, off int64) (int, error) {
	if lv.Err != nil {
		return 0, lv.Err
	}
	if off < 0 {
		return 0, fmt.Errorf("read logical volume %s at %d: negative offset", lv.Name, off)
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		if at >= lv.Size {
			return done, io.EOF
		}
		i := sort.Search(len(lv.segments), func(i int) bool { return lv.segments[i].start+lv.segments[i].length > at })
		s := lv.segments[i]
		n, err := s.readPart(p[done:], at-s.start)
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// readPart reads at most p, as far as it lies in one piece on one leg.
func (s segment) readPart(p []byte, at int64) (int, error) {
	p = p[:min(int64(len(p)), s.length-at)]
	if len(s.legs) == 0 {
		clear(p)
		return len(p), nil
	}
	l, offset := s.legs[0], at
	if len(s.legs) > 1 {
		legs := int64(len(s.legs))
		chunk, inChunk := at/s.stripe, at%s.stripe
		l, offset = s.legs[chunk%legs], chunk/legs*s.stripe+inChunk
		p = p[:min(int64(len(p)), s.stripe-inChunk)]
	}
	if err := readFull(l.r, p, l.offset+offset); err != nil {
		return 0, err
	}
	return len(p), nil
}

// segment reads the map of one segment, length bytes long.
func (vg *VG) segment(lv *LV, s *section, kind string, length int64, depth int) (segment, error) {
	switch kind {
	case "striped", "linear":
		return vg.striped(s, length, depth)
	case "raid0", "raid0_meta":
		return vg.raid0(s, length, depth)
	case "raid1":
		return vg.raid1(lv, s, length, depth)
	case "mirror":
		return vg.mirror(s, length, depth)
	case "zero":
		return segment{}, nil
	case "error":
		return segment{}, fmt.Errorf("a part of it was lost and replaced by errors: %w", ErrMissing)
	}
	return segment{}, fmt.Errorf("an LVM volume of type %q is %w", kind, ErrUnsupported)
}

// pairs splits a list of name and extent in turn.
func pairs(s *section, name string) ([]string, []int64, error) {
	list, _ := s.values[name].([]value)
	if len(list) == 0 || len(list)%2 != 0 || len(list) > 2*maxStripes {
		return nil, nil, fmt.Errorf("the list %q has %d entries: %w", name, len(list), ErrCorrupt)
	}
	var names []string
	var extents []int64
	for i := 0; i < len(list); i += 2 {
		n, ok1 := list[i].(string)
		e, ok2 := list[i+1].(int64)
		if !ok1 || !ok2 || e < 0 || e > maxExtents {
			return nil, nil, fmt.Errorf("the list %q is not one of names and extents: %w", name, ErrCorrupt)
		}
		names, extents = append(names, n), append(extents, e)
	}
	return names, extents, nil
}

// leg finds length bytes from an extent of a physical volume, or of another volume.
func (vg *VG) leg(name string, extent, length int64, depth int) (leg, error) {
	if g := vg.pvs[name]; g != nil {
		if g.err != nil {
			return leg{}, g.err
		}
		// Extents count in the group's bytes; the device may have been cut.
		if extent > g.extents || length > (g.extents-extent)*vg.extentBytes {
			return leg{}, fmt.Errorf("extent %d and %d bytes are outside %s: %w", extent, length, g.identifier, ErrCorrupt)
		}
		at := g.start + extent*vg.extentBytes
		if at > g.pv.Size || length > g.pv.Size-at {
			return leg{}, fmt.Errorf("%s has only %d bytes: %w", g.identifier, g.pv.Size, ErrMissing)
		}
		return leg{g.pv.r, at}, nil
	}
	sub := vg.volume(name, depth+1)
	if sub.Err != nil {
		return leg{}, sub.Err
	}
	at := extent * vg.extentBytes
	if at > sub.Size || length > sub.Size-at {
		return leg{}, fmt.Errorf("extent %d and %d bytes are outside %s: %w", extent, length, name, ErrCorrupt)
	}
	return leg{sub, at}, nil
}

func (vg *VG) striped(s *section, length int64, depth int) (segment, error) {
	names, extents, err := pairs(s, "stripes")
	if err != nil {
		return segment{}, err
	}
	if n, err := s.number("stripe_count", maxStripes); err != nil || n != int64(len(names)) {
		return segment{}, fmt.Errorf("%d stripes are listed: %w", len(names), ErrCorrupt)
	}
	if len(names) == 1 {
		l, err := vg.leg(names[0], extents[0], length, depth)
		return segment{legs: []leg{l}, kind: "linear"}, err
	}
	out, each, err := stripes(s, length, len(names))
	if err != nil {
		return out, err
	}
	for i, name := range names {
		l, err := vg.leg(name, extents[i], each, depth)
		if err != nil {
			return out, err
		}
		out.legs = append(out.legs, l)
	}
	return out, nil
}

// stripes checks the stripe size and gives how much each of n legs holds.
func stripes(s *section, length int64, n int) (segment, int64, error) {
	size, err := s.number("stripe_size", 1<<30)
	if err != nil {
		return segment{}, 0, err
	}
	bytes := size * sectorSize
	if size == 0 || length%int64(n) != 0 || length/int64(n)%bytes != 0 {
		return segment{}, 0, fmt.Errorf("%d stripes of %d bytes do not fill %d bytes: %w", n, bytes, length, ErrCorrupt)
	}
	return segment{stripe: bytes}, length / int64(n), nil
}

// images gives the data volumes of a raid segment, and the metadata volumes, which
// raid0 does not have.
func images(s *section) (data, meta []string, err error) {
	for _, list := range []string{"raids", "raid0_lvs"} {
		names := s.list(list)
		switch {
		case len(names) == 0:
			continue
		case len(names) > 2*maxStripes:
			return nil, nil, fmt.Errorf("%d images: %w", len(names), ErrCorrupt)
		case s.text("type") == "raid0":
			return names, nil, nil
		case len(names)%2 != 0:
			return nil, nil, fmt.Errorf("%d images and their metadata: %w", len(names), ErrCorrupt)
		}
		for i := 0; i < len(names); i += 2 {
			meta, data = append(meta, names[i]), append(data, names[i+1])
		}
		return data, meta, nil
	}
	return nil, nil, fmt.Errorf("no images are listed: %w", ErrCorrupt)
}

func (vg *VG) raid0(s *section, length int64, depth int) (segment, error) {
	data, _, err := images(s)
	if err != nil {
		return segment{}, err
	}
	if len(data) == 1 {
		l, err := vg.leg(data[0], 0, length, depth)
		return segment{legs: []leg{l}}, err
	}
	out, each, err := stripes(s, length, len(data))
	if err != nil {
		return out, err
	}
	for _, name := range data {
		l, err := vg.leg(name, 0, each, depth)
		if err != nil {
			return out, err
		}
		out.legs = append(out.legs, l)
	}
	return out, nil
}

// mirror reads the first image, which holds everything at any time: the others are
// copied from it after a crash.
func (vg *VG) mirror(s *section, length int64, depth int) (segment, error) {
	names, extents, err := pairs(s, "mirrors")
	if err != nil {
		return segment{}, err
	}
	l, err := vg.leg(names[0], extents[0], length, depth)
	return segment{legs: []leg{l}}, err
}

// raidSuper is the superblock in a metadata volume (drivers/md/dm-raid.c).
type raidSuper struct {
	position                 uint32
	events, failed           uint64
	recoveryOffset, resyncAt uint64 // all ones: done
}

const raidMagic = 0x64526D44

func readRaidSuper(r io.ReaderAt) (raidSuper, error) {
	p := make([]byte, sectorSize)
	if err := readFull(r, p, 0); err != nil {
		return raidSuper{}, err
	}
	le := binary.LittleEndian
	if le.Uint32(p) != raidMagic {
		return raidSuper{}, fmt.Errorf("a raid image has no superblock: %w", ErrCorrupt)
	}
	return raidSuper{le.Uint32(p[12:]), le.Uint64(p[16:]), le.Uint64(p[24:]), le.Uint64(p[32:]), le.Uint64(p[40:])}, nil
}

// raid1 reads one image: the first of those whose superblock counts the most events,
// that is not noted as failed, and that is not being rebuilt.
func (vg *VG) raid1(lv *LV, s *section, length int64, depth int) (segment, error) {
	data, meta, err := images(s)
	if err != nil {
		return segment{}, err
	}
	legs, supers := make([]leg, len(data)), make([]raidSuper, len(data))
	usable := make([]bool, len(data))
	var newest raidSuper
	var lost error
	for i := range data {
		m, err := vg.leg(meta[i], 0, sectorSize, depth)
		if err == nil {
			supers[i], err = readRaidSuper(m.r)
		}
		if err == nil {
			legs[i], err = vg.leg(data[i], 0, length, depth)
		}
		if err == nil && supers[i].position != uint32(i) {
			err = fmt.Errorf("image %s says that it is number %d: %w", data[i], supers[i].position, ErrCorrupt)
		}
		if err != nil {
			lost = errors.Join(lost, err)
			continue
		}
		usable[i] = true
		if supers[i].events >= newest.events {
			newest = supers[i]
		}
	}
	for i := range data {
		known := newest.failed&(1<<min(uint(i), 63)) != 0
		switch {
		case !usable[i] && !known:
			lv.Notes = append(lv.Notes, fmt.Sprintf("image %s is not there; if it was the last one in use, what is shown is older", data[i]))
		case !usable[i] || known || supers[i].events != newest.events || supers[i].recoveryOffset != math.MaxUint64:
			usable[i] = false
		}
	}
	for i := range data {
		if !usable[i] {
			continue
		}
		if newest.resyncAt != math.MaxUint64 {
			lv.Notes = append(lv.Notes, fmt.Sprintf("the images were not all in step; %s is read", data[i]))
		}
		return segment{legs: []leg{legs[i]}}, nil
	}
	if lost == nil {
		lost = fmt.Errorf("no image of it is up to date: %w", ErrMissing)
	}
	return segment{}, lost
}
