package guestfiles

import (
	"context"
	"errors"
	"fmt"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// maxDepth bounds how many levels below the first folder are entered.
const maxDepth = 1000

var errDepth = fmt.Errorf("more than %d levels of folders", maxDepth)

// errTwice is a directory with two names, which no sound file system has.
var errTwice = fmt.Errorf("the folder was met before at another place: %w", filesystem.ErrCorrupt)

// Visits are the folders that were entered.
type Visits struct{ seen map[key]bool }

// NewVisits is none yet.
func NewVisits() Visits { return Visits{make(map[key]bool)} }

// Enter notes a folder, and fails when it was entered before: an image that is damaged
// may have circles.
func (v Visits) Enter(n *Node) error {
	if n.vol == nil {
		return nil
	}
	if v.seen[n.key()] {
		return errTwice
	}
	v.seen[n.key()] = true
	return nil
}

// Walk visits a node and all that is below it, a folder before what it holds. visit
// gets the path; a node that cannot be read comes with an error, and maybe a second
// time after it was entered. The walk ends when visit returns an error, and returns it.
func Walk(ctx context.Context, f Found, attributes bool, visit func(f Found, err error) error) error {
	return walkBelow(ctx, f, attributes, NewVisits(), 0, visit)
}

func walkBelow(ctx context.Context, f Found, attributes bool, visits Visits, depth int, visit func(f Found, err error) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := visit(f, nil); err != nil || !f.IsDir() {
		return err
	}
	err := visits.Enter(f.Node)
	if err == nil && depth >= maxDepth {
		err = errDepth
	}
	if err != nil {
		return visit(f, err)
	}
	var stopped error
	err = f.List(ctx, attributes, func(list []Child) bool {
		for _, c := range list {
			child := Found{c.Node, join(f.Path, string(c.Name))}
			if c.Err != nil {
				stopped = visit(child, c.Err)
			} else {
				stopped = walkBelow(ctx, child, attributes, visits, depth+1, visit)
			}
			if stopped != nil {
				return false
			}
		}
		return true
	})
	if stopped != nil || ctx.Err() != nil {
		return errors.Join(stopped, ctx.Err())
	}
	if err != nil {
		return visit(f, err)
	}
	return nil
}
