package filerestore

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// statusText is the STATUS file of a point.
type statusText struct {
	tree  *Tree
	point Point
}

// Text says of each disk and volume whether it can be read, how current it is, and
// what went wrong so far. It opens what was not open yet.
func (s statusText) Text(ctx context.Context) ([]byte, error) {
	var b strings.Builder
	p := s.point
	fmt.Fprintf(&b, "point    %s\nmachine  %s\nfrozen   %s, %s-consistent\n", p.ID, p.Machine,
		p.FrozenAt.UTC().Format(time.RFC3339Nano), p.Consistency)
	if p.Note != "" {
		fmt.Fprintf(&b, "note     %s\n", p.Note)
	}
	points := s.tree.volumes(p)
	found := points.find(p)
	var problems []string
	for i, pd := range p.Disks {
		fmt.Fprintf(&b, "\ndisk %s: %d bytes\n", pd.Name, pd.SizeBytes)
		if err := found.failed[i]; err != nil {
			fmt.Fprintf(&b, "  UNREADABLE: %v\n", err)
		}
		for _, w := range found.warnings[i] {
			fmt.Fprintf(&b, "  partition table: %s\n", w)
		}
		if !s.list(ctx, &b, found, i) && found.failed[i] == nil {
			fmt.Fprintf(&b, "  no volumes\n")
		}
		problems = append(problems, s.tree.disk(p, pd).problems.lines()...)
	}
	var spanning strings.Builder
	if s.list(ctx, &spanning, found, -1) {
		fmt.Fprintf(&b, "\nvolumes of LVM and md\n%s", spanning.String())
	}
	if s.tree.o.AsMounted {
		trees := points.guestTrees(ctx, p)
		if len(trees) == 0 {
			fmt.Fprintf(&b, "\n%s: no volume that can be read has an /etc/fstab\n", AsMounted)
		}
		for _, g := range trees {
			fmt.Fprintf(&b, "\n%s, by /etc/fstab\n  %s\n", g.name, strings.Join(g.notes, "\n  "))
		}
	}
	problems = append(problems, points.problems.lines()...)
	if len(problems) == 0 {
		b.WriteString("\nno problems so far\n")
	} else {
		fmt.Fprintf(&b, "\nproblems, each answered with an I/O error:\n%s\n", strings.Join(problems, "\n"))
	}
	return []byte(b.String()), nil
}

// list writes a line for each volume of a disk, or for those that span disks (-1), and
// says whether there is one.
func (s statusText) list(ctx context.Context, b *strings.Builder, found *foundVolumes, disk int) bool {
	listed := false
	for _, v := range found.vols {
		if v.node.Disk != disk {
			continue
		}
		listed = true
		fmt.Fprintf(b, "  volumes/%s: %s\n", v.name, v.describe(ctx))
	}
	return listed
}

// describe says in one line what a volume is, through which layers it is read, and why it
// cannot be read, or in which state its file system is.
func (v *vol) describe(ctx context.Context) string {
	var parts []string
	if v.node.Disk < 0 {
		parts = append(parts, v.node.What)
	}
	parts = append(parts, v.node.Layers...)
	switch {
	case v.node.Err != nil:
		text := ""
		if v.node.Member != "" {
			text = v.node.Member + ", "
		}
		text += fmt.Sprintf("UNREADABLE: %v", v.node.Err)
		if v.raw {
			text += fmt.Sprintf("; see volumes/%s.raw", v.name)
		}
		parts = append(parts, text)
	case v.node.Member != "":
		parts = append(parts, v.node.Member)
	default:
		parts = append(parts, v.describeContent(ctx))
	}
	return strings.Join(append(parts, v.node.Notes...), "; ")
}

// describeContent is the state of what a volume holds.
func (v *vol) describeContent(ctx context.Context) string {
	if !v.readable {
		text := "holds " + v.holds
		if v.raw {
			text += fmt.Sprintf("; not readable as files, see volumes/%s.raw", v.name)
		}
		return text
	}
	var info filesystem.Info
	err := safely(func() error {
		fs, err := v.Open(ctx)
		if err == nil {
			info = fs.Info()
		}
		return err
	})
	if err != nil {
		return fmt.Sprintf("UNREADABLE: %v", err)
	}
	text := info.Format
	if info.Label != "" {
		text += fmt.Sprintf(" %q", info.Label)
	}
	if info.UUID != "" {
		text += " " + info.UUID
	}
	if info.State.Clean {
		text += ", clean"
		if info.State.Reason != "" {
			text += "; " + info.State.Reason
		}
		return text
	}
	return text + ", NOT CLEAN: " + info.State.Reason
}
