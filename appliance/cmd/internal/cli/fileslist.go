package cli

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/keelblock/keelblock/appliance/guestfiles"
	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// sortAtOnce is how many entries of a folder are sorted together; a larger folder is
// listed in parts.
const sortAtOnce = 100_000

// listing is one run of files ls.
type listing struct {
	recursive, itself, names, nul bool

	out  io.Writer
	json *jsonArray // nil: text
	arg  fileArg
	bad  unreadable
}

func (a *app) filesList() *cobra.Command {
	l := listing{bad: unreadable{a: a}}
	cmd := &cobra.Command{
		Use:   "ls P[:PATH] [-R]",
		Short: "list files of a recovery point, with mode, owner, size and time",
		Long: `Lists a folder of a recovery point: mode, links, owner, group, size, time of modification
(UTC) and name. Owners are the guest's numbers.

` + filesPaths + `

A name with unprintable characters is written as a shell reads it back, $'a\nb'; -0 writes
names only, as they are, each ended by a NUL byte.`,
		Example: "  keelblock files ls web@latest\n  keelblock files ls web@latest:web0-1/etc\n  keelblock files ls -R --json web@latest:/home",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.oneFile(cmd.Context(), args[0], false, func(_ *fileReader, f fileArg, found guestfiles.Found) error {
				out := bufio.NewWriterSize(a.Out, 64<<10)
				l.out, l.arg = out, f
				if a.json {
					l.json = &jsonArray{w: out}
				}
				err := l.run(cmd.Context(), found)
				return errors.Join(err, l.json.end(), out.Flush(), l.bad.err("read"))
			})
		},
		ValidArgsFunction: a.completeFile(false),
	}
	f := cmd.Flags()
	f.BoolVarP(&l.recursive, "recursive", "R", false, "list folders below, too")
	f.BoolVarP(&l.itself, "directory", "d", false, "show the folder itself, not what it holds")
	f.BoolVarP(&l.names, "names", "1", false, "names only")
	f.BoolVarP(&l.nul, "null", "0", false, "names only, as they are, each ended by a NUL byte")
	return cmd
}

func (l *listing) run(ctx context.Context, found guestfiles.Found) error {
	if !found.IsDir() || l.itself {
		name := found.Path
		if name == "" {
			name = "."
		}
		return l.print(ctx, []listed{{name, found}})
	}
	return l.folder(ctx, found, guestfiles.NewVisits())
}

type listed struct {
	name string // as it is printed
	guestfiles.Found
}

// folder lists one folder, and with -R those below it.
func (l *listing) folder(ctx context.Context, dir guestfiles.Found, visits guestfiles.Visits) error {
	if err := visits.Enter(dir.Node); err != nil {
		l.bad.add(dir.Path, err)
		return nil
	}
	if l.recursive && l.json == nil && !l.nul && !l.names {
		if err := writeAll(l.out, l.arg.at(dir.Path)+":\n"); err != nil {
			return err
		}
	}
	var batch []listed
	var below []guestfiles.Found
	var failed error
	flush := func() bool {
		slices.SortFunc(batch, func(a, b listed) int { return strings.Compare(a.name, b.name) })
		failed = l.print(ctx, batch)
		if l.recursive {
			for _, b := range batch {
				if b.IsDir() {
					below = append(below, b.Found)
				}
			}
		}
		batch = nil
		return failed == nil
	}
	err := dir.List(ctx, true, func(list []guestfiles.Child) bool {
		for _, c := range list {
			path := strings.TrimPrefix(dir.Path+"/"+string(c.Name), "/")
			if c.Err != nil {
				l.unreadable(path, c)
				continue
			}
			name := string(c.Name)
			if l.recursive && (l.nul || l.names) {
				name = path
			}
			batch = append(batch, listed{name, guestfiles.Found{Node: c.Node, Path: path}})
		}
		return len(batch) < sortAtOnce || flush()
	})
	if failed == nil {
		flush()
	}
	if failed != nil {
		return failed
	}
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		l.bad.add(dir.Path, err)
	}
	for _, d := range below {
		if l.json == nil && !l.nul && !l.names {
			if err := writeAll(l.out, "\n"); err != nil {
				return err
			}
		}
		if err := l.folder(ctx, d, visits); err != nil {
			return err
		}
	}
	return nil
}

func (l *listing) unreadable(path string, c guestfiles.Child) {
	l.bad.add(path, c.Err)
	if l.json != nil {
		l.json.add(toFile(path, "", nil, c.Err))
	}
}

// print writes entries in columns.
func (l *listing) print(ctx context.Context, list []listed) error {
	var widths [4]int
	rows := make([][4]string, len(list))
	if l.json == nil && !l.nul && !l.names {
		for i, e := range list {
			at := e.Attr()
			size := fmt.Sprint(at.Size)
			if at.Type == filesystem.TypeChar || at.Type == filesystem.TypeBlock {
				size = fmt.Sprintf("%d,%d", at.RdevMajor, at.RdevMinor)
			}
			rows[i] = [4]string{fmt.Sprint(at.Nlink), fmt.Sprint(at.UID), fmt.Sprint(at.GID), size}
			for j, cell := range rows[i] {
				widths[j] = max(widths[j], len(cell))
			}
		}
	}
	for i, e := range list {
		if l.nul || l.names && l.json == nil {
			if err := writeAll(l.out, nameText(e.name, l.nul)+lineEnd(l.nul)); err != nil {
				return err
			}
			continue
		}
		target := l.target(ctx, e)
		if l.json != nil {
			l.json.add(toFile(e.Path, target, e.Node, nil))
			continue
		}
		name := nameText(e.name, false)
		if e.Attr().Type == filesystem.TypeSymlink {
			name += " -> " + nameText(target, false)
		}
		r := rows[i]
		if _, err := fmt.Fprintf(l.out, "%s %*s %*s %*s %*s %s %s\n", modeText(e.Attr()), widths[0], r[0], widths[1], r[1], widths[2], r[2],
			widths[3], r[3], fileTime(e.Attr().Mtime), name); err != nil {
			return err
		}
	}
	return nil
}

