package filerestore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/namespace"
	"github.com/keelblock/keelblock/blockdev/volume"
	"github.com/keelblock/keelblock/blockdev/volume/luks"
)

// This file finds the volume that a guest's own tables name: fstab(5), crypttab(5).

// deviceNames resolves the names of devices of one machine at one point.
type deviceNames struct {
	vols     []*vol
	infos    map[*vol]filesystem.Info // of those whose file system could be opened
	crypttab map[string]string        // name of the opened device → device that holds it
}

func newDeviceNames(ctx context.Context, vols []*vol) *deviceNames {
	d := &deviceNames{vols: vols, infos: make(map[*vol]filesystem.Info)}
	for _, v := range vols {
		if !v.readable {
			continue
		}
		_ = safely(func() error { // its error is in STATUS
			fs, err := v.Open(ctx)
			if err == nil {
				d.infos[v] = fs.Info()
			}
			return err
		})
	}
	return d
}

// with are the names as a guest with this crypttab has them.
func (d *deviceNames) with(crypttab map[string]string) *deviceNames {
	return &deviceNames{d.vols, d.infos, crypttab}
}

// Errors of resolving a device.
var (
	errNoVolume = errors.New("no volume of the machine is it")
	errForm     = errors.New("this form of naming a device is not known")
)

// links are the folders below /dev/disk and the tags that they stand for.
var links = map[string]string{"by-uuid": "UUID", "by-label": "LABEL", "by-partuuid": "PARTUUID", "by-partlabel": "PARTLABEL"}

// find resolves a device. One volume only may be it: of a disk and its clone nobody knows
// which one the guest took.
func (d *deviceNames) find(spec string) (*vol, error) { return d.findWithin(spec, 4) }

// findWithin follows at most so many lines of the crypttab.
func (d *deviceNames) findWithin(spec string, steps int) (*vol, error) {
	is, err := d.matcher(spec, steps)
	if err != nil {
		return nil, err
	}
	var found []*vol
	for _, v := range d.vols {
		if is(v) {
			found = append(found, v)
		}
	}
	switch len(found) {
	case 0:
		return nil, d.noVolume()
	case 1:
		return found[0], nil
	}
	var names []string
	for _, v := range found {
		names = append(names, "volumes/"+v.name)
	}
	return nil, fmt.Errorf("several volumes are it: %s", strings.Join(names, ", "))
}

// noVolume names the volumes that could be it if they were open.
func (d *deviceNames) noVolume() error {
	var closed []string
	for _, v := range d.vols {
		if errors.Is(v.node.Err, volume.ErrLocked) || errors.Is(v.node.Err, luks.ErrPassphrase) {
			closed = append(closed, "volumes/"+v.name)
		}
	}
	if len(closed) == 0 {
		return errNoVolume
	}
	return fmt.Errorf("%w that is open; locked are %s", errNoVolume, strings.Join(closed, ", "))
}

// matcher says of a volume whether it is the device of that name.
func (d *deviceNames) matcher(spec string, steps int) (func(*vol) bool, error) {
	tag, value, tagged := strings.Cut(spec, "=")
	dev, isDevice := strings.CutPrefix(path.Clean(spec), "/dev/")
	switch {
	case tagged && !strings.HasPrefix(spec, "/"):
		return d.tagMatcher(tag, value)
	case !isDevice:
		return nil, errForm
	}
	dir, name := path.Split(dev)
	switch dir = strings.TrimSuffix(dir, "/"); {
	case strings.HasPrefix(dir, "disk/"):
		if tag := links[strings.TrimPrefix(dir, "disk/")]; tag != "" {
			return d.tagMatcher(tag, udevUnescape(name))
		}
		return nil, errForm
	case dir == "mapper":
		return d.mapperMatcher(name, steps)
	case dir == "md" || dir == "" && strings.HasPrefix(name, "md"):
		return arrayMatcher(name), nil
	case dir == "":
		disk, partition, ok := diskName(name)
		if !ok {
			return nil, errForm
		}
		return func(v *vol) bool { return v.node.Disk == disk && v.node.Volume.Number == partition }, nil
	case !strings.Contains(dir, "/"):
		return func(v *vol) bool { return v.node.Group == dir && v.node.LogicalVolume == name }, nil
	}
	return nil, errForm
}

// tagMatcher finds by what blkid tells of a volume.
func (d *deviceNames) tagMatcher(tag, value string) (func(*vol) bool, error) {
	if value == "" {
		return nil, errForm
	}
	switch strings.ToUpper(tag) {
	case "UUID":
		return func(v *vol) bool { return strings.EqualFold(d.infos[v].UUID, value) }, nil
	case "LABEL":
		return func(v *vol) bool { return d.infos[v].Label == value }, nil
	case "PARTUUID":
		return func(v *vol) bool { return v.node.Disk >= 0 && strings.EqualFold(v.node.Volume.UUID, value) }, nil
	case "PARTLABEL":
		return func(v *vol) bool { return v.node.Disk >= 0 && v.node.Volume.Name == value }, nil
	}
	return nil, errForm
}

