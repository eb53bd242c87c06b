package api

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/job"
	"github.com/keelblock/keelblock/appliance/keys"
	"github.com/keelblock/keelblock/appliance/vault"
	"github.com/keelblock/keelblock/dedupe/blockstore"
)

type vaultsService struct{ service }

// Create starts a job that makes a vault and opens it. What can be refused at once is.
func (s vaultsService) Create(ctx context.Context, r *connect.Request[kb.CreateVaultRequest]) (*connect.Response[kb.Job], error) {
	spec, err := s.Vaults.Plan(vault.Spec{Name: r.Msg.Name, Locations: r.Msg.Locations, BlockSizeBytes: int(r.Msg.BlockSizeBytes),
		Redundancy: vault.Redundancy(r.Msg.Redundancy), Compression: r.Msg.Compression})
	if err != nil {
		return nil, err
	}
	key, err := keys.ParseSpec(r.Msg.Key, r.Msg.Passphrase)
	if err != nil {
		return nil, err
	}
	spec.Keys = func(name, dir string) vault.Keys { return s.Keys.Vault(name, dir, key) }
	t, err := s.Jobs.Start("CreateVault", r.Msg.Name, func(ctx context.Context, t *job.Task) error {
		v, err := s.Vaults.Create(ctx, spec)
		if err != nil {
			return err
		}
		t.Result(fmt.Sprintf("%s %s", v.Name(), v.Spec().Dir))
		return nil
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(jobMessage(t.Record())), nil
}

// Edit changes a vault's settings.
func (s vaultsService) Edit(ctx context.Context, r *connect.Request[kb.EditVaultRequest]) (*connect.Response[kb.Vault], error) {
	v, err := s.Vaults.Get(r.Msg.Name)
	if err != nil {
		return nil, err
	}
	if r.Msg.Redundancy != "" {
		if err := s.Vaults.SetRedundancy(ctx, v.Name(), vault.Redundancy(r.Msg.Redundancy)); err != nil {
			return nil, err
		}
	}
	if r.Msg.Compression != "" {
		if err := s.Vaults.SetCompression(ctx, v.Name(), r.Msg.Compression); err != nil {
			return nil, err
		}
	}
	if err := s.configure(ctx, r.Msg); err != nil {
		return nil, err
	}
	return connect.NewResponse(s.vault(v)), nil
}

// List returns all vaults, default first.
func (s vaultsService) List(context.Context, *connect.Request[kb.ListVaultsRequest]) (*connect.Response[kb.ListVaultsResponse], error) {
	out := &kb.ListVaultsResponse{}
	for _, v := range s.Vaults.All() {
		out.Vaults = append(out.Vaults, s.vault(v))
	}
	return connect.NewResponse(out), nil
}

// encryption is how a vault is encrypted, and the kind of key that wraps its keys; "" for
// what is not known of a vault that was never open.
func (s service) encryption(vault string) (cipher, kind string) {
	for _, d := range s.Keys.Show() {
		if d.Vault == vault {
			if d.Kind == keys.KindNone {
				return "none", "none"
			}
			return "XAES-256-GCM", string(d.Kind)
		}
	}
	return "", ""
}

// vault describes a vault. Of one that is closed it says what is known.
func (s service) vault(v *vault.Vault) *kb.Vault {
	spec := v.Spec()
	state, reason := v.State()
	out := &kb.Vault{Name: spec.Name, State: string(state), Redundancy: string(spec.Redundancy), BlockSizeBytes: int64(spec.BlockSizeBytes),
		SiteName: s.Info.SiteName}
	out.Compression = spec.Compression
	if c, err := blockstore.ParseCompression(spec.Compression); err == nil {
		out.Compression = c.String()
	}
	out.Encryption, out.KeyKind = s.encryption(spec.Name)
	if !spec.CreatedAt.IsZero() {
		out.CreatedAt = timestamp(spec.CreatedAt)
	}
	if reason != nil {
		out.Reason = reason.Error()
	}
	out.Locations = s.locations(v)
	if h := v.Peek(); h != nil {
		out.BlockSizeBytes = int64(h.Store.BlockSize())
		out.Points = int64(len(h.Points.List("", false)))
		forgetting(out, h.Points.Settings())
	}
	return out
}
