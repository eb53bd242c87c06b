package vault

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/blockdev/looptest"
)

// The root of a file system, with lost+found in it, is refused with what to give instead.
func TestRootOfFileSystemIsRefused(t *testing.T) {
	fs := looptest.New(t, "ext4", 64<<20)
	root := &Vault{o: Options{Spec: Spec{Dir: fs.Dir}}}
	var e *appliance.Error
	if err := root.create(t.Context()); !errors.As(err, &e) || e.Kind != appliance.ErrInvalid || !strings.Contains(e.Hint, filepath.Join(fs.Dir, "keelblock")) {
		t.Errorf("the root of a file system: %v", err)
	}
	below := &Vault{o: Options{Spec: Spec{Dir: filepath.Join(fs.Dir, "keelblock")}}}
	if err := below.refuseRoot(); err != nil {
		t.Errorf("a folder in it: %v", err)
	}
}
