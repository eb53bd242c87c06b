package volume

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/keelblock/keelblock/blockdev/volume/luks"
	"github.com/keelblock/keelblock/blockdev/volume/lvm"
	"github.com/keelblock/keelblock/blockdev/volume/md"
)

// Bounds of what Assemble makes of the disks of a machine.
const (
	maxNodes  = 4096
	maxLayers = 8 // volumes in volumes
	// maxMetadata bounds the LVM metadata of all physical volumes, in bytes. A large
	// group has some hundred KiB on each.
	maxMetadata = 64 << 20
	// maxHeaders bounds the LUKS volumes, and the damaged LVM metadata, of a machine:
	// each may take some MiB to read.
	maxHeaders = 64
)

// The signature of ext2, ext3 and ext4.
const (
	extMagicAt = 1024 + 56
	extMagic   = "\x53\xef"
)

// ErrLocked: the volume is encrypted, and nothing was given that opens it.
var ErrLocked = errors.New("it is encrypted and locked")

// Disk is a disk of a machine. Its reader may be used from several goroutines.
type Disk struct {
	Name   string
	Reader io.ReaderAt
	Size   int64
}

// Options of Assemble.
type Options struct {
	// Unlock finds the key of an encrypted volume: it gives an error that says why not,
	// ErrLocked when it has nothing to try. nil: all stay locked.
	Unlock func(h *luks.Header) (luks.Key, error)
}

// Node is a volume of a machine: a partition, a whole disk, a logical volume of LVM or an
// md array.
type Node struct {
	// Name is the one that a user sees, unique among the machine's: DISK-N, VG-LV,
	// md-NAME, or md-NAME-N for a partition of an array.
	Name string
	// What says what it is, for a status line: "partition 2 of web0", "LVM volume root of
	// volume group vg, striped".
	What string
	// Disk and Volume say where it lies when it is a partition or a whole disk; Disk is
	// -1 otherwise.
	Disk   int
	Volume Volume
	// Partition is the number of a partition of an array; of one of a disk it is that of
	// Volume. 0: none.
	Partition int
	// Group and LogicalVolume are the names of LVM, Array and ArrayUUID those of an md
	// array, as Linux names devices by them.
	Group, LogicalVolume string
	Array, ArrayUUID     string
	// Keys are the UUIDs of the LUKS volumes that it is read through, or is locked by,
	// outermost first.
	Keys []string
	// Layers are the encryptions that were opened, outermost first: "LUKS2
	// aes-xts-plain64".
	Layers []string
	// Member is what it is a part of, when it holds no file system but a part of
	// something larger: "physical volume of LVM group vg".
	Member string
	// Content is what it holds, plain, of Size bytes; nil for a member and with Err.
	Content io.ReaderAt
	Size    int64
	// Notes are what one should know of the content, a sentence each.
	Notes []string
	// Err says why it cannot be read.
	Err error

	depth int
}

// Set is what the disks of a machine hold.
type Set struct {
	// Nodes are the volumes: those of the disks in order, then arrays, then logical
	// volumes.
	Nodes []*Node
	// Warnings say, by the number of the disk, what was damaged and how it was helped.
	Warnings [][]string
	// Failed are the errors of reading, by the number of the disk. Nodes of such a disk
	// may be missing.
	Failed []error
	// Unread: something could not be read, not because of what it says, so another
	// attempt may find more.
	Unread bool
}

// Assemble finds the volumes of a machine: the partitions of its disks, and what spans
// and nests in them (md arrays, LVM groups, LUKS), in any order of nesting. What cannot
// be read is listed all the same, with the reason.
func Assemble(disks []Disk, o Options) *Set {
	a := &assembler{o: o, set: &Set{Warnings: make([][]string, len(disks)), Failed: make([]error, len(disks))}, names: map[string]bool{},
		madeArrays: map[string]bool{}, madeGroups: map[string]bool{}}
	for i, d := range disks {
		if err := a.disk(i, d); err != nil {
			a.set.Failed[i], a.set.Unread = err, true
		}
	}
	a.span()
	a.nameMembers()
	return a.set
}

type assembler struct {
	o     Options
	set   *Set
	names map[string]bool

	members     []*md.Member
	memberNodes []*Node
	pvs         []*lvm.PV
	pvNodes     []*Node
	metadata    int             // bytes of LVM metadata
	headers     int             // LUKS headers
	damaged     int             // physical volumes
	madeArrays  map[string]bool // by UUID
	madeGroups  map[string]bool
}

// add lists a node under a name that no other has.
func (a *assembler) add(n *Node) bool {
	if len(a.set.Nodes) >= maxNodes {
		return false
	}
	name := n.Name
	for i := 2; a.names[n.Name]; i++ {
		n.Name = fmt.Sprintf("%s+%d", name, i)
	}
	a.names[n.Name] = true
	a.set.Nodes = append(a.set.Nodes, n)
	return true
}

