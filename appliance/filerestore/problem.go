package filerestore

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// maxProblems is how many different problems of a disk are kept.
const maxProblems = 50

// problemLog keeps what was answered with an I/O error, for STATUS. tree, machine, point
// and disk do not change; disk is "" for what spans disks.
type problemLog struct {
	tree                 *Tree
	machine, point, disk string

	mu   sync.Mutex
	list []problem
}

type problem struct {
	what  string
	count int
	when  time.Time
}

// add keeps a problem, or counts it once more.
func (l *problemLog) add(what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.list {
		if l.list[i].what == what {
			l.list[i].count++
			l.list[i].when = time.Now()
			return
		}
	}
	if len(l.list) == maxProblems {
		l.list = slices.Delete(l.list, 0, 1)
	}
	l.list = append(l.list, problem{what, 1, time.Now()})
	l.tree.o.Logger.Warn("unreadable", "machine", l.machine, "recovery_point", l.point, "disk", l.disk, "problem", what)
}

// lines are the problems as STATUS has them.
func (l *problemLog) lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for _, q := range l.list {
		where := "volume "
		if l.disk != "" {
			where = "disk " + l.disk + ": "
		}
		out = append(out, fmt.Sprintf("%s  %s%s (%d times)", q.when.UTC().Format(time.RFC3339), where, q.what, q.count))
	}
	return out
}
