package disks

import (
	"context"
	"errors"
	"fmt"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/blockdev/nbd/hostdev"
)

// Attached is the device of the host's kernel that a disk is attached to, as the list
// has it.
type Attached struct {
	Device      string `json:"device"`                // "/dev/nbd0"
	Connections int    `json:"connections,omitempty"` // 0: 1
	ReadOnly    bool   `json:"readOnly,omitempty"`
}

// hostDevice is an Attached that is kept. It does not change.
type hostDevice struct {
	Attached
	attachment *hostdev.Attachment
}

// KeepAttached keeps every disk that is attached to a device of the host connected,
// those of the list and those that Attach adds, until ctx ends. Then the devices are left
// as they are: they wait for the next start.
func (r *Registry) KeepAttached(ctx context.Context) {
	r.change.Lock()
	r.keeping = ctx
	for id, h := range r.devices() {
		r.o.Logger.Info("disk is attached again", "disk", id, "device", h.Device)
		r.keep(h)
	}
	r.change.Unlock()
	<-ctx.Done()
	r.change.Lock() // an Attach that began before has started its keeper by now
	r.keeping = nil
	r.change.Unlock()
	r.keepers.Wait()
	for id, h := range r.devices() {
		r.o.Logger.Warn("the device waits for the next start of the daemon", "disk", id, "device", h.Device)
	}
}

// keep runs an attachment until ctx of KeepAttached ends. change is held.
func (r *Registry) keep(h *hostDevice) {
	if err := hostdev.FlushIO(); err != nil {
		r.o.Logger.Warn("writes of attached disks may stall when memory is short", "error", err)
	}
	ctx := r.keeping
	r.keepers.Go(func() { h.attachment.Run(ctx) })
}

// devices of all disks, by disk.
func (r *Registry) devices() map[string]*hostDevice {
	r.mu.RLock()
	defer r.mu.RUnlock()
	out := map[string]*hostDevice{}
	for _, d := range r.disks {
		if h := r.attached[d.entry.ID]; h != nil {
			out[d.entry.Name] = h
		}
	}
	return out
}

// remember prepares the attachment of an entry of the list.
func (r *Registry) remember(e Entry) {
	if e.Attached == nil {
		return
	}
	h, err := r.prepare(e, *e.Attached)
	if err != nil {
		r.o.Logger.Error("disk cannot be attached again", "disk", e.Name, "device", e.Attached.Device, "error", err)
		return
	}
	r.attached[e.ID] = h
}

// withDevice completes an entry for the list.
func (r *Registry) withDevice(e Entry) Entry {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if h := r.attached[e.ID]; h != nil {
		e.Attached = &h.Attached
	}
	return e
}

func (r *Registry) prepare(e Entry, to Attached) (*hostDevice, error) {
	index, err := hostdev.ParsePath(to.Device)
	if err != nil {
		return nil, err
	}
	a, err := hostdev.New(index, hostdev.Options{Serve: r.o.Server.ServeConn, Export: e.Name, Backend: "keelblock:" + e.ID,
		Connections: to.Connections, ReadOnly: to.ReadOnly, Logger: r.o.Logger})
	if err != nil {
		return nil, err
	}
	to.Device = a.Path()
	return &hostDevice{to, a}, nil
}

// Attach attaches a disk to a device of the host's kernel, and keeps it attached, over
// restarts too, until Detach.
func (r *Registry) Attach(ctx context.Context, name string, to Attached) error {
	op := fmt.Sprintf("attach disk %q", name)
	r.change.Lock()
	defer r.change.Unlock()
	d, err := r.Get(name)
	if err != nil {
		return err
	}
	if to.Connections < 0 || to.Connections > hostdev.MaxConnections {
		return &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Text: fmt.Sprintf("%d connections", to.Connections),
			Hint: fmt.Sprintf("1 to %d are possible", hostdev.MaxConnections)}
	}
	h, err := r.prepare(d.entry, to)
	if err != nil {
		return attachError(op, name, err)
	}
	if err := r.checkAttachable(op, d, h); err != nil {
		return err
	}
	// The list comes first: a kill between the two attaches at the next start.
	r.setAttached(d, h)
	err = r.save(d.entry, false)
	if err == nil {
		err = h.attachment.Connect(ctx)
	}
	if err != nil {
		r.setAttached(d, nil)
		return errors.Join(attachError(op, name, err), r.save(d.entry, false))
	}
	r.keep(h)
	return nil
}

