package recoverypoint

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/hashtree"
)

// ID is a random 128-bit name of a machine, disk, cut, generation or site. The zero
// ID is none.
type ID [16]byte

// String is the ID in 32 lower-case hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether id is the zero ID.
func (id ID) IsZero() bool { return id == ID{} }

// ParseID is the inverse of ID.String.
func ParseID(s string) (ID, error) {
	var id ID
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("id %q: want %d hexadecimal digits", s, 2*len(id))
	}
	copy(id[:], b)
	return id, nil
}

// Consistency is what a point promises of the guest's data.
type Consistency string

// The labels, strongest first.
const (
	Application Consistency = "application"
	Filesystem  Consistency = "filesystem"
	Crash       Consistency = "crash"
)

// Tracking is how the changes since the parent were found.
type Tracking string

// The ways. TrackingFull: there was no base to compare with.
const (
	TrackingEnabled         Tracking = "enabled"
	TrackingChecksumCompare Tracking = "checksumCompare"
	TrackingFull            Tracking = "full"
)

// Limits of a manifest, besides dedupe.MaxMetadataSize for the whole.
const (
	MaxNameBytes    = 255      // of a machine, disk or actor
	MaxTextBytes    = 4096     // of a reason or note
	MaxDisks        = 1024     // of a machine, and of excluded ones
	MaxCutMachines  = 4096     // of one cut
	MaxContentBytes = 64 << 20 // of a definition or change set
	maxExtensions   = 64
)

// Manifest is one machine at one cut.
type Manifest struct {
	// Domain is the key domain of all its blocks; Site is who made it.
	Domain dedupe.DomainID
	Site   ID

	// MachineID never changes; MachineName is the name at the cut.
	MachineID   ID
	MachineName string

	// CutID is shared by the points of all machines of one cut, CutMachines are the
	// ids of those machines, this one among them.
	CutID       ID
	CutMachines []ID

	Generation Generation
	// Sequence orders points within a generation, from 1; gaps are normal.
	Sequence uint64
	// Parent is the point before this one, zero for the first.
	Parent dedupe.Digest

	Disks    []Disk
	Excluded []ExcludedDisk
	// Definition is the machine's definition; see PutContent.
	Definition Content

	// FrozenAt is the instant of the cut by the wall clock, UTC, in nanoseconds.
	FrozenAt time.Time
	// FrozenMonotonic is the same instant on the monotonic clock of boot BootID.
	FrozenMonotonic time.Duration
	BootID          ID
	// FreezeMicros is how long the freeze took, rounded up.
	FreezeMicros int64

	Consistency Consistency
	// Reason says why Consistency is lower than what was asked for; else "".
	Reason string
	// ShutdownClean: the machine was off, after a clean shutdown of its guest.
	ShutdownClean bool
	// Tracking is the dearest way that any of the disks needed.
	Tracking Tracking
	// ChangedBytes of all disks, in grains.
	ChangedBytes int64
	// Note is the user's text.
	Note string
	// Private, when present, is where the texts are kept (the names of machine, disks
	// and excluded disks, reasons and Note), and the manifest's own bytes have neutral
	// ones. See PutPrivate.
	Private Content

	// Extensions are fields of later releases, kept as they are.
	Extensions []Extension
}

// Generation fences: it grows with every failover. Number and sequence order points
// along one line of descent only; the same number with another ID is a divergence.
type Generation struct {
	Number         uint64
	ID             ID
	GrewFrom       ID // zero: none
	SequenceAtFork uint64
}

// Disk is one disk of a point.
type Disk struct {
	ID   ID
	Name string
	Root hashtree.Root
	// Base is the point that ChangeSet and ChangedBytes are relative to, or zero.
	Base         dedupe.Digest
	Tracking     Tracking
	ChangedBytes int64
	// ChangeSet lists the changed grains; absent when it was not kept.
	ChangeSet Content
}

// ExcludedDisk is a disk of the machine that the point does not hold, and why.
type ExcludedDisk struct {
	ID        ID
	Name      string
	SizeBytes int64
	Reason    string
}

// Extension is a field that this release does not know.
type Extension struct {
	Type uint16
	Data []byte
}

// ErrInvalid: a manifest or note breaks a limit of its format.
var ErrInvalid = errors.New("invalid")

// ID is the point's id: the digest of the manifest's bytes.
func (m *Manifest) ID() (dedupe.Digest, error) {
	b, err := m.Encode()
	if err != nil {
		return dedupe.Digest{}, err
	}
	return dedupe.Sum(b), nil
}

