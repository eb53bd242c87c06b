package disks

import (
	"errors"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/blockdev/nbd/hostdev"
)

// What the kernel refuses reaches the operator with the next step.
func TestAttachErrorsNameTheNextStep(t *testing.T) {
	for cause, want := range map[error]string{
		hostdev.ErrNoDriver:     "modprobe nbd",
		hostdev.ErrNotPermitted: "as root",
		hostdev.ErrNotDevice:    "/dev/nbd0",
		hostdev.ErrBusy:         "choose another device",
		hostdev.ErrHeld:         "unmount",
		hostdev.ErrNoConnection: "disk show web0",
		hostdev.ErrNoResize:     "attach it again",
	} {
		err := attachError(`attach disk "web0"`, "web0", cause)
		var e *appliance.Error
		if !errors.As(err, &e) || !strings.Contains(e.Hint, want) || !errors.Is(err, cause) {
			t.Errorf("%v: %v, want a hint with %q", cause, err, want)
		}
	}
}
