package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

// maxDefinition bounds a machine's definition, in bytes.
const maxDefinition = 1 << 20

func (a *app) disk(ctx context.Context, c *client, name string) (*kb.Disk, error) {
	r, err := c.disks.Get(ctx, connect.NewRequest(&kb.GetDiskRequest{Name: name}))
	if err != nil {
		return nil, suggest(err, name, func() []string { return c.diskNames(ctx) })
	}
	return r.Msg, nil
}

func (a *app) machine(ctx context.Context, c *client, name string) (*kb.Machine, error) {
	r, err := c.machines.Get(ctx, connect.NewRequest(&kb.GetMachineRequest{Name: name}))
	if err != nil {
		return nil, suggest(err, name, func() []string { return c.machineNames(ctx) })
	}
	return r.Msg, nil
}

func (a *app) machineCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "machine", Short: "protected machines: create, list, show, edit, delete"}
	cmd.AddCommand(a.machineCreate(), a.machineList(), a.machineShow(), a.machineEdit(), a.machineDelete())
	return cmd
}

func (a *app) machineCreate() *cobra.Command {
	var disks []string
	var definition string
	cmd := &cobra.Command{
		Use:     "create NAME --disk D [--disk D]... [--definition FILE]",
		Short:   "protect disks together as one machine",
		Long:    "A machine is the unit of consistency: a backup cuts all its disks at one instant.\nIts definition (libvirt XML, QEMU arguments, anything) is kept with each point.",
		Example: "  keelblock machine create web --disk web0 --disk web1 --definition web.xml",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(disks) == 0 {
				return usageError{fmt.Errorf("machine create %s needs --disk, once for each of its disks", args[0])}
			}
			text, err := readDefinition(definition)
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			r, err := c.machines.Create(cmd.Context(), connect.NewRequest(&kb.CreateMachineRequest{Name: args[0], Disks: disks, Definition: text}))
			if err != nil {
				return a.suggestDisk(cmd.Context(), c, err, disks)
			}
			return a.print(toMachine(r.Msg), func(w io.Writer) { fmt.Fprintln(w, r.Msg.GetName()) })
		},
		ValidArgsFunction: a.completing(false, completeNothing),
	}
	cmd.Flags().StringArrayVar(&disks, "disk", nil, "a disk of the machine; may be repeated")
	cmd.Flags().StringVar(&definition, "definition", "", "file with the machine's definition")
	_ = cmd.RegisterFlagCompletionFunc("disk", a.completing(true, completeDisks))
	return cmd
}

// suggestDisk adds what was probably meant by the one of several disks that does not
// exist.
func (a *app) suggestDisk(ctx context.Context, c *client, err error, disks []string) error {
	for _, d := range disks {
		if strings.Contains(err.Error(), fmt.Sprintf("%q", d)) {
			return suggest(err, d, func() []string { return c.diskNames(ctx) })
		}
	}
	return err
}

func readDefinition(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("read definition: %w", err)
	}
	defer f.Close()
	p, err := io.ReadAll(io.LimitReader(f, maxDefinition+1))
	if err != nil {
		return "", fmt.Errorf("read definition %q: %w", path, err)
	}
	if len(p) > maxDefinition {
		return "", usageError{fmt.Errorf("definition %q is larger than %s", path, human(maxDefinition))}
	}
	return string(p), nil
}

func (a *app) machineList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "list machines by name", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			r, err := c.machines.List(cmd.Context(), connect.NewRequest(&kb.ListMachinesRequest{}))
			if err != nil {
				return err
			}
			return a.print(mapped(r.Msg.GetMachines(), toMachine), func(w io.Writer) {
				a.table(w, "NAME DISKS ROLE SITE LAST-POINT", mapped(r.Msg.GetMachines(), func(m *kb.Machine) []string {
					return []string{m.GetName(), diskNames(m.GetDisks()), m.GetRole(), m.GetSiteName(), a.shortID(m.GetLastPointId())}
				}))
			})
		},
	}
}

func (a *app) machineShow() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "show a machine, its disks and its definition", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			m, err := a.machine(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			return a.print(toMachine(m), func(w io.Writer) { a.describeMachine(w, m) })
		},
		ValidArgsFunction: a.completing(false, completeMachines),
	}
}

