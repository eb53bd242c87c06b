package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"connectrpc.com/connect"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

func TestExitStatusOfEachClassOfError(t *testing.T) {
	remote := func(c connect.Code) error { return connect.NewError(c, errors.New("text")) }
	for _, tt := range []struct {
		name string
		err  error
		want int
	}{
		{"success", nil, 0},
		{"any failure", errors.New("x"), 1},
		{"interrupted", context.Canceled, 1},
		{"usage", usageError{errors.New("x")}, 2},
		{"invalid name, said by the daemon", remote(connect.CodeInvalidArgument), 2},
		{"lower label", partialError{"x"}, 3},
		{"not found", remote(connect.CodeNotFound), 4},
		{"not found, wrapped", fmt.Errorf("a: %w", remote(connect.CodeNotFound)), 4},
		{"file not found", fmt.Errorf("open: %w", fs.ErrNotExist), 4},
		{"with a suggestion", notFoundError{errors.New("x")}, 4},
		{"refused by policy", remote(connect.CodePermissionDenied), 5},
		{"exists", remote(connect.CodeAlreadyExists), 1},
		{"in use", remote(connect.CodeFailedPrecondition), 1},
		{"no space", remote(connect.CodeResourceExhausted), 1},
		{"vault closed", remote(connect.CodeUnavailable), 1},
		{"no daemon", unreachable{errors.New("x"), fs.ErrNotExist}, 1},
		{"failed job", jobError(&kb.Job{State: jobFailed, Error: "x", ErrorCode: "data_loss"}), 1},
		{"failed job without a code", jobError(&kb.Job{State: jobFailed}), 1},
		{"refused job", jobError(&kb.Job{State: jobFailed, Error: "x", ErrorCode: "permission_denied"}), 5},
		{"job of something gone", jobError(&kb.Job{State: jobFailed, Error: "x", ErrorCode: "not_found"}), 4},
		{"cancelled job", jobError(&kb.Job{State: jobCancelled}), 1},
		{"job with warnings", jobError(&kb.Job{State: jobWithWarnings}), 3},
		{"completed job", jobError(&kb.Job{State: jobCompleted}), 0},
	} {
		if got := exitStatus(tt.err); got != tt.want {
			t.Errorf("%s: exit status %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestSizesAreShown(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 2 << 30: "2 GiB", 5 << 40: "5 TiB"} {
		if got := human(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func TestSlipsAreAlike(t *testing.T) {
	for _, p := range [][2]string{{"web", "wbe"}, {"web0", "wbe0"}, {"web", "web0"}, {"database", "databsae1"}} {
		if !alike(p[0], p[1]) {
			t.Errorf("%q and %q are not alike", p[0], p[1])
		}
	}
	for _, p := range [][2]string{{"web", "web"}, {"bad0", "raw0"}, {"a", "xyz"}, {"", "abc"}} {
		if alike(p[0], p[1]) {
			t.Errorf("%q and %q are alike", p[0], p[1])
		}
	}
}
