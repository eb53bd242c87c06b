package usage

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/keelblock/keelblock/appliance/machine"
	"github.com/keelblock/keelblock/appliance/vault"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// Protection is whether a machine is protected.
type Protection string

// The states of protection.
const (
	Pending   Protection = "initialBackupPending" // it has no point yet
	Protected Protection = "protected"
	Stopped   Protection = "stopped" // it is no more, its points are
)

// Billing is whether a machine is charged.
type Billing string

// The states of billing.
const (
	None     Billing = "none"     // no backup has succeeded yet
	Active   Billing = "active"   // at the size of the newest backup
	Retained Billing = "retained" // protection ended; at the last size, while points stay
)

// Weights of a machine in counts of protected instances.
const (
	WithAgent    = 1.0
	WithoutAgent = 0.5
)

// Machine is what a machine takes in one vault.
type Machine struct {
	Name, Vault    string
	Protection     Protection
	Billing        Billing
	ProtectedBytes int64
	Weight         float64
	recoverypoint.MachineUsage
	// In is where its points are; nil for a machine without any.
	In *vault.Handle
}

// Vault is what a vault takes.
type Vault struct {
	Name string
	recoverypoint.Usage
	PackBytes  int64 // of one copy, on disk
	IndexBytes int64
	Copies     int
}

// Report is the whole.
type Report struct {
	Machines []Machine // by name, then vault
	Vaults   []Vault
	// Exact is false when a vault is too large to count within its memory.
	Exact bool
}

// Make counts. machine and vaultName narrow what is listed; "" is all. Sharing is
// counted over the whole of each vault all the same.
func Make(ctx context.Context, machines *machine.Set, vaults *vault.Set, machineName, vaultName string) (*Report, error) {
	if vaultName != "" {
		if _, err := vaults.Get(vaultName); err != nil {
			return nil, err
		}
	}
	handles, err := vaults.Each(ctx)
	if err != nil {
		return nil, err
	}
	live, err := machines.List()
	if err != nil {
		return nil, err
	}
	r := &Report{Exact: true}
	counted := map[string]bool{}
	for _, h := range handles {
		if vaultName != "" && h.Vault.Name() != vaultName {
			continue
		}
		u, err := h.Points.Usage(ctx)
		if err != nil {
			return nil, fmt.Errorf("vault %s: %w", h.Vault.Name(), err)
		}
		r.Exact = r.Exact && u.Exact
		r.Vaults = append(r.Vaults, ofVault(h, u))
		for _, mu := range u.Machines {
			m := ofMachine(h, mu, live)
			counted[m.Name] = true
			if machineName == "" || m.Name == machineName {
				r.Machines = append(r.Machines, m)
			}
		}
	}
	for _, m := range live {
		if !counted[m.Name] && (machineName == "" || m.Name == machineName) {
			r.Machines = append(r.Machines, Machine{Name: m.Name, Vault: nameOr(m.Vault), Protection: Pending, Billing: None, Weight: WithoutAgent})
		}
	}
	if machineName != "" && len(r.Machines) == 0 {
		if _, err := machines.Get(machineName); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(r.Machines, func(a, b Machine) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return strings.Compare(a.Vault, b.Vault)
	})
	return r, nil
}

func nameOr(vaultName string) string {
	if vaultName == "" {
		return vault.DefaultName
	}
	return vaultName
}

// ofMachine describes a machine that has points in a vault.
func ofMachine(h *vault.Handle, mu recoverypoint.MachineUsage, live []machine.Machine) Machine {
	newest := mu.Points[len(mu.Points)-1].Point
	m := Machine{Name: newest.Manifest.MachineName, Vault: h.Vault.Name(), Protection: Stopped, Billing: Retained,
		Weight: WithoutAgent, MachineUsage: mu, In: h, ProtectedBytes: protectedBytes(newest)}
	for _, l := range live {
		if l.ID == mu.ID.String() {
			m.Name, m.Protection, m.Billing = l.Name, Protected, Active
		}
	}
	return m
}

// protectedBytes is what a point's disks occupied at its cut; of a point of an earlier
// release, which did not count that, what its disks can hold.
func protectedBytes(p *recoverypoint.Point) int64 {
	if n := p.Accounting.ProtectedBytes; n > 0 {
		return n
	}
	var sum int64
	for i := range p.Manifest.Disks {
		if p.Accounting != (recoverypoint.Accounting{}) && p.Manifest.Disks[i].Root.Top.IsZero() {
			continue // nothing is on it
		}
		sum += p.Manifest.Disks[i].Root.SizeBytes
	}
	return sum
}

func ofVault(h *vault.Handle, u *recoverypoint.Usage) Vault {
	s := h.Store.Stats()
	return Vault{Name: h.Vault.Name(), Usage: *u, PackBytes: s.PackBytes, IndexBytes: h.Store.IndexBytes(), Copies: 1 + len(h.Vault.Spec().Locations)}
}
