package cli

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

// table prints rows in columns. The heading appears on a terminal only, so that a
// script gets rows and nothing else.
func (a *app) table(w io.Writer, heading string, rows [][]string) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	if a.outTerminal && len(rows) > 0 {
		fmt.Fprintln(t, strings.Join(strings.Split(heading, " "), "\t"))
	}
	for _, r := range rows {
		for i := range r {
			if r[i] == "" {
				r[i] = "-"
			}
		}
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	t.Flush()
}

// pair is a line of a description.
type pair struct{ name, value string }

// describe prints name and value of each pair that has a value.
func describe(w io.Writer, pairs ...pair) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, p := range pairs {
		if p.value != "" {
			fmt.Fprintf(t, "%s:\t%s\n", p.name, p.value)
		}
	}
	t.Flush()
}

// shortID is a point's id for people: enough of it on a terminal, all of it for a
// script.
func (a *app) shortID(id string) string {
	if a.outTerminal && len(id) > 12 {
		return id[:12]
	}
	return id
}

// at is a point in time for people, in UTC, to the millisecond where it matters.
func at(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().UTC().Format("2006-01-02T15:04:05.000Z")
}

// age is how long ago t was, in one unit.
func age(now time.Time, t *timestamppb.Timestamp) string {
	if t == nil {
		return "never"
	}
	return short(now.Sub(t.AsTime())) + " ago"
}

// short is a duration in its two largest units.
func short(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%d days", int(d.Hours())/24)
}

func (a *app) diskTable(w io.Writer, disks []*kb.Disk) {
	rows := mapped(disks, func(d *kb.Disk) []string {
		return []string{d.GetName(), human(d.GetSizeBytes()), human(d.GetAllocatedBytes()), d.GetState(), d.GetMachineName(), d.GetUri()}
	})
	a.table(w, "NAME SIZE ALLOCATED STATE MACHINE URI", spaceless(rows))
}

// spaceless writes sizes as 1.5GiB, so that columns can be cut at spaces.
func spaceless(rows [][]string) [][]string {
	for _, r := range rows {
		for i := range r {
			r[i] = strings.ReplaceAll(r[i], " ", "")
		}
	}
	return rows
}

func diskNames(disks []*kb.Disk) string {
	return strings.Join(mapped(disks, (*kb.Disk).GetName), ",")
}

func (a *app) pointTable(w io.Writer, points []*kb.RecoveryPoint) {
	rows := mapped(points, func(p *kb.RecoveryPoint) []string {
		var size int64
		for _, d := range p.GetDisks() {
			size += d.GetSizeBytes()
		}
		state := p.GetState()
		switch {
		case state == "available":
			state = ""
		case p.GetDeletedUntil() != nil:
			state += ",until=" + at(p.GetDeletedUntil())
		}
		if p.GetHeld() {
			state = strings.TrimPrefix(state+",held", ",")
		}
		row := []string{a.shortID(p.GetId()), p.GetMachineName(), cmp.Or(p.GetTimeName(), at(p.GetFrozenAt())), p.GetConsistency(),
			human(size), human(p.GetChangedBytes()), human(p.GetStoredBytes()), human(p.GetUniqueBytes()), state}
		row = spaceless([][]string{row})[0]
		return append(row, p.GetNote())
	})
	a.table(w, "ID MACHINE FROZEN CONSISTENCY SIZE CHANGED STORED UNIQUE STATE NOTE", rows)
}

func (a *app) jobTable(w io.Writer, jobs []*kb.Job) {
	rows := mapped(jobs, func(j *kb.Job) []string {
		took := ""
		if e := j.GetEndedAt(); e != nil {
			took = short(e.AsTime().Sub(j.GetStartedAt().AsTime()))
		}
		return spaceless([][]string{{j.GetJobId(), j.GetKind(), j.GetObjectName(), j.GetState(), at(j.GetStartedAt()), took, human(j.GetDoneBytes())}})[0]
	})
	a.table(w, "ID KIND OBJECT STATE STARTED TOOK DONE", rows)
}
