package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

func (a *app) stopCommand() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "stop", Short: "drain and end the daemon; returns when it has ended", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			s, err := c.appliance.Status(ctx, connect.NewRequest(&kb.StatusRequest{}))
			if err != nil {
				return err
			}
			pid := int(s.Msg.GetPid())
			if !strings.HasPrefix(c.address, "unix:") {
				return a.stopRemote(ctx, c, pid)
			}
			end, err := openProcess(pid)
			if err != nil {
				return fmt.Errorf("watch process %d: %w", pid, err)
			}
			defer end.close()
			if _, err := c.appliance.Stop(ctx, connect.NewRequest(&kb.StopRequest{})); err != nil && !end.over() {
				return err
			}
			if err := end.wait(ctx); err != nil {
				return fmt.Errorf("the daemon (pid %d) is still draining after %s: %w", pid, timeout, err)
			}
			return a.print(readyShape{PID: pid, API: c.address, NBD: []string{}}, nil)
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "how long to wait for the end")
	return cmd
}

// stopRemote stops a daemon on another machine, whose end shows by its silence.
func (a *app) stopRemote(ctx context.Context, c *client, pid int) error {
	if _, err := c.appliance.Stop(ctx, connect.NewRequest(&kb.StopRequest{})); err != nil {
		return err
	}
	for {
		if _, err := c.appliance.Status(ctx, connect.NewRequest(&kb.StatusRequest{})); err != nil {
			if ctx.Err() != nil {
				return fmt.Errorf("the daemon at %s still answers: %w", c.address, ctx.Err())
			}
			return a.print(readyShape{PID: pid, API: c.address, NBD: []string{}}, nil)
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// process is a process of somebody else, watched until it ends. A descriptor is used
// and not the number, which might be given to another process, and which stays for as
// long as nobody collects the dead one.
type process struct{ fd int }

func openProcess(pid int) (process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return process{-1}, nil
	}
	return process{fd}, err
}

func (p process) close() {
	if p.fd >= 0 {
		_ = unix.Close(p.fd)
	}
}

// over says whether the process has ended, giving it a moment.
func (p process) over() bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return p.wait(ctx) == nil
}

func (p process) wait(ctx context.Context) error {
	for p.fd >= 0 {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, 100)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n > 0 {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}
