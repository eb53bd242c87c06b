package namespace

import (
	"fmt"
	"slices"
	"strings"
)

// Bounds of what Parse believes.
const (
	MaxTable = 1 << 20 // bytes of an fstab or crypttab
	maxLines = 4096
)

// Line is a line of an fstab (fstab(5)).
type Line struct {
	Number  int    // counted from 1
	Spec    string // the device: UUID=…, /dev/…, or the folder that is bound
	File    string // the mount point
	Type    string // of the file system
	Options []string
}

// Has says whether the line has one of these options.
func (l Line) Has(options ...string) bool {
	return slices.ContainsFunc(l.Options, func(o string) bool { return slices.Contains(options, o) })
}

// Option is the value of an option KEY=VALUE.
func (l Line) Option(key string) (string, bool) {
	for _, o := range slices.Backward(l.Options) { // the last one counts, as for mount(8)
		if k, v, ok := strings.Cut(o, "="); ok && k == key {
			return v, true
		}
	}
	return "", false
}

// Selects says whether the line mounts a part of a file system by name or number.
func (l Line) Selects() bool {
	_, name := l.Option("subvol")
	_, number := l.Option("subvolid")
	return name || number
}

// String is the line as it is told to people.
func (l Line) String() string { return fmt.Sprintf("line %d (%s at %s)", l.Number, l.Spec, l.File) }

// virtual are types of file systems that lie on no disk: what they showed is not in a
// recovery point.
var virtual = []string{"swap", "proc", "sysfs", "tmpfs", "ramfs", "devpts", "devtmpfs", "cgroup", "cgroup2", "securityfs", "debugfs",
	"tracefs", "configfs", "efivarfs", "hugetlbfs", "mqueue", "binfmt_misc", "fusectl", "pstore", "bpf", "autofs", "usbfs", "selinuxfs", "ignore",
	"nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "ceph", "glusterfs", "lustre", "gfs2", "ocfs2", "9p", "virtiofs", "davfs"}

// Bind says whether the line shows a folder of the guest at a second place.
func (l Line) Bind() bool { return l.Has("bind", "rbind") }

// Mounted says whether the guest mounted the line at its start, from a disk. A line that is
// noauto was mounted only when systemd did so at the first use.
func (l Line) Mounted() bool {
	switch {
	case !strings.HasPrefix(l.File, "/"): // swap, none
		return false
	case l.Has("noauto") && !l.Has("x-systemd.automount"):
		return false
	case l.Bind():
		return true
	}
	return !slices.Contains(virtual, l.Type) && !strings.HasPrefix(l.Type, "fuse.")
}

// Parse reads an fstab. What is no line of one is told in bad.
func Parse(table []byte) (lines []Line, bad []string) {
	if len(table) > MaxTable {
		return nil, []string{fmt.Sprintf("it has more than %d bytes", MaxTable)}
	}
	number := 0
	for text := range strings.Lines(string(table)) {
		number++
		fields := strings.Fields(text)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if len(lines) == maxLines {
			return lines, append(bad, fmt.Sprintf("it has more than %d lines; the rest is left out", maxLines))
		}
		if len(fields) < 2 {
			bad = append(bad, fmt.Sprintf("line %d has no mount point", number))
			continue
		}
		l := Line{Number: number, Spec: unescape(unquote(fields[0])), File: unescape(fields[1]), Type: "auto"}
		if len(fields) > 2 {
			l.Type = fields[2]
		}
		if len(fields) > 3 {
			for o := range strings.SplitSeq(fields[3], ",") {
				l.Options = append(l.Options, unescape(o))
			}
		}
		lines = append(lines, l)
	}
	return lines, bad
}

// unquote takes the quotes off TAG="value".
func unquote(spec string) string {
	tag, value, ok := strings.Cut(spec, "=")
	if ok && len(value) >= 2 && (value[0] == '"' || value[0] == '\'') && value[len(value)-1] == value[0] {
		return tag + "=" + value[1:len(value)-1]
	}
	return spec
}

// unescape resolves \040 and the like, which stand for characters that end a field.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	octal := func(c byte) bool { return c >= '0' && c <= '7' }
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && s[i+1] <= '3' && octal(s[i+1]) && octal(s[i+2]) && octal(s[i+3]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// Order puts lines into the order in which they are mounted: what a mount point, or the
// source of a bind, lies in comes first, wherever the fstab has it, as systemd does it.
// Of two lines with one mount point the later one is mounted over the other.
func Order(lines []Line) []Line {
	var out []Line
	done := make([]bool, len(lines))
	for len(out) < len(lines) {
		next := -1
		for i := range lines {
			if done[i] || next >= 0 {
				continue
			}
			waits := false
			for j := range lines {
				waits = waits || !done[j] && i != j && lines[i].needs(lines[j], j < i)
			}
			if !waits {
				next = i
			}
		}
		if next < 0 { // lines that wait for each other: as they stand
			next = slices.Index(done, false)
		}
		done[next] = true
		out = append(out, lines[next])
	}
	return out
}

// needs says whether m must be mounted before l.
func (l Line) needs(m Line, earlier bool) bool {
	if inside(l.File, m.File) && (Clean(l.File) != Clean(m.File) || earlier) {
		return true
	}
	return l.Bind() && inside(l.Spec, m.File) && Clean(l.File) != Clean(m.File)
}

// inside says whether a path is another one, or below it.
func inside(path, dir string) bool {
	path, dir = Clean(path), Clean(dir)
	return dir == "/" || path == dir || strings.HasPrefix(path, dir+"/")
}

// Clean is a path without empty names and dots. ".." stays: what it means depends on links.
func Clean(path string) string { return "/" + strings.Join(split(path), "/") }

func split(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(s string) bool { return s == "" || s == "." })
}
