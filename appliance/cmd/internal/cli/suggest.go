package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

// suggest adds to a "not found" the name that was probably meant. list gives the
// names that exist.
func suggest(err error, name string, list func() []string) error {
	if connect.CodeOf(err) != connect.CodeNotFound || !strings.Contains(err.Error(), fmt.Sprintf("%q", name)) {
		return err // something else does not exist
	}
	for _, n := range list() {
		if alike(name, n) {
			return notFoundError{fmt.Errorf("%s; did you mean %q?", plain(err), n)}
		}
	}
	return err
}

// plain is the text of an error without the code of the connection.
func plain(err error) string {
	if _, text, ok := strings.Cut(err.Error(), connect.CodeOf(err).String()+": "); ok {
		return text
	}
	return err.Error()
}

// alike says whether a name is probably a slip of another: one letter off, or two in
// longer names.
func alike(a, b string) bool {
	limit := 1
	if min(len(a), len(b)) > 6 {
		limit = 2
	}
	return a != b && editDistance(a, b) <= limit
}

// editDistance is the number of letters to change, add, drop or swap with the next
// (Damerau and Levenshtein, restricted).
func editDistance(a, b string) int {
	before, above, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range above {
		above[j] = j
	}
	for i := range len(a) {
		row[0] = i + 1
		for j := range len(b) {
			cost := above[j]
			if a[i] != b[j] {
				cost++
			}
			row[j+1] = min(cost, above[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, above, row = above, row, before
	}
	return above[len(b)]
}

func (c *client) diskNames(ctx context.Context) []string {
	r, err := c.disks.List(ctx, connect.NewRequest(&kb.ListDisksRequest{}))
	if err != nil {
		return nil
	}
	return mapped(r.Msg.GetDisks(), (*kb.Disk).GetName)
}

func (c *client) machineNames(ctx context.Context) []string {
	r, err := c.machines.List(ctx, connect.NewRequest(&kb.ListMachinesRequest{}))
	if err != nil {
		return nil
	}
	return mapped(r.Msg.GetMachines(), (*kb.Machine).GetName)
}

// selectors are the spellings of points that completion offers: MACHINE@latest,
// MACHINE@TIME, newest first.
func (c *client) selectors(ctx context.Context, deleted bool) []string {
	r, err := c.points.List(ctx, connect.NewRequest(&kb.ListPointsRequest{Deleted: deleted}))
	if err != nil {
		return nil
	}
	points := slices.Clone(r.Msg.GetPoints())
	slices.Reverse(points)
	var out []string
	seen := make(map[string]bool)
	for _, p := range points {
		if !seen[p.GetMachineName()] {
			seen[p.GetMachineName()] = true
			out = append(out, p.GetMachineName()+"@latest")
		}
	}
	for _, p := range points {
		if name := pointName(p); name != "" {
			out = append(out, name)
		}
	}
	for _, p := range points {
		id := p.GetId()
		out = append(out, id[:min(12, len(id))]+"\t"+p.GetMachineName()+" "+p.GetTimeName())
	}
	return out
}