// Disk is the disk of the given name, or nil.
func (m *Manifest) Disk(name string) *Disk {
	for i := range m.Disks {
		if m.Disks[i].Name == name {
			return &m.Disks[i]
		}
	}
	return nil
}

// Validate checks every field against the limits of the format.
func (m *Manifest) Validate() error {
	if err := m.validate(); err != nil {
		return fmt.Errorf("manifest of machine %q: %w", m.MachineName, err)
	}
	return nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, ErrInvalid)...)
}

func (m *Manifest) validate() error {
	switch {
	case m.MachineID.IsZero(), m.CutID.IsZero(), m.Generation.ID.IsZero():
		return invalid("machine, cut or generation id is missing")
	case m.Sequence == 0:
		return invalid("sequence 0")
	case m.FrozenAt.Unix() <= 0 || m.FrozenAt.Year() > 2261:
		return invalid("freeze time %v", m.FrozenAt)
	case m.FrozenMonotonic < 0 || m.FreezeMicros < 0 || m.ChangedBytes < 0:
		return invalid("negative count")
	case consistencyCode(m.Consistency) == 0:
		return invalid("consistency %q", m.Consistency)
	case trackingCode(m.Tracking) == 0:
		return invalid("tracking %q", m.Tracking)
	case len(m.Disks) > MaxDisks || len(m.Excluded) > MaxDisks:
		return invalid("more than %d disks", MaxDisks)
	case len(m.CutMachines) > MaxCutMachines:
		return invalid("cut of more than %d machines", MaxCutMachines)
	case len(m.Extensions) > maxExtensions:
		return invalid("more than %d extensions", maxExtensions)
	}
	if err := errors.Join(checkName("machine name", m.MachineName), checkText("reason", m.Reason),
		checkText("note", m.Note), m.Definition.validate(), m.Private.validate()); err != nil {
		return err
	}
	if !slices.Contains(m.CutMachines, m.MachineID) {
		return invalid("cut does not list the machine itself")
	}
	seen := map[string]bool{}
	ids := map[ID]bool{}
	for i := range m.Disks {
		d := &m.Disks[i]
		if seen[d.Name] || ids[d.ID] || d.ID.IsZero() {
			return invalid("disk %d (%q) has no name or id of its own", i, d.Name)
		}
		seen[d.Name], ids[d.ID] = true, true
		if err := errors.Join(checkName("disk name", d.Name), d.ChangeSet.validate()); err != nil {
			return err
		}
		if err := d.Root.Validate(); err != nil {
			return invalid("disk %q: %v", d.Name, err)
		}
		if d.ChangedBytes < 0 || trackingCode(d.Tracking) == 0 {
			return invalid("disk %q: changed bytes %d, tracking %q", d.Name, d.ChangedBytes, d.Tracking)
		}
	}
	for _, d := range m.Excluded {
		if err := errors.Join(checkName("excluded disk's name", d.Name), checkText("reason", d.Reason)); err != nil {
			return err
		}
		if d.SizeBytes < 0 || d.SizeBytes > blockdev.MaxSize {
			return invalid("excluded disk %q: size %d", d.Name, d.SizeBytes)
		}
	}
	for i, e := range m.Extensions {
		if i > 0 && e.Type <= m.Extensions[i-1].Type {
			return invalid("extensions do not ascend")
		}
		if e.Type&extensionCritical != 0 { // none is kept: who does not know it refuses it
			return invalid("extension of type %#x", e.Type)
		}
	}
	return nil
}

func checkName(what, s string) error {
	if s == "" || len(s) > MaxNameBytes || !utf8.ValidString(s) || bytes.ContainsFunc([]byte(s), unicode.IsControl) {
		return invalid("%s %q is empty, longer than %d bytes or not printable", what, s, MaxNameBytes)
	}
	return nil
}

func checkText(what, s string) error {
	if len(s) > MaxTextBytes || !utf8.ValidString(s) {
		return invalid("%s is longer than %d bytes or not UTF-8", what, MaxTextBytes)
	}
	return nil
}

var consistencies = [...]Consistency{1: Application, 2: Filesystem, 3: Crash}

func consistencyCode(c Consistency) byte { return byte(max(slices.Index(consistencies[1:], c)+1, 0)) }

var trackings = [...]Tracking{1: TrackingEnabled, 2: TrackingChecksumCompare, 3: TrackingFull}

func trackingCode(t Tracking) byte { return byte(max(slices.Index(trackings[1:], t)+1, 0)) }
