package cli

import (
	"errors"
	"io/fs"

	"connectrpc.com/connect"
)

// Exit statuses: a contract that scripts rely on.
const (
	exitDone     = 0
	exitFailed   = 1
	exitUsage    = 2 // wrong usage
	exitPartial  = 3 // a label lower than the one asked for, or part of the work undone
	exitNotFound = 4
	exitRefused  = 5 // refused by policy
)

// usageError is a command line that cannot be right.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// partialError says that the work was done, but less of it than was asked for.
type partialError struct{ text string }

func (e partialError) Error() string { return e.text }

// codeError is the error of a job: its text, and its class as a Connect code.
type codeError struct {
	code connect.Code
	text string
}

func (e codeError) Error() string { return e.text }

// notFoundError is something that only this side knows not to exist.
type notFoundError struct{ error }

func (e notFoundError) Unwrap() error { return e.error }

// exitStatus is the one place where errors become exit statuses.
func exitStatus(err error) int {
	var (
		usage    usageError
		partial  partialError
		notFound notFoundError
		code     codeError
		remote   *connect.Error
	)
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &partial):
		return exitPartial
	case errors.As(err, &notFound):
		return exitNotFound
	case errors.As(err, &code):
		return codeStatus(code.code)
	case errors.As(err, &remote):
		return codeStatus(remote.Code())
	case errors.Is(err, fs.ErrNotExist):
		return exitNotFound
	}
	return exitFailed
}

func codeStatus(c connect.Code) int {
	switch c {
	case connect.CodeInvalidArgument:
		return exitUsage
	case connect.CodeNotFound:
		return exitNotFound
	case connect.CodePermissionDenied:
		return exitRefused
	}
	return exitFailed
}
