package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// manCommand writes the man pages. It is hidden: make install uses it. The pages are
// made here, in sixty lines, and not by cobra/doc, which would bring two more
// libraries into the binary.
func (a *app) manCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use: "man DIR", Short: "write the man pages to a folder", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			return eachCommand(root, func(c *cobra.Command) error {
				name := strings.ReplaceAll(c.CommandPath(), " ", "-") + ".1"
				return os.WriteFile(filepath.Join(args[0], name), []byte(manPage(c, a.Version)), 0o644)
			})
		},
	}
}

func eachCommand(c *cobra.Command, do func(*cobra.Command) error) error {
	if c.Hidden {
		return nil
	}
	if err := do(c); err != nil {
		return err
	}
	for _, sub := range c.Commands() {
		if err := eachCommand(sub, do); err != nil {
			return err
		}
	}
	return nil
}

// manPage is a page in the language of man(7).
func manPage(c *cobra.Command, version string) string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	title := strings.ReplaceAll(c.CommandPath(), " ", "-")
	p(`.TH "%s" "1" "" "keelblock %s" "Keelblock manual"`, strings.ToUpper(title), roff(version))
	p(".SH NAME\n%s \\- %s", roff(title), roff(c.Short))
	p(".SH SYNOPSIS\n.B %s", roff(c.UseLine()))
	long := c.Long
	if long == "" {
		long = c.Short
	}
	p(".SH DESCRIPTION\n.nf\n%s\n.fi", roff(long))
	if subs := c.Commands(); len(subs) > 0 {
		p(".SH COMMANDS")
		for _, s := range subs {
			if !s.Hidden {
				p(".TP\n.B %s\n%s", roff(s.Name()), roff(s.Short))
			}
		}
	}
	manFlags(p, "OPTIONS", c.NonInheritedFlags())
	manFlags(p, "GLOBAL OPTIONS", c.InheritedFlags())
	if c.Example != "" {
		p(".SH EXAMPLES\n.nf\n%s\n.fi", roff(c.Example))
	}
	p(".SH EXIT STATUS\n0 done, 1 failed, 2 wrong usage, 3 a label lower than the one asked for or part of the work undone, 4 not found, 5 refused by policy.")
	if c.HasParent() {
		p(".SH SEE ALSO\n.BR %s (1)", roff(strings.ReplaceAll(c.Parent().CommandPath(), " ", "-")))
	}
	return b.String()
}

func manFlags(p func(string, ...any), heading string, flags *pflag.FlagSet) {
	if !flags.HasAvailableFlags() {
		return
	}
	p(".SH %s", heading)
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		if t := f.Value.Type(); t != "bool" {
			name += " " + strings.ToUpper(t)
		}
		p(".TP\n.B %s\n%s", roff(name), roff(f.Usage))
	})
}

// roff escapes text for man(7): backslashes, hyphens, and dots or quotes that begin a
// line.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}
