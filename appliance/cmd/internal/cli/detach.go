package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// childFD is the descriptor of the pipe on which a detached child tells that it works.
const childFD = 3

// detached runs this program again in a session of its own, with other arguments, and
// waits until it has written to the pipe on descriptor childFD and closed it, or
// ended. What it wrote is returned. The child's standard error goes to log; its standard
// input is in, or nothing.
func detached(ctx context.Context, args []string, in io.Reader, log *os.File) (text []byte, pid int, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, 0, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, 0, err
	}
	defer r.Close()
	cmd := exec.Command(self, args...)
	cmd.Args[0] = "keelblock"
	cmd.Stdin, cmd.Stderr = in, log
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return nil, 0, err
	}
	type result struct {
		text []byte
		err  error
	}
	read := make(chan result, 1)
	go func() {
		text, err := io.ReadAll(bufio.NewReader(r))
		read <- result{text, err}
	}()
	select {
	case got := <-read:
		if len(got.text) > 0 {
			pid := cmd.Process.Pid
			return got.text, pid, cmd.Process.Release()
		}
		if err := cmd.Wait(); err != nil {
			return nil, 0, err
		}
		return nil, 0, errors.New("it ended before it was ready")
	case <-ctx.Done():
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		return nil, 0, ctx.Err()
	}
}

// serveDetached starts the daemon in the background and prints its ready line.
func (a *app) serveDetached(cmd *cobra.Command, s *serveFlags) error {
	cfg, err := a.serveConfig(cmd, s)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cfg.RunDir(), 0o750); err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	path := filepath.Join(cfg.RunDir(), "serve.log")
	log, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o640)
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	defer log.Close()
	began, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	args := slices.DeleteFunc(slices.Clone(a.args), func(s string) bool { return s == "-d" || s == "--detach" || s == "--detach=true" })
	args = append(args, fmt.Sprintf("--ready-fd=%d", childFD))
	var in io.Reader
	if len(cfg.Passphrases) > 0 || cfg.PassphraseFD != nil { // the descriptor has been read here
		args, in = append(args, "--passphrase-fd=0"), passphrasePipe(cfg)
	}
	text, _, err := detached(cmd.Context(), args, in, log)
	if err != nil {
		return childFailed(err, log, began, path)
	}
	line, advice, _ := bytes.Cut(text, []byte{0}) // see serve
	_, err = a.Out.Write(line)
	_, err2 := a.Err.Write(advice)
	return errors.Join(err, err2)
}

// childFailed says why a child did not become ready, in its own words.
func childFailed(err error, log io.ReaderAt, began int64, path string) error {
	tail := make([]byte, 64<<10)
	n, _ := log.ReadAt(tail, began)
	lines := strings.Split(string(bytes.TrimSpace(tail[:n])), "\n")
	last := strings.TrimPrefix(lines[len(lines)-1], "keelblock: ")
	if path == "" && len(lines) > 1 { // what a helper said comes before
		last += " (" + strings.Join(lines[:len(lines)-1], "; ") + ")"
	}
	var exit *exec.ExitError
	if last != "" && errors.As(err, &exit) {
		err = errors.New(last)
		switch exit.ExitCode() {
		case exitUsage:
			return usageError{err}
		case exitNotFound:
			return notFoundError{err}
		}
		return err
	}
	if path != "" {
		return fmt.Errorf("%w; see %s", err, path)
	}
	return err
}