// mapperMatcher finds what device-mapper made: a logical volume, VG-LV with the hyphens of
// the names doubled, or an encrypted volume under its name in the crypttab, or luks-UUID.
func (d *deviceNames) mapperMatcher(name string, steps int) (func(*vol) bool, error) {
	if source, ok := d.crypttab[name]; ok {
		if steps == 0 {
			return nil, errors.New("the lines of the crypttab name each other")
		}
		if tag, uuid, ok := strings.Cut(source, "="); ok && strings.EqualFold(tag, "UUID") { // of the LUKS header
			return keyMatcher(uuid), nil
		}
		if dir, uuid := path.Split(path.Clean(source)); dir == "/dev/disk/by-uuid/" {
			return keyMatcher(uuid), nil
		}
		v, err := d.findWithin(source, steps-1)
		if err != nil {
			return nil, fmt.Errorf("%s, by the crypttab: %w", source, err)
		}
		return func(w *vol) bool { return w == v }, nil
	}
	if uuid, ok := strings.CutPrefix(name, "luks-"); ok {
		return keyMatcher(uuid), nil
	}
	return func(v *vol) bool {
		return v.node.LogicalVolume != "" && mapperName(v.node.Group)+"-"+mapperName(v.node.LogicalVolume) == name
	}, nil
}

// keyMatcher finds what the LUKS header with this UUID encrypts.
func keyMatcher(uuid string) func(*vol) bool {
	return func(v *vol) bool {
		for _, k := range v.node.Keys {
			if strings.EqualFold(k, uuid) {
				return v.node.Member == ""
			}
		}
		return false
	}
}

func mapperName(s string) string { return strings.ReplaceAll(s, "-", "--") }

var arrayPartition = regexp.MustCompile(`^(.*[0-9])p([0-9]+)$`)

// arrayMatcher finds an md array, by its name or number, or a partition of it.
func arrayMatcher(name string) func(*vol) bool {
	is := func(v *vol, name string, partition int) bool {
		n := v.node
		return n.Array != "" && n.Partition == partition && (n.Array == name || "md"+n.Array == name)
	}
	return func(v *vol) bool {
		if is(v, name, 0) {
			return true
		}
		m := arrayPartition.FindStringSubmatch(name)
		if m == nil {
			return false
		}
		partition, err := strconv.Atoi(m[2])
		return err == nil && is(v, m[1], partition)
	}
}

var (
	letteredDisk = regexp.MustCompile(`^(?:sd|vd|xvd|hd)([a-z]{1,3})([0-9]{1,3})?$`)
	numberedDisk = regexp.MustCompile(`^(?:nvme([0-9]{1,3})n1|mmcblk([0-9]{1,3}))(?:p([0-9]{1,3}))?$`)
)

// diskName cuts the kernel's name of a disk or partition into their numbers: of the disk in
// the machine's order, from 0, and of the partition, 0 for the disk itself.
func diskName(name string) (disk, partition int, ok bool) {
	var number string
	if m := letteredDisk.FindStringSubmatch(name); m != nil {
		for _, c := range m[1] {
			disk = disk*26 + int(c-'a') + 1
		}
		disk, number = disk-1, m[2]
	} else if m := numberedDisk.FindStringSubmatch(name); m != nil {
		disk, _ = strconv.Atoi(m[1] + m[2]) // of at most three digits
		number = m[3]
	} else {
		return 0, 0, false
	}
	partition, _ = strconv.Atoi(number) // "" is 0
	return disk, partition, true
}

// udevUnescape resolves \x20 in the names of links below /dev/disk.
func udevUnescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && s[i+1] == 'x' {
			if c, err := strconv.ParseUint(s[i+2:i+4], 16, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// parseCrypttab reads which device each name opens (crypttab(5)).
func parseCrypttab(table []byte) map[string]string {
	out := make(map[string]string)
	lines, _ := namespace.Parse(table) // its first two fields are written alike
	for _, l := range lines {
		out[l.Spec] = l.File
	}
	return out
}

// readGuestFile is the content of a small file of a guest; nil when there is none.
func readGuestFile(ns *namespace.Namespace, name string) ([]byte, error) {
	ino, err := ns.Walk(name)
	if errors.Is(err, filesystem.ErrNotExist) || errors.Is(err, filesystem.ErrNotDir) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	a, err := ns.Getattr(ino)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", name, err)
	case a.Type != filesystem.TypeRegular:
		return nil, nil
	case a.Size > namespace.MaxTable:
		return nil, fmt.Errorf("%s has more than %d bytes", name, namespace.MaxTable)
	}
	p := make([]byte, a.Size)
	n, err := ns.ReadAt(ino, p, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return p[:n], nil
}
