package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// snapshot is what stands on the machine: one line for each thing.
type snapshot map[string]bool

// minus lists what is in s and not in t.
func (s snapshot) minus(t snapshot) []string {
	var out []string
	for k := range s {
		if !t[k] {
			out = append(out, k)
		}
	}
	return out
}

func takeSnapshot() (snapshot, error) {
	s := snapshot{}
	for _, take := range []func(snapshot) error{mounts, loops, namespaces, unixSockets, tcpListeners, maps, tempFiles} {
		if err := take(s); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// mounts reads proc(5) mountinfo: field 5 is the mount point, the type and the
// source follow the lone hyphen.
func mounts(s snapshot) error {
	return lines("/proc/self/mountinfo", func(line string) {
		head, tail, _ := strings.Cut(line, " - ")
		h, t := strings.Fields(head), strings.Fields(tail)
		if len(h) > 4 && len(t) > 1 {
			s["mount "+h[4]+" ("+t[0]+" of "+t[1]+")"] = true
		}
	})
}

func loops(s snapshot) error {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return err
	}
	for _, f := range files {
		backing, err := os.ReadFile(f)
		if err != nil {
			continue // detached meanwhile
		}
		s["loop device /dev/"+strings.Split(f, "/")[3]+" of "+strings.TrimSpace(string(backing))] = true
	}
	return nil
}

// namespaces are the named ones of ip-netns(8); unnamed ones end with their last
// process, which is found as such.
func namespaces(s snapshot) error {
	for _, dir := range []string{"/run/netns", "/var/run/netns"} {
		if err := entries(dir, func(name string) { s["network namespace "+name] = true }); err != nil {
			return err
		}
	}
	return nil
}

// unixSockets are the listening ones that have a name (flag __SO_ACCEPTCON).
func unixSockets(s snapshot) error {
	return lines("/proc/net/unix", func(line string) {
		f := strings.Fields(line)
		if len(f) < 8 {
			return
		}
		if flags, err := strconv.ParseUint(f[3], 16, 32); err == nil && flags&0x10000 != 0 {
			s["listening socket "+f[7]] = true
		}
	})
}

// tcpListeners are sockets in state 0A, TCP_LISTEN.
func tcpListeners(s snapshot) error {
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		err := lines(table, func(line string) {
			f := strings.Fields(line)
			if len(f) > 3 && f[3] == "0A" {
				_, port, _ := strings.Cut(f[1], ":")
				if n, err := strconv.ParseUint(port, 16, 16); err == nil {
					s[fmt.Sprintf("listening TCP port %d", n)] = true
				}
			}
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// maps are folders of changed-block maps, which lie on tmpfs, and those that tests make
// there: a test that is ended by its time limit removes nothing.
func maps(s snapshot) error {
	if err := entries("/run/keelblock", func(name string) { s["map folder /run/keelblock/"+name] = true }); err != nil {
		return err
	}
	return entries("/dev/shm", func(name string) {
		switch {
		case strings.HasPrefix(name, "keelblock-test-"), strings.HasPrefix(name, "kbtest"):
			s["test folder /dev/shm/"+name] = true
		case strings.HasPrefix(name, "keelblock"):
			s["map folder /dev/shm/"+name] = true
		}
	})
}

// tempFiles are those that carry the name of a test or of ours.
func tempFiles(s snapshot) error {
	return entries(os.TempDir(), func(name string) {
		for _, prefix := range []string{"Test", "Fuzz", "Benchmark", "keelblock", "kbtest", "testscript"} {
			if strings.HasPrefix(name, prefix) {
				s["temporary file "+filepath.Join(os.TempDir(), name)] = true
			}
		}
	})
}

// remedies are the commands that take away what is left, in an order that works: whoever
// uses it first.
func remedies(left []string) (commands []string) {
	order := []struct{ kind, command string }{
		{"mount ", "umount "}, {"loop device ", "losetup -d "}, {"network namespace ", "ip netns delete "},
		{"test folder ", "rm -r "}, {"map folder ", "rm -r "}, {"temporary file ", "rm -r "},
	}
	for _, o := range order {
		for _, l := range left {
			if what, ok := strings.CutPrefix(l, o.kind); ok {
				what, _, _ = strings.Cut(what, " ")
				commands = append(commands, o.command+what)
			}
		}
	}
	return commands
}

// process is a descendant that outlived the command.
type process struct {
	pid     int
	command string
}

func (p process) String() string { return fmt.Sprintf("%d: %s", p.pid, p.command) }

// liveChildren reaps dead children and lists those that run, with theirs. Only
// orphans are children of hygiene once the command has ended.
func liveChildren() ([]process, error) {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if pid <= 0 || err != nil {
			break
		}
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	parent := map[int]int{}
	for _, d := range dirs {
		stat, err := os.ReadFile(filepath.Join(d, "stat"))
		if err != nil {
			continue // ended meanwhile
		}
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil {
			continue
		}
		// The command name stands in parentheses and may hold anything.
		_, rest, _ := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " ")
		f := strings.Fields(rest)
		if len(f) < 2 || f[0] == "Z" {
			continue
		}
		if ppid, err := strconv.Atoi(f[1]); err == nil {
			parent[pid] = ppid
		}
	}
	var out []process
	for pid := range parent {
		if !descends(parent, pid, os.Getpid()) {
			continue
		}
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		out = append(out, process{pid, strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " "))})
	}
	return out, nil
}

func descends(parent map[int]int, pid, from int) bool {
	for range len(parent) {
		up, ok := parent[pid]
		if !ok {
			return false
		}
		if up == from {
			return true
		}
		pid = up
	}
	return false
}

func lines(path string, yield func(string)) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() // only read
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		yield(sc.Text())
	}
	return sc.Err()
}

func entries(dir string, yield func(name string)) error {
	list, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	for _, e := range list {
		yield(e.Name())
	}
	return err
}
