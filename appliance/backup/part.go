package backup

import (
	"fmt"
	"strings"

	"github.com/keelblock/keelblock/appliance/machine"
	"github.com/keelblock/keelblock/blockdev/cbt"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// part is one machine of a cut.
type part struct {
	machine machine.Machine
	members *members
	// cost of its point; guarded by attemptState.mu.
	cost recoverypoint.Accounting
}

// hold keeps machines and disks of a request from being deleted while a job runs. The
// parts are in the order of the machines' names.
func (e *Engine) hold(r Request) (parts []*part, release func(), err error) {
	var machines []machine.Machine
	var releaseMachines func()
	if r.Group != "" {
		machines, releaseMachines, err = e.o.Machines.HoldGroup(r.Group)
	} else {
		machines = make([]machine.Machine, 1)
		machines[0], releaseMachines, err = e.o.Machines.Hold(r.Machine)
	}
	if err != nil {
		return nil, nil, err
	}
	var names []string
	for _, m := range machines {
		names = append(names, m.Disks...)
	}
	_, releaseDisks, err := e.o.Disks.Hold(names...)
	if err != nil {
		releaseMachines()
		return nil, nil, fmt.Errorf("%s: %w", r.op(), err)
	}
	release = func() { releaseDisks(); releaseMachines() }
	for _, m := range machines {
		op := r.op()
		if r.Group != "" {
			op += fmt.Sprintf(": machine %q", m.Name)
		}
		mem, err := e.members(op, m)
		if err != nil {
			release()
			return nil, nil, err
		}
		parts = append(parts, &part{machine: m, members: mem})
	}
	return parts, release, nil
}

// trackers of all disks of the parts, in order.
func trackers(parts []*part) (out []*cbt.Tracker) {
	for _, p := range parts {
		for _, d := range p.members.disks {
			out = append(out, d.Tracker())
		}
	}
	return out
}

// diskIDs names machines and disks of the parts.
func diskIDs(parts []*part) string {
	var b strings.Builder
	for _, p := range parts {
		b.WriteString(p.machine.ID)
		for _, d := range p.members.disks {
			b.WriteString(" " + d.Entry().ID)
		}
		for _, d := range p.members.excluded {
			b.WriteString(" -" + d.ID.String())
		}
		b.WriteString("\n")
	}
	return b.String()
}
