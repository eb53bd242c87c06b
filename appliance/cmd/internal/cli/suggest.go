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
	if connect.CodeOf(err) != connect.CodeNotFound {
		return err
	}
	best, distance := "", 3
	for _, n := range list() {
		if d := editDistance(name, n); d < distance {
			best, distance = n, d
		}
	}
	if best == "" || best == name {
		return err
	}
	return notFoundError{fmt.Errorf("%s; did you mean %q?", plain(err), best)}
}

// plain is the text of an error without the code of the connection.
func plain(err error) string {
	if _, text, ok := strings.Cut(err.Error(), connect.CodeOf(err).String()+": "); ok {
		return text
	}
	return err.Error()
}

// editDistance is the number of letters to change, add or drop (Levenshtein).
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
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
