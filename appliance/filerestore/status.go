package filerestore

import (
	"context"
	"fmt"
	"slices"
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
	var problems []string
	for _, pd := range p.Disks {
		d := s.tree.disk(p, pd)
		fmt.Fprintf(&b, "\ndisk %s: %d bytes\n", pd.Name, pd.SizeBytes)
		vols, err := d.volumes(ctx)
		if err != nil {
			fmt.Fprintf(&b, "  UNREADABLE: %v\n", err)
		} else if len(vols) == 0 {
			fmt.Fprintf(&b, "  no volumes\n")
		}
		d.mu.Lock()
		warnings := slices.Clone(d.warnings)
		d.mu.Unlock()
		for _, w := range warnings {
			fmt.Fprintf(&b, "  partition table: %s\n", w)
		}
		for _, v := range vols {
			fmt.Fprintf(&b, "  volumes/%s: %s\n", v.name, v.describe(ctx))
		}
		d.mu.Lock()
		for _, q := range d.problems {
			problems = append(problems, fmt.Sprintf("%s  disk %s: %s (%d times)", q.when.UTC().Format(time.RFC3339), pd.Name, q.what, q.count))
		}
		d.mu.Unlock()
	}
	if len(problems) == 0 {
		b.WriteString("\nno problems so far\n")
	} else {
		fmt.Fprintf(&b, "\nproblems, each answered with an I/O error:\n%s\n", strings.Join(problems, "\n"))
	}
	return []byte(b.String()), nil
}

// describe is the state of a volume in one line.
func (v *vol) describe(ctx context.Context) string {
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
