package api

import (
	"context"
	"encoding/hex"
	"fmt"

	"connectrpc.com/connect"

	"github.com/keelblock/keelblock/appliance"
	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/keys"
	"github.com/keelblock/keelblock/appliance/vault"
)

type keysService struct{ service }

func keyDomain(d keys.Domain) *kb.KeyDomain {
	out := &kb.KeyDomain{Vault: d.Vault, DomainId: hex.EncodeToString(d.ID[:]), Kind: string(d.Kind), Source: d.Source, WrappingKeyId: d.KeyID,
		DataKeyIds: d.DataKeys, WrappedAt: timestamp(d.WrappedAt), BackedUpAt: timestamp(d.BackedUpAt), Available: d.Available}
	if d.Reason != nil {
		out.Reason = d.Reason.Error()
	}
	return out
}

func (s keysService) shown(warnings []string) *connect.Response[kb.ShowKeysResponse] {
	out := &kb.ShowKeysResponse{Warnings: warnings}
	for _, d := range s.Keys.Show() {
		out.Domains = append(out.Domains, keyDomain(d))
	}
	return connect.NewResponse(out)
}

func vaultName(name string) string {
	if name == "" {
		return vault.DefaultName
	}
	return name
}

// Show lists the key domains of all vaults.
func (s keysService) Show(context.Context, *connect.Request[kb.ShowKeysRequest]) (*connect.Response[kb.ShowKeysResponse], error) {
	return s.shown(nil), nil
}

// Rotate wraps the keys of a vault anew.
func (s keysService) Rotate(ctx context.Context, r *connect.Request[kb.RotateKeyRequest]) (*connect.Response[kb.KeyDomain], error) {
	var spec *keys.Spec
	if r.Msg.Key != "" {
		parsed, err := keys.ParseSpec(r.Msg.Key, r.Msg.Passphrase)
		if err != nil {
			return nil, err
		}
		spec = &parsed
	}
	// A caller who goes away does not leave a rotation half done.
	d, err := s.Keys.Rotate(context.WithoutCancel(ctx), vaultName(r.Msg.Vault), spec, r.Msg.NewDataKey)
	if err != nil {
		return nil, err
	}
	s.Logger.Info("key rotated", "vault", d.Vault, "kind", string(d.Kind), "key", d.KeyID, "new_data_key", r.Msg.NewDataKey, "actor", actor(ctx))
	return connect.NewResponse(keyDomain(d)), nil
}

// Backup seals the keys of all vaults for an escrow file, which the caller writes.
func (s keysService) Backup(ctx context.Context, r *connect.Request[kb.BackupKeysRequest]) (*connect.Response[kb.BackupKeysResponse], error) {
	e, err := s.Keys.Backup(r.Msg.Secret)
	if err != nil {
		return nil, err
	}
	s.Logger.Info("keys sealed for an escrow file", "domains", e.Domains, "actor", actor(ctx))
	if e.NoIdentity != nil {
		s.Logger.Warn("the escrow file has the keys, but not the identity of the site", "error", e.NoIdentity)
	}
	return connect.NewResponse(&kb.BackupKeysResponse{Escrow: e.File, Secret: e.Secret, Domains: int64(e.Domains), BackupId: e.ID, MissingVaults: e.Missing}), nil
}

// ConfirmBackup notes that an escrow file is on disk.
func (s keysService) ConfirmBackup(ctx context.Context, r *connect.Request[kb.ConfirmBackupRequest]) (*connect.Response[kb.ShowKeysResponse], error) {
	if err := s.Keys.Confirm(context.WithoutCancel(ctx), r.Msg.BackupId); err != nil {
		return nil, err
	}
	return s.shown(nil), nil
}

// Restore brings keys back and opens the vaults that were closed for want of them.
func (s keysService) Restore(ctx context.Context, r *connect.Request[kb.RestoreKeysRequest]) (*connect.Response[kb.ShowKeysResponse], error) {
	done, err := s.Keys.Restore(context.WithoutCancel(ctx), r.Msg.Escrow, r.Msg.Secret)
	if err != nil {
		return nil, err
	}
	s.Logger.Info("keys restored", "vaults", done.Vaults, "actor", actor(ctx))
	for _, name := range done.Vaults {
		if err := s.Reopen(ctx, name); err != nil {
			return nil, fmt.Errorf("the keys are restored: %w", err)
		}
	}
	return s.shown(done.Warnings), nil
}

// Unlock opens a vault with its passphrase.
func (s keysService) Unlock(ctx context.Context, r *connect.Request[kb.UnlockKeysRequest]) (*connect.Response[kb.ShowKeysResponse], error) {
	name := vaultName(r.Msg.Vault)
	if r.Msg.Passphrase == "" {
		return nil, &appliance.Error{Op: "unlock vault " + name, Kind: appliance.ErrInvalid, Text: "a passphrase was not given"}
	}
	if err := s.Keys.Unlock(ctx, name, r.Msg.Passphrase); err != nil {
		return nil, err
	}
	if err := s.Reopen(ctx, name); err != nil {
		return nil, err
	}
	return s.shown(nil), nil
}

// keyAlerts ask for what only an operator can do.
func (s service) keyAlerts() []Alert {
	var out []Alert
	for _, d := range s.Keys.Show() {
		if d.Unsaved() {
			out = append(out, Alert{Severity: "warning", Object: d.Vault, Since: d.WrappedAt,
				Text: "its keys are saved nowhere else: run keelblock key backup FILE, and keep FILE and its recovery secret away from this machine"})
		}
	}
	return out
}