func (a *app) describeMachine(w io.Writer, m *kb.Machine) {
	describe(w, pair{"name", m.GetName()}, pair{"role", m.GetRole()}, pair{"site", m.GetSiteName()},
		pair{"generation", fmt.Sprint(m.GetGeneration())}, pair{"group", m.GetGroupName()}, pair{"vault", m.GetVault()}, pair{"last point", m.GetLastPointId()},
		pair{"retention", describeKeep(m.GetKeep())},
		pair{"left out of points", strings.Join(m.GetExcludedDisks(), ", ")})
	for _, d := range m.GetDisks() {
		fmt.Fprintf(w, "disk %s: %s, %s, next backup %s, %s\n", d.GetName(), human(d.GetSizeBytes()), d.GetRole(), nextBackup(d), d.GetUri())
	}
	if def := m.GetDefinition(); def != "" {
		fmt.Fprintf(w, "definition:\n%s\n", strings.TrimRight(def, "\n"))
	}
}

func (a *app) machineEdit() *cobra.Command {
	var add, remove, exclude []string
	var definition, into string
	var keep keepFlags
	cmd := &cobra.Command{
		Use:   "edit NAME (--add-disk|--remove-disk|--exclude D)... [--definition FILE] [--vault V] [--keep-last N ...]",
		Short: "add or remove disks, leave one out of recovery points, or say which points are kept",
		Long: `Changes a machine. Rules of retention, --keep-last and the like, replace those that it had;
points that none of them keeps expire by themselves, softly. --keep-last 0 keeps everything
again. What they mean: keelblock help retention.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r := &kb.EditMachineRequest{Name: args[0], AddDisks: add, RemoveDisks: remove, ExcludeDisks: exclude}
			if cmd.Flags().Changed("definition") {
				text, err := readDefinition(definition)
				if err != nil {
					return err
				}
				r.Definition = &text
			}
			if cmd.Flags().Changed("vault") {
				r.Vault = &into
			}
			if keep.given(cmd) {
				r.Keep = &keep.r
			}
			if len(add)+len(remove)+len(exclude) == 0 && r.Definition == nil && r.Vault == nil && r.Keep == nil {
				return usageError{errors.New("machine edit needs --add-disk, --remove-disk, --exclude, --definition, --vault or a rule such as --keep-daily")}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			m, err := c.machines.Edit(cmd.Context(), connect.NewRequest(r))
			if err != nil {
				err = suggest(err, args[0], func() []string { return c.machineNames(cmd.Context()) })
				return a.suggestDisk(cmd.Context(), c, err, append(append(add, remove...), exclude...))
			}
			return a.print(toMachine(m.Msg), nil)
		},
		ValidArgsFunction: a.completing(false, completeMachines),
	}
	f := cmd.Flags()
	f.StringArrayVar(&add, "add-disk", nil, "take this disk into the machine; may be repeated")
	f.StringArrayVar(&remove, "remove-disk", nil, "take this disk out of the machine; may be repeated")
	f.StringArrayVar(&exclude, "exclude", nil, "leave this disk out of recovery points; may be repeated")
	f.StringVar(&definition, "definition", "", "file with the machine's new definition")
	f.StringVar(&into, "vault", "", "the vault that its points go to from now on")
	keep.add(cmd)
	_ = cmd.RegisterFlagCompletionFunc("vault", a.completing(true, completeVaults))
	for _, name := range []string{"add-disk", "remove-disk", "exclude"} {
		_ = cmd.RegisterFlagCompletionFunc(name, a.completing(true, completeDisks))
	}
	return cmd
}

func (a *app) machineDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME", Aliases: []string{"rm"}, Short: "forget a machine; its disks and recovery points stay", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			m, err := a.machine(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			if err := a.confirm("delete machine %q", m.GetName()); err != nil {
				return err
			}
			if _, err := c.machines.Delete(cmd.Context(), connect.NewRequest(&kb.DeleteMachineRequest{Name: args[0]})); err != nil {
				return err
			}
			return a.print(toMachine(m), nil)
		},
		ValidArgsFunction: a.completing(false, completeMachines),
	}
}