// checkAttachable says why a disk cannot be attached now. change is held.
func (r *Registry) checkAttachable(op string, d *Disk, h *hostDevice) error {
	inUse := func(hint, format string, args ...any) error {
		return &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: fmt.Sprintf(format, args...), Hint: hint}
	}
	if r.keeping == nil {
		return &appliance.Error{Op: op, Kind: appliance.ErrUnavailable, Text: "the daemon is starting or stopping"}
	}
	if state, reason := d.State(); state == Offline {
		return inUse("keelblock status shows what it lacks", "it is offline: %s", reason)
	}
	for other, with := range r.devices() {
		switch {
		case other == d.entry.Name:
			return inUse("keelblock disk detach "+other, "it is attached to %s", with.Device)
		case with.Device == h.Device:
			return inUse("choose another device, or keelblock disk detach "+other, "disk %q is attached to %s", other, h.Device)
		}
	}
	return nil
}

// Detach frees the device and forgets it. It refuses while something holds the device.
func (r *Registry) Detach(ctx context.Context, name string) error {
	op := fmt.Sprintf("detach disk %q", name)
	r.change.Lock()
	defer r.change.Unlock()
	d, err := r.Get(name)
	if err != nil {
		return err
	}
	h := r.device(d)
	if h == nil {
		return &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: "it is not attached to a device of this host",
			Hint: "keelblock disk attach " + name + " /dev/nbd0 attaches it"}
	}
	if err := h.attachment.Detach(ctx); err != nil {
		return attachError(op, name, err)
	}
	r.setAttached(d, nil)
	if err := r.save(d.entry, false); err != nil {
		r.setAttached(d, h) // the next start attaches it, and so says the list now
		return fmt.Errorf("%s: it is detached, but not for good: %w", op, err)
	}
	return nil
}

// setAttached notes the device of a disk, or that it has none.
func (r *Registry) setAttached(d *Disk, h *hostDevice) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if h == nil {
		delete(r.attached, d.entry.ID)
		return
	}
	r.attached[d.entry.ID] = h
}

func (r *Registry) device(d *Disk) *hostDevice {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.attached[d.entry.ID]
}

// Device is the path of the host's device that a disk is attached to, or "", and why it
// is not connected now, or nil.
func (r *Registry) Device(d *Disk) (path string, lacks error) {
	h := r.device(d)
	if h == nil {
		return "", nil
	}
	return h.Device, h.attachment.Err()
}

// resizeDevice tells the kernel the new size of an attached disk: after the disk has
// grown, before it shrinks.
func (r *Registry) resizeDevice(op string, d *Disk, sizeBytes int64) error {
	h := r.device(d)
	if h == nil {
		return nil
	}
	if err := h.attachment.Resize(sizeBytes); err != nil {
		return attachError(op, d.entry.Name, err)
	}
	return nil
}

// attachError adds the next step to what the kernel says.
func attachError(op, name string, err error) error {
	e := &appliance.Error{Op: op, Kind: appliance.ErrUnavailable, Err: err}
	switch {
	case errors.Is(err, hostdev.ErrNoDriver):
		e.Hint = "modprobe nbd, and a file in /etc/modules-load.d has it at each boot"
	case errors.Is(err, hostdev.ErrNotPermitted):
		e.Hint = "run the daemon as root, or as root run what keelblock disk show " + name + " --for nbd-client prints"
	case errors.Is(err, hostdev.ErrNotDevice):
		e.Kind, e.Hint = appliance.ErrInvalid, "give a whole device such as /dev/nbd0"
	case errors.Is(err, hostdev.ErrBusy):
		e.Kind, e.Hint = appliance.ErrInUse, "choose another device; ls /sys/block/nbd*/pid names those that are taken"
	case errors.Is(err, hostdev.ErrHeld):
		e.Kind, e.Hint = appliance.ErrInUse, "unmount it first"
	case errors.Is(err, hostdev.ErrNoConnection):
		e.Kind, e.Hint = appliance.ErrInUse, "see keelblock disk show "+name+"; nbd-client -d frees the device by force, and loses what is not written"
	case errors.Is(err, hostdev.ErrNoResize):
		e.Kind, e.Hint = appliance.ErrInUse, "unmount and detach it, then attach it again"
	default:
		return fmt.Errorf("%s: %w", op, err)
	}
	return e
}
