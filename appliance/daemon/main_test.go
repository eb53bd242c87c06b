package daemon_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/keelblock/keelblock/appliance/config"
	"github.com/keelblock/keelblock/appliance/daemon"
)

// childEnv makes this test binary a daemon, whose configuration it holds.
const childEnv = "KEELBLOCK_TEST_DAEMON"

// TestMain lets tests kill a real daemon: it is this binary, started again.
func TestMain(m *testing.M) {
	if text := os.Getenv(childEnv); text != "" {
		os.Exit(runChild(text))
	}
	os.Exit(m.Run())
}

func runChild(text string) int {
	var cfg config.Config
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	err := daemon.Run(ctx, cfg, func(r daemon.Ready) { fmt.Println("ready", r.PID) })
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// process is a daemon in a process of its own.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	log *os.File
	clients
}

// startProcess runs a daemon that the test may kill.
func startProcess(t *testing.T, cfg config.Config) *process {
	t.Helper()
	cfg.LogWriter = nil
	text, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, cmd: exec.Command(exe)}
	p.cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	if p.log, err = os.CreateTemp(t.TempDir(), "log"); err != nil {
		t.Fatal(err)
	}
	p.cmd.Stderr = p.log
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	line := make(chan string, 1)
	go func() {
		buf := make([]byte, 64)
		n, _ := io.ReadAtLeast(out, buf, 6)
		line <- string(buf[:n])
	}()
	select {
	case l := <-line:
		if !strings.HasPrefix(l, "ready") {
			p.kill()
			t.Fatalf("the daemon is not ready: %q\n%s", l, p.logText())
		}
	case <-time.After(jobTimeout):
		t.Fatalf("the daemon is not ready in time\n%s", p.logText())
	}
	p.clients = dial(cfg.APISocket())
	return p
}

// kill ends the daemon as kill -9 does and waits for its end. A second call is
// harmless.
func (p *process) kill() {
	if p.cmd.ProcessState != nil {
		return
	}
	_ = p.cmd.Process.Kill() // it may have ended by itself
	_ = p.cmd.Wait()         // "signal: killed"
}

// terminate stops the daemon as systemd does and fails when that was not clean.
func (p *process) terminate() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		p.t.Fatalf("stop: %v\n%s", err, p.logText())
	}
}

func (p *process) logText() string {
	b, err := os.ReadFile(p.log.Name())
	if err != nil {
		return err.Error()
	}
	return string(b)
}