// disk lists the partitions of a disk, or the disk itself. A member of an array with its
// superblock at the end looks like what the array holds, so that is asked first.
func (a *assembler) disk(i int, d Disk) error {
	volumes, warnings, err := List(d.Reader, d.Size)
	if err != nil {
		return err
	}
	m, err := md.ReadMember(d.Reader, d.Size)
	if err == nil && !inPartition(volumes, m.SuperOffset) {
		volumes, warnings = []Volume{{Scheme: SchemeWhole, Size: d.Size}}, nil
	}
	a.set.Warnings[i] = warnings
	for _, v := range volumes {
		n := &Node{Name: fmt.Sprintf("%s-%d", d.Name, v.Number), Disk: i, Volume: v, What: fmt.Sprintf("partition %d of %s", v.Number, d.Name)}
		if v.Scheme == SchemeWhole {
			n.What = "all of " + d.Name
		}
		if v.Name != "" {
			n.What += fmt.Sprintf(" (%q)", v.Name)
		}
		if !a.add(n) {
			a.set.Warnings[i] = append(a.set.Warnings[i], fmt.Sprintf("more than %d volumes; the rest is left out", maxNodes))
			break
		}
		a.inspect(n, v.Section(d.Reader), v.Size)
	}
	return nil
}

// inPartition: the superblock at the end of a disk's last partition can look like that
// of the disk.
func inPartition(volumes []Volume, at int64) bool {
	return slices.ContainsFunc(volumes, func(v Volume) bool {
		return v.Scheme != SchemeWhole && at >= v.Offset && at < v.Offset+v.Size
	})
}

// known are the errors that speak of what is on a disk, and not of reading it.
var known = []error{md.ErrCorrupt, md.ErrUnsupported, md.ErrMissing, lvm.ErrCorrupt, lvm.ErrUnsupported, lvm.ErrMissing,
	luks.ErrCorrupt, luks.ErrUnsupported, luks.ErrPassphrase, ErrLocked}

// fail keeps why a node cannot be read.
func (a *assembler) fail(n *Node, err error) {
	n.Err = err
	if !slices.ContainsFunc(known, func(k error) bool { return errors.Is(err, k) }) {
		a.set.Unread = true
	}
}

// inspect looks at what a node holds, through its encryption.
func (a *assembler) inspect(n *Node, r io.ReaderAt, size int64) {
	for ; ; n.depth++ {
		if n.depth > maxLayers {
			a.fail(n, fmt.Errorf("volumes lie more than %d deep in each other: %w", maxLayers, lvm.ErrUnsupported))
			return
		}
		if done := a.takeMember(n, r, size); done {
			return
		}
		h, err := a.readLUKS(r, size)
		if errors.Is(err, luks.ErrNotLUKS) {
			break
		}
		var v *luks.Volume
		if err == nil {
			n.Layers = append(n.Layers, h.String())
			n.Keys = append(n.Keys, h.UUID)
			n.Notes = append(n.Notes, h.Warnings...)
			v, err = a.unlock(h)
		}
		if err != nil {
			a.fail(n, err)
			return
		}
		r, size = v, v.Size()
	}
	if done := a.takePV(n, r, size); done {
		return
	}
	n.Content, n.Size = r, size
}

func (a *assembler) readLUKS(r io.ReaderAt, size int64) (*luks.Header, error) {
	if a.headers >= maxHeaders {
		var magic [4]byte
		if n, _ := r.ReadAt(magic[:], 0); n == len(magic) && string(magic[:]) == "LUKS" {
			return nil, fmt.Errorf("more than %d LUKS volumes in a machine are %w", maxHeaders, luks.ErrUnsupported)
		}
		return nil, luks.ErrNotLUKS
	}
	h, err := luks.ReadHeader(r, size)
	if !errors.Is(err, luks.ErrNotLUKS) {
		a.headers++
	}
	return h, err
}

func (a *assembler) unlock(h *luks.Header) (*luks.Volume, error) {
	if a.o.Unlock == nil {
		return nil, ErrLocked
	}
	key, err := a.o.Unlock(h)
	if err != nil {
		return nil, err
	}
	return h.Open(key)
}

// takeMember keeps a member of an md array for later.
func (a *assembler) takeMember(n *Node, r io.ReaderAt, size int64) bool {
	m, err := md.ReadMember(r, size)
	switch {
	case errors.Is(err, md.ErrNotMember):
		return false
	case err != nil:
		n.Member = "member of an md array"
		a.fail(n, err)
		return true
	}
	n.Member = "member of md array " + m.ArrayName
	a.members, a.memberNodes = append(a.members, m), append(a.memberNodes, n)
	return true
}

