package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/keelblock/keelblock/appliance/config"
)

// Streams are where a command reads and writes, and what it takes from its
// environment.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
	Getenv   func(string) string
	Version  string // of the binary
}

// app is one run of the command line.
type app struct {
	Streams
	api  string // --api
	data string // --data
	json bool
	yes  bool
	args []string // the whole command line

	files filesFlags

	outTerminal bool // standard output is a terminal
	errTerminal bool
	inTerminal  bool
}

// Main runs one command line and returns its exit status.
func Main(ctx context.Context, args []string, s Streams) int {
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second one ends the process
	a := &app{Streams: s, args: args, outTerminal: isTerminal(s.Out), errTerminal: isTerminal(s.Err), inTerminal: isTerminal(s.In)}
	root := a.root()
	root.SetArgs(args)
	err := known(root, args)
	if err == nil {
		err = root.ExecuteContext(ctx)
	}
	if err != nil {
		a.printError(err)
	}
	return exitStatus(err)
}

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// root is the command with all verbs.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "keelblock",
		Short: "serve VM disks, and always be able to bring them back",
		Long: `Keelblock serves VM disks over NBD, tracks every changed block, cuts recovery points
while guests write, keeps them deduplicated in a vault, and brings back a disk or a
single file.

A first session:

  keelblock serve -d
  keelblock disk create web0 --size 2GiB
  keelblock machine create web --disk web0
  keelblock backup web
  keelblock mount /tmp/files -d        # look into /tmp/files/web/latest
  keelblock restore file web@latest:web0 back.raw`,
		Version:       a.Version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return cmd.Help()
		},
	}
	root.SetIn(a.In)
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see %s --help", err, cmd.CommandPath())}
	})
	f := root.PersistentFlags()
	f.StringVar(&a.api, "api", "", "address of the daemon: unix:PATH or https://HOST:PORT (default $KEELBLOCK_API, then DIR/run/api.sock)")
	f.StringVar(&a.data, "data", "", "the daemon's folder DIR (default $KEELBLOCK_DATA, then "+config.DefaultDataDir+")")
	f.BoolVar(&a.json, "json", false, "print the result as one JSON document")
	f.BoolVarP(&a.yes, "yes", "y", false, "do not ask before something is destroyed")
	_ = root.MarkPersistentFlagDirname("data")

	root.AddGroup(&cobra.Group{ID: "daemon", Title: "The daemon:"}, &cobra.Group{ID: "protect", Title: "Disks and protection:"},
		&cobra.Group{ID: "restore", Title: "Bringing things back:"}, &cobra.Group{ID: "watch", Title: "Looking after it:"})
	group := func(id string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = id
			root.AddCommand(c)
		}
	}
	group("daemon", a.serveCommand(), a.stopCommand(), a.statusCommand(), a.nbdCommand(), a.doctorCommand(), a.versionCommand())
	group("protect", a.diskCommand(), a.machineCommand(), a.groupCommand(), a.backupCommand(), a.pointCommand(), a.pruneCommand(), a.cursorCommand())
	group("restore", a.restoreCommand(), a.exportCommand(), a.unexportCommand(), a.filesCommand(), a.mountCommand(), a.umountCommand())
	group("watch", a.jobCommand(), a.vaultCommand(), a.keyCommand())
	root.AddCommand(a.manCommand(root))
	addTopics(root)
	root.SetHelpCommand(helpCommand())
	root.SetHelpCommandGroupID("watch")
	root.SetCompletionCommandGroupID("watch")
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	root.SetVersionTemplate("keelblock {{.Version}}\n")
	strict(root)
	return root
}

