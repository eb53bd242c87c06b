package daemon

import (
	"encoding/hex"
	"fmt"

	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// liveBlock fills p from the live disk with this id.
func (d *daemon) liveBlock(id recoverypoint.ID, off int64, p []byte) error {
	name := hex.EncodeToString(id[:])
	for _, disk := range d.disks.List() {
		if disk.Entry().ID != name {
			continue
		}
		dev := disk.Device()
		if dev == nil {
			return fmt.Errorf("disk %q is offline", disk.Name())
		}
		_, err := dev.ReadAt(p, off)
		return err
	}
	return fmt.Errorf("there is no disk with id %s", name)
}