// target is what a symbolic link says.
func (l *listing) target(ctx context.Context, e listed) string {
	if e.Attr().Type != filesystem.TypeSymlink {
		return ""
	}
	target, err := e.Readlink(ctx)
	if err != nil {
		l.bad.add(e.Path, err)
		return "?"
	}
	return string(target)
}

// fileTime is the time of a file for people.
func fileTime(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02T15:04:05Z")
}

func (a *app) filesFind() *cobra.Command {
	var nul bool
	var kind string
	bad := unreadable{a: a}
	cmd := &cobra.Command{
		Use:   "find P[:PATH] GLOB",
		Short: "find files of a recovery point by name",
		Long: `Prints each file at PATH and below whose name matches GLOB, as the other verbs of files
take it. GLOB is compared with names; with a slash in it, with the path below PATH, where *
stops at slashes and ** does not. [a-z], [!a-z] and ? are as in a shell; -i takes capital
letters for small ones.

` + filesPaths,
		Example: "  keelblock files find web@latest '*.conf'\n  keelblock files find web@latest:/home '**/.ssh/*' -0",
		Args:    cobra.ExactArgs(2),
	}
	ignoreCase := cmd.Flags().BoolP("ignore-case", "i", false, "capital and small letters are equal")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		glob := args[1]
		if err := guestfiles.CheckPattern(glob); err != nil {
			return usageError{err}
		}
		letter, ok := map[string]filesystem.Type{"": 0, "f": filesystem.TypeRegular, "d": filesystem.TypeDir, "l": filesystem.TypeSymlink}[kind]
		if !ok {
			return usageError{fmt.Errorf("--type %s: it is f (file), d (folder) or l (symbolic link)", kind)}
		}
		return a.oneFile(cmd.Context(), args[0], false, func(_ *fileReader, f fileArg, found guestfiles.Found) error {
			out := bufio.NewWriterSize(a.Out, 64<<10)
			var array *jsonArray
			if a.json {
				array = &jsonArray{w: out}
			}
			matches := globMatcher(glob, found.Path, *ignoreCase)
			err := guestfiles.Walk(cmd.Context(), found, a.json, func(e guestfiles.Found, err error) error {
				switch {
				case err != nil:
					bad.add(e.Path, err)
				case e.Node == nil || letter != 0 && e.Attr().Type != letter || !matches(e.Path):
				case array != nil:
					array.add(toFile(e.Path, "", e.Node, nil))
				default:
					text := f.selector + ":" + e.Path
					return writeAll(out, nameText(text, nul)+lineEnd(nul))
				}
				return nil
			})
			return errors.Join(err, array.end(), out.Flush(), bad.err("read"))
		})
	}
	cmd.ValidArgsFunction = a.completeFile(false)
	cmd.Flags().BoolVarP(&nul, "null", "0", false, "names as they are, each ended by a NUL byte")
	cmd.Flags().StringVar(&kind, "type", "", "only f (files), d (folders) or l (symbolic links)")
	return cmd
}

// globMatcher says of paths whether they match.
func globMatcher(glob, base string, ignoreCase bool) func(path string) bool {
	fold := func(s string) string { return s }
	if ignoreCase {
		fold = strings.ToLower
	}
	glob = fold(glob)
	if !strings.Contains(glob, "/") {
		return func(path string) bool {
			return guestfiles.Match(glob, fold(path[strings.LastIndexByte(path, '/')+1:]))
		}
	}
	glob = strings.TrimPrefix(glob, "/")
	return func(path string) bool {
		return guestfiles.Match(glob, fold(strings.TrimPrefix(strings.TrimPrefix(path, base), "/")))
	}
}

// jsonArray writes an array element by element, so that it may be long.
type jsonArray struct {
	w     io.Writer
	count int
	err   error
}

func (j *jsonArray) add(v any) {
	if j.err != nil {
		return
	}
	before := ",\n  "
	if j.count == 0 {
		before = "[\n  "
	}
	j.count++
	var b strings.Builder
	b.WriteString(before)
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("  ", "  ")
	if j.err = e.Encode(v); j.err == nil {
		j.err = writeAll(j.w, strings.TrimSuffix(b.String(), "\n"))
	}
}

// end closes the array; of a nil one it does nothing.
func (j *jsonArray) end() error {
	switch {
	case j == nil:
		return nil
	case j.err != nil:
		return j.err
	case j.count == 0:
		return writeAll(j.w, "[]\n")
	}
	return writeAll(j.w, "\n]\n")
}

// base64Unless is the bytes of a string that is not UTF-8, else "".
func base64Unless(s string) string {
	if utf8.ValidString(s) {
		return ""
	}
	return base64.StdEncoding.EncodeToString([]byte(s))
}
