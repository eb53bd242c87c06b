package appliance

import (
	"errors"
	"fmt"
)

// The classes of errors that an operator can meet.
var (
	// ErrNotFound: no disk, machine, point, export or job has this name.
	ErrNotFound = errors.New("not found")
	// ErrExists: the name is taken.
	ErrExists = errors.New("already exists")
	// ErrInvalid: a name, size or option that no state of the appliance accepts.
	ErrInvalid = errors.New("invalid")
	// ErrInUse: the object is in use, or in a state that forbids the operation.
	ErrInUse = errors.New("in use")
	// ErrRefused: a policy forbids it.
	ErrRefused = errors.New("refused by policy")
	// ErrNoSpace: the file system is full or would fall below its reserve.
	ErrNoSpace = errors.New("no space left")
	// ErrUnavailable: the vault or the catalog is closed, or the daemon stops.
	ErrUnavailable = errors.New("unavailable")
	// ErrCancelled: the operator or a stop of the daemon ended it.
	ErrCancelled = errors.New("cancelled")
)

// Error is what an operator reads: "delete disk "web0": in use by machine "web";
// keelblock machine edit web --remove-disk web0".
type Error struct {
	Op   string // operation and object: `delete disk "web0"`
	Kind error  // one of the sentinels
	Text string // what is wrong, in words; "" prints Err, else Kind
	Hint string // the next step, or ""
	Err  error  // the cause, or nil
}

// Error joins the parts in the order in which a person needs them.
func (e *Error) Error() string {
	text := e.Text
	if text == "" && e.Kind != nil && e.Err == nil {
		text = e.Kind.Error()
	}
	if e.Err != nil {
		if text != "" {
			text += ": "
		}
		text += e.Err.Error()
	}
	if e.Op != "" {
		text = e.Op + ": " + text
	}
	if e.Hint != "" {
		text += "; " + e.Hint
	}
	return text
}

// Unwrap makes both the class and the cause visible to errors.Is.
func (e *Error) Unwrap() []error {
	var out []error
	if e.Kind != nil {
		out = append(out, e.Kind)
	}
	if e.Err != nil {
		out = append(out, e.Err)
	}
	return out
}

// NotFound is the usual error for a name that does not exist. An op that only looked
// for it is left out: it would say the same.
func NotFound(op, noun, name string) error {
	if op == fmt.Sprintf("find %s %q", noun, name) {
		op = ""
	}
	return &Error{Op: op, Kind: ErrNotFound, Text: fmt.Sprintf("%s %q does not exist", noun, name),
		Hint: fmt.Sprintf("see keelblock %s list", noun)}
}
