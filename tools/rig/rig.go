// Package rig is an appliance in a temporary folder, for the tools that drive the
// real binary as a user would: the demo, the VM lab, the comparisons.
//
//	r, err := rig.New("bin/keelblock", "keelblock-demo-")
//	defer r.Close()
//	_, err = r.Shell(ctx, "keelblock serve -d")
//
// Everything lies below Dir: commands run there, with KEELBLOCK_DATA naming its
// folder data and keelblock in PATH. Close stops the daemon and removes it all.
package rig

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Rig is one appliance. Its methods may be called from several goroutines, save
// Close.
type Rig struct {
	// Bin is the binary, Dir the temporary folder, Data the daemon's folder in it.
	Bin, Dir, Data string
}

// New makes the folder. No daemon is started.
func New(bin, prefix string) (*Rig, error) {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(bin); err != nil {
		return nil, fmt.Errorf("%w; make builds it", err)
	}
	dir, err := os.MkdirTemp("", prefix)
	if err != nil {
		return nil, err
	}
	return &Rig{Bin: bin, Dir: dir, Data: filepath.Join(dir, "data")}, nil
}

// Need returns an error that names the first command that is not installed.
func Need(commands ...string) error {
	for _, c := range commands {
		if _, err := exec.LookPath(c); err != nil {
			return fmt.Errorf("%s is missing; make deps installs it", c)
		}
	}
	return nil
}

// FUSE reports whether this machine can mount FUSE file systems.
func FUSE() bool {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	return f.Close() == nil
}

// Shell runs a line by bash and returns what it printed on standard output. What it
// printed on standard error is part of the error. When ctx ends, the line and all
// that it started in the foreground or background is ended, gently.
func (r *Rig) Shell(ctx context.Context, line string) (string, error) {
	out, err := r.run(ctx, "bash", "-c", "set -e -o pipefail; "+line)
	if err != nil {
		first, _, _ := strings.Cut(line, "\n")
		return out, fmt.Errorf("%s: %w", first, err)
	}
	return out, nil
}

// Command is Shell for one command, without a shell.
func (r *Rig) Command(ctx context.Context, name string, args ...string) (string, error) {
	out, err := r.run(ctx, name, args...)
	if err != nil {
		return out, fmt.Errorf("%s %s: %w", filepath.Base(name), strings.Join(args, " "), err)
	}
	return out, nil
}

// Keelblock runs the product.
func (r *Rig) Keelblock(ctx context.Context, args ...string) (string, error) {
	return r.Command(ctx, r.Bin, args...)
}

func (r *Rig) run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = r.Dir
	cmd.Env = []string{"KEELBLOCK_DATA=" + r.Data, "PATH=" + filepath.Dir(r.Bin) + ":" + os.Getenv("PATH") + ":/usr/sbin:/sbin"}
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "PATH=") && !strings.HasPrefix(kv, "KEELBLOCK_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%w\n%s%s", err, stderr.String(), stdout.String())
	}
	return stdout.String(), nil
}

// Point is what the tools use of `backup --json`.
type Point struct {
	ID           string
	FrozenAt     time.Time
	Tracking     string
	ReadBytes    int64
	ChangedBytes int64
	NewBytes     int64
	StoredBytes  int64
	FreezeMicros int64
	// Took is how long the command ran.
	Took time.Duration `json:"-"`
}

// Backup backs a machine up.
func (r *Rig) Backup(ctx context.Context, machine string) (Point, error) {
	start := time.Now()
	out, err := r.Keelblock(ctx, "backup", machine, "--json")
	if err != nil {
		return Point{}, err
	}
	return ParsePoint(out, time.Since(start))
}

// ParsePoint reads the output of `backup --json`.
func ParsePoint(text string, took time.Duration) (Point, error) {
	p := Point{Took: took}
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return p, fmt.Errorf("backup --json printed %q: %w", text, err)
	}
	if p.ID == "" || p.FrozenAt.IsZero() {
		return p, fmt.Errorf("backup --json printed no id or no time: %q", text)
	}
	return p, nil
}

// URI is the address of a live disk or of a named export.
func (r *Rig) URI(export string) string {
	return "nbd+unix:///" + export + "?socket=" + r.Socket()
}

// Socket is the path of the daemon's NBD socket.
func (r *Rig) Socket() string { return filepath.Join(r.Data, "run", "nbd.sock") }

// Close stops the daemon, if there is one, and removes the folder. It goes on where
// something fails, takes at most a minute, and may be called twice.
func (r *Rig) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var errs []error
	if _, err := os.Stat(filepath.Join(r.Data, "run", "api.sock")); err == nil {
		if _, err := r.Keelblock(ctx, "stop"); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, os.RemoveAll(r.Dir))...)
}

// LiveBytes is what all recovery points need of the vault.
func (r *Rig) LiveBytes(ctx context.Context) (int64, error) {
	out, err := r.Keelblock(ctx, "vault", "usage", "--json")
	if err != nil {
		return 0, err
	}
	var usage struct {
		Vaults []struct {
			LiveBytes int64 `json:"liveBytes"`
		} `json:"vaults"`
	}
	if err := json.Unmarshal([]byte(out), &usage); err != nil {
		return 0, fmt.Errorf("read the vault's usage: %w", err)
	}
	var sum int64
	for _, v := range usage.Vaults {
		sum += v.LiveBytes
	}
	return sum, nil
}

// FreedBytes is what the last collection of the default vault freed, less what it wrote
// anew for that.
func (r *Rig) FreedBytes(ctx context.Context) (int64, error) {
	out, err := r.Keelblock(ctx, "vault", "status", "--json")
	if err != nil {
		return 0, err
	}
	var status struct {
		LastCollection struct {
			Outcome    string `json:"outcome"`
			FreedBytes int64  `json:"freedBytes"`
		} `json:"lastCollection"`
	}
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		return 0, fmt.Errorf("read the vault's status: %w", err)
	}
	if c := status.LastCollection; c.Outcome != "completed" {
		return 0, fmt.Errorf("the last collection ended as %q", c.Outcome)
	}
	return status.LastCollection.FreedBytes, nil
}