// takePV keeps a physical volume for later. The label stays behind when mke2fs makes a
// file system where one was, but pvcreate wipes that of a file system.
func (a *assembler) takePV(n *Node, r io.ReaderAt, size int64) bool {
	if a.damaged >= maxHeaders {
		return false
	}
	pv, err := lvm.ReadPV(r, size)
	if err == nil {
		var magic [2]byte
		if n, _ := r.ReadAt(magic[:], extMagicAt); n == len(magic) && string(magic[:]) == extMagic {
			return false
		}
		if a.metadata += pv.MetadataBytes(); a.metadata > maxMetadata {
			err = fmt.Errorf("more than %d bytes of LVM metadata are %w", maxMetadata, lvm.ErrUnsupported)
		}
	}
	switch {
	case errors.Is(err, lvm.ErrNotPV):
		return false
	case err != nil:
		a.damaged++
		n.Member = "LVM2 physical volume"
		a.fail(n, err)
		return true
	}
	n.Member = "LVM2 physical volume"
	n.Notes = append(n.Notes, pv.Warnings...)
	a.pvs, a.pvNodes = append(a.pvs, pv), append(a.pvNodes, n)
	return true
}

// span makes arrays and groups until nothing new is found. What is whole comes first,
// since it may hold what another lacks; what lacks something is made when nothing else
// is left to do.
func (a *assembler) span() {
	for range maxNodes {
		switch {
		case a.arrays(true), a.groups(true), a.arrays(false), a.groups(false):
		default:
			return
		}
	}
}

// arrays makes the arrays that were not made yet.
func (a *assembler) arrays(whole bool) bool {
	made := false
	for _, array := range md.Assemble(a.members) {
		if a.madeArrays[array.UUID] || whole && !array.Complete() {
			continue
		}
		a.madeArrays[array.UUID] = true
		made = true
		a.addArray(array)
	}
	return made
}

func (a *assembler) addArray(array *md.Array) {
	name := array.Name
	if name == "" {
		name = array.UUID[:8]
	}
	n := &Node{Name: "md-" + name, Disk: -1, Array: array.Name, ArrayUUID: array.UUID, What: fmt.Sprintf("md RAID%d array %s, superblock %s", array.Level, name, array.Version), Notes: array.Notes}
	for i, m := range a.members {
		if slices.Contains(array.Members, m) {
			n.depth = max(n.depth, a.memberNodes[i].depth+1)
		}
	}
	if array.Err != nil {
		a.add(n)
		a.fail(n, array.Err)
		return
	}
	volumes, warnings, err := List(array, array.Size)
	if err != nil || len(volumes) == 1 && volumes[0].Scheme == SchemeWhole {
		if a.add(n) {
			a.inspect(n, array, array.Size)
		}
		return
	}
	for _, v := range volumes {
		p := &Node{Name: fmt.Sprintf("%s-%d", n.Name, v.Number), Disk: -1, Partition: v.Number, Array: n.Array, ArrayUUID: n.ArrayUUID, What: fmt.Sprintf("partition %d of %s", v.Number, n.What),
			Notes: append(slices.Clone(n.Notes), warnings...), depth: n.depth}
		if a.add(p) {
			a.inspect(p, v.Section(array), v.Size)
		}
	}
}

// groups makes the volumes of the LVM groups that were not made yet.
func (a *assembler) groups(whole bool) bool {
	made := false
	for _, vg := range lvm.Assemble(a.pvs) {
		if a.madeGroups[vg.UUID] || whole && len(vg.Missing) > 0 {
			continue
		}
		a.madeGroups[vg.UUID] = true
		made = true
		a.addGroup(vg)
	}
	return made
}

func (a *assembler) addGroup(vg *lvm.VG) {
	depth := 0
	for i, pv := range a.pvs {
		if slices.Contains(vg.PVs, pv) {
			n := a.pvNodes[i]
			depth = max(depth, n.depth+1)
			n.Notes = append(n.Notes, vg.Warnings...)
		}
	}
	for _, lv := range vg.LVs {
		n := &Node{Name: vg.Name + "-" + lv.Name, Disk: -1, Group: vg.Name, LogicalVolume: lv.Name, What: fmt.Sprintf("LVM volume %s of group %s, %s", lv.Name, vg.Name, lv.Type),
			Notes: lv.Notes, depth: depth}
		if lv.Name == "" {
			n.Name, n.What = vg.Name, "LVM group "+vg.Name
		}
		if !a.add(n) {
			return
		}
		if lv.Err != nil {
			a.fail(n, lv.Err)
			continue
		}
		a.inspect(n, lv, lv.Size)
	}
}

// nameMembers tells of each physical volume which group it belongs to.
func (a *assembler) nameMembers() {
	for _, vg := range lvm.Assemble(a.pvs) {
		for i, pv := range a.pvs {
			if slices.Contains(vg.PVs, pv) {
				a.pvNodes[i].Member += " of group " + vg.Name
			}
		}
	}
	for i, pv := range a.pvs {
		if n := a.pvNodes[i]; !strings.Contains(n.Member, " of group ") {
			if pv.Group() != "" {
				n.Member += fmt.Sprintf(", once of group %s, whose newest metadata do not list it", pv.Group())
			} else {
				n.Member += " of no group that was found"
			}
		}
	}
}