// strict makes every folder of commands refuse what it does not know, with a
// suggestion, and marks wrong arguments as wrong usage.
func strict(cmd *cobra.Command) {
	for _, c := range cmd.Commands() {
		strict(c)
	}
	cmd.SuggestionsMinimumDistance = 2
	cmd.DisableFlagsInUseLine = true
	if cmd.HasSubCommands() && cmd.HasParent() && cmd.RunE == nil {
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return usageError{fmt.Errorf("%s needs one of: %s", cmd.CommandPath(), strings.Join(names(cmd), ", "))}
		}
	}
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usageError{fmt.Errorf("%w; usage: %s", err, cmd.UseLine())}
			}
			return nil
		}
	}
}

// known refuses a word that is no command. cobra would complain about the flags behind
// it, or answer --help with the help of something else.
func known(root *cobra.Command, args []string) error {
	cmd, rest, err := root.Find(args)
	if err != nil || !cmd.HasSubCommands() && !cmd.IsAdditionalHelpTopicCommand() {
		return nil
	}
	_ = cmd.ParseFlags(rest) // ends at the first flag that is not known
	if words := cmd.Flags().Args(); len(words) > 0 && !strings.HasPrefix(words[0], cobra.ShellCompRequestCmd) {
		return unknownCommand(cmd, words[0])
	}
	return nil
}

// helpCommand is cobra's, save that a topic which does not exist is wrong usage.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND | TOPIC]", Short: "explain a command or a topic",
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil {
				return usageError{err}
			}
			if len(rest) > 0 {
				return unknownCommand(about, rest[0])
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			var out []string
			if about, rest, err := cmd.Root().Find(args); err == nil && len(rest) == 0 {
				for _, c := range about.Commands() {
					if !c.Hidden && strings.HasPrefix(c.Name(), word) {
						out = append(out, c.Name()+"\t"+c.Short)
					}
				}
			}
			return out, cobra.ShellCompDirectiveNoFileComp
		},
	}
}

func unknownCommand(cmd *cobra.Command, name string) error {
	text := fmt.Sprintf("%s has no command %q", cmd.CommandPath(), name)
	if s := cmd.SuggestionsFor(name); len(s) > 0 {
		text += "; did you mean " + strings.Join(s, " or ") + "?"
	} else {
		text += "; see " + cmd.CommandPath() + " --help"
	}
	return usageError{errors.New(text)}
}

func names(cmd *cobra.Command) []string {
	var out []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			out = append(out, c.Name())
		}
	}
	return out
}

// dataDir is the daemon's folder: --data, else $KEELBLOCK_DATA, else the default.
func (a *app) dataDir() string {
	if a.data != "" {
		return a.data
	}
	if d := a.Getenv("KEELBLOCK_DATA"); d != "" {
		return d
	}
	return config.DefaultDataDir
}

// print writes the result: v as JSON, or what text writes.
func (a *app) print(v any, text func(w io.Writer)) error {
	if !a.json {
		if text != nil {
			text(a.Out)
		}
		return nil
	}
	e := json.NewEncoder(a.Out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// say writes a line for the person, not the result.
func (a *app) say(format string, args ...any) {
	fmt.Fprintf(a.Err, format+"\n", args...)
}

// printError writes an error as a person reads it: without the code of the
// connection.
func (a *app) printError(err error) {
	text := err.Error()
	var remote *connect.Error
	if errors.As(err, &remote) {
		text = strings.ReplaceAll(text, remote.Error(), remote.Message())
	}
	fmt.Fprintf(a.Err, "keelblock: %s\n", text)
}

// confirm asks before something is destroyed. Without a terminal it needs --yes.
func (a *app) confirm(format string, args ...any) error {
	if a.yes {
		return nil
	}
	question := fmt.Sprintf(format, args...)
	if !a.inTerminal || !a.errTerminal {
		return usageError{fmt.Errorf("%s needs --yes when there is no terminal to ask on", question)}
	}
	fmt.Fprintf(a.Err, "%s? [y/N] ", question)
	var answer string
	_, _ = fmt.Fscanln(a.In, &answer)
	if answer = strings.ToLower(answer); answer != "y" && answer != "yes" {
		return errors.New("nothing was done")
	}
	return nil
}
