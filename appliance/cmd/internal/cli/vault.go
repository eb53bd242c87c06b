package cli

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

func (a *app) vaultCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "vault", Short: "vaults, where recovery points live: create, list, edit, status, verify, repair, gc, rebuild-index"}
	cmd.AddCommand(a.vaultCreate(), a.vaultList(), a.vaultEdit(), a.vaultAcceptClock(), a.vaultStatus(), a.vaultVerify(), a.vaultRepair(), a.vaultCollect(), a.vaultRebuild(), a.vaultUsage())
	return cmd
}

func (a *app) vaultCreate() *cobra.Command {
	r := &kb.CreateVaultRequest{}
	var blockSize sizeValue
	var noWait bool
	var passphraseFile string
	cmd := &cobra.Command{
		Use:   "create NAME [--location DIR]... [--redundancy LRS|GRS|RA-GRS] [--block-size S] [--compression s2|zstd|none] [--key KEYFILE|passphrase|kms:URL|none]",
		Short: "make a vault",
		Long: `Makes a vault beside the one named default, and prints its name. Its packs and index lie in
the first --location, else in a folder of the appliance's own; what machines it keeps is
said by keelblock machine edit NAME --vault V, or for one backup by keelblock backup --vault.

A vault whose folder is empty at a start is not made again by itself: most likely a file
system is not mounted. If it is gone for good, make it anew with its old name.

Nothing is shared between vaults: a block that two vaults hold is stored in both. The
redundancy can be changed until the vault holds its first point.

Blocks are compressed with s2, which is as fast as the rest of a backup; zstd stores about an
eighth less and takes three times as long for it. keelblock vault edit changes it for new blocks.

A vault is encrypted, and its keys are wrapped by a key of the appliance unless --key says
otherwise; see keelblock help keys. Save them: keelblock key backup FILE.`,
		Example: "  keelblock vault create archive --location /mnt/big/keelblock --redundancy LRS",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			r.Name, r.BlockSizeBytes = args[0], int64(blockSize)
			for i, dir := range r.Locations { // the daemon may be in another folder
				if r.Locations[i], err = filepath.Abs(dir); err != nil {
					return err
				}
			}
			if r.Passphrase, err = a.keySource(&r.Key, passphraseFile); err != nil {
				return err
			}
			j, err := c.vaults.Create(cmd.Context(), connect.NewRequest(r))
			if err != nil {
				return err
			}
			if noWait {
				return a.printJobID(j.Msg)
			}
			done, err := a.follow(cmd.Context(), c, j.Msg)
			if err == nil {
				err = jobError(done)
			}
			if err != nil {
				return err
			}
			v, err := a.findVault(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			return a.print(toVaultDetails(v), func(w io.Writer) { fmt.Fprintln(w, v.GetName()) })
		},
		ValidArgsFunction: a.completing(false, completeNothing),
	}
	f := cmd.Flags()
	f.StringArrayVar(&r.Locations, "location", nil, "folder for packs; the first has the index too; may be repeated")
	f.StringVar(&r.Redundancy, "redundancy", "", "LRS, GRS (the default) or RA-GRS")
	f.Var(&blockSize, "block-size", "size of a block, a power of two from 16KiB to 1MiB (default 64KiB)")
	f.StringVar(&r.Compression, "compression", "", "s2 (the default), zstd or none")
	f.StringVar(&r.Key, "key", "", "what wraps its keys: "+keyFlag+", or none for no encryption")
	f.StringVar(&passphraseFile, "passphrase-file", "", "file with the passphrase; - is standard input (default: $KEELBLOCK_PASSPHRASE, then asked for)")
	f.BoolVar(&noWait, "no-wait", false, "print the job's id and return at once")
	_ = cmd.RegisterFlagCompletionFunc("compression", cobra.FixedCompletions(compressions, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("redundancy", cobra.FixedCompletions([]string{"LRS", "GRS", "RA-GRS"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// compressions are what --compression takes.
var compressions = []string{"s2", "zstd", "none"}

// findVault is one vault of the list.
func (a *app) findVault(ctx context.Context, c *client, name string) (*kb.Vault, error) {
	r, err := c.vaults.List(ctx, connect.NewRequest(&kb.ListVaultsRequest{}))
	if err != nil {
		return nil, err
	}
	for _, v := range r.Msg.GetVaults() {
		if v.GetName() == name {
			return v, nil
		}
	}
	return nil, notFoundError{fmt.Errorf("vault %q does not exist; see keelblock vault list", name)}
}

func (a *app) vaultList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "list vaults", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			r, err := c.vaults.List(cmd.Context(), connect.NewRequest(&kb.ListVaultsRequest{}))
			if err != nil {
				return err
			}
			return a.print(mapped(r.Msg.GetVaults(), toVaultDetails), func(w io.Writer) {
				var rows [][]string
				for _, v := range r.Msg.GetVaults() {
					points := ""
					if v.GetState() == vaultOpen {
						points = fmt.Sprint(v.GetPoints())
					}
					rows = append(rows, []string{v.GetName(), v.GetState(), points, v.GetRedundancy(), v.GetEncryption(),
						v.GetLocations()[0].GetPath()})
				}
				a.table(w, "NAME\tSTATE\tPOINTS\tREDUNDANCY\tENCRYPTION\tFOLDER", rows)
			})
		},
	}
}

func (a *app) vaultStatus() *cobra.Command {
	return &cobra.Command{
		Use: "status [NAME]", Short: "show what a vault holds and how much room is left", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			r, err := c.appliance.VaultStatus(cmd.Context(), connect.NewRequest(&kb.VaultStatusRequest{Name: strings.Join(args, "")}))
			if err != nil {
				return err
			}
			v := r.Msg
			return a.print(toVault(v), func(w io.Writer) {
				describe(w, pair{"vault", v.GetName()}, pair{"state", v.GetState()}, pair{"reason", v.GetReason()})
				if v.GetState() != vaultOpen { // what it holds is not known
					describe(w, pair{"free", human(v.GetFreeBytes())})
					return
				}
				describe(w, pair{"points", fmt.Sprint(v.GetPoints())}, pair{"soft-deleted", fmt.Sprint(v.GetDeletedPoints())},
					pair{"protected", human(v.GetProtectedBytes())},
					pair{"packs", fmt.Sprintf("%d, %s", v.GetPacks(), human(v.GetPackBytes()))},
					pair{"blocks", fmt.Sprintf("%d of %s", v.GetBlocks(), human(v.GetBlockSizeBytes()))},
					pair{"corrupt blocks", fmt.Sprint(v.GetCorruptBlocks())}, pair{"free", human(v.GetFreeBytes())},
					pair{"last collection", collectionText(v.GetLastCollection())})
				describeLocations(w, v)
			})
		},
		ValidArgsFunction: a.completing(false, completeVaults),
	}
}

// collectionText says how the last collection went.
func collectionText(c *kb.Collection) string {
	switch {
	case c == nil:
		return ""
	case c.GetOutcome() == "":
		return "none yet"
	case c.GetOutcome() == "running":
		return fmt.Sprintf("running since %s (%s)", at(c.GetStartedAt()), c.GetReason())
	}
	end := c.GetEndedAt()
	if end == nil { // interrupted
		end = c.GetStartedAt()
	}
	text := fmt.Sprintf("%s at %s (%s), freed %s, kept %s", c.GetOutcome(), at(end), c.GetReason(), human(c.GetFreedBytes()), human(c.GetKeptBytes()))
	if c.GetError() != "" {
		text += ": " + c.GetError()
	}
	return text
}

func (a *app) vaultVerify() *cobra.Command {
	var noWait bool
	cmd := &cobra.Command{
		Use: "verify", Short: "read every block of every point and compare it with its digest", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			return a.verify(cmd.Context(), c, &kb.VerifyRequest{}, noWait)
		},
	}
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "print the job's id and return at once")
	return cmd
}

func (a *app) vaultRebuild() *cobra.Command {
	r := &kb.RebuildIndexRequest{}
	return a.startsJob(&cobra.Command{Use: "rebuild-index [--vault V]", Short: "make the index of a closed vault anew from its packs, and open it",
		Long: `Makes the index of a closed vault anew from what its packs say of themselves, and opens it.
Packs are only read. What the old index knew and no pack has is gone.

When the first folder of the vault is missing or empty, because its disk is lost, it is made
again from another location: packs are copied to it, and the keys written there. Is it only
not mounted, mount it instead.`,
		Example: "  keelblock vault status safe\n  keelblock vault rebuild-index --vault safe"},
		&r.Vault, func(ctx context.Context, c *client) (*connect.Response[kb.Job], error) {
			return c.appliance.RebuildIndex(ctx, connect.NewRequest(r))
		})
}
