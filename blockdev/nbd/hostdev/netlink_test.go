package hostdev

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "rewrite the golden file")

// recorder is a kernel that notes what it is asked and answers with the family and an
// acknowledgement.
type recorder struct{ sent [][]byte }

func (r *recorder) kernel() *kernel {
	return &kernel{open: func() (conversation, error) { return &recording{r: r}, nil }}
}

type recording struct {
	r       *recorder
	answers [][]byte
}

func (c *recording) send(b []byte) error {
	c.r.sent = append(c.r.sent, bytes.Clone(b))
	m := parseRequest(b)
	if m.family == unix.GENL_ID_CTRL {
		c.answers = append(c.answers, message(m.family, m.sequence, familyReply(0x1c)))
	}
	c.answers = append(c.answers, acknowledgement(m.sequence, 0))
	return nil
}

func (c *recording) receive(into []byte) (int, error) {
	if len(c.answers) == 0 {
		return 0, unix.EAGAIN
	}
	n := copy(into, c.answers[0])
	c.answers = c.answers[1:]
	return n, nil
}

func (c *recording) close() error { return nil }

// The bytes of each command are those that the kernel's headers ask for. They were
// read by hand against linux/nbd-netlink.h; make test-vm has a kernel judge them. They
// are of a little-endian machine.
func TestGoldenCommands(t *testing.T) {
	if b := (attrs{}).u32(1, 1); b[4] != 1 {
		t.Skip("the golden bytes are of a little-endian machine")
	}
	d := device{index: 3, backend: "keelblock:0123", sizeBytes: 1<<30 + 512, flags: 0x016d, timeout: 30 * time.Second,
		dead: 24 * time.Hour, sockets: []int{7, 9}}
	var got strings.Builder
	for _, tt := range []struct {
		name string
		call func(*kernel) error
	}{
		{"connect", func(k *kernel) error { return k.connect(d) }},
		{"reconnect", func(k *kernel) error { return k.reconnect(d) }},
		{"resize", func(k *kernel) error { return k.resize(3, d.backend, 2<<30) }},
		{"disconnect", func(k *kernel) error { return k.disconnect(3) }},
	} {
		r := &recorder{}
		if err := tt.call(r.kernel()); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		for _, b := range r.sent {
			fmt.Fprintf(&got, "%s\n%s\n", tt.name, hex.Dump(b))
		}
	}
	const golden = "testdata/commands.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("got:\n%s\nwant:\n%s", got.String(), want)
	}
}

func TestKernelsRefusalsAreUnderstood(t *testing.T) {
	for _, tt := range []struct {
		family, command unix.Errno
		want            error
	}{
		{unix.ENOENT, 0, ErrNoDriver},
		{0, unix.EPERM, ErrNotPermitted},
		{0, unix.EBUSY, ErrBusy},
		{0, unix.EINVAL, unix.EINVAL},
	} {
		k := &kernel{open: func() (conversation, error) { return &refusing{tt.family, tt.command, nil}, nil }}
		if err := k.disconnect(1); !errors.Is(err, tt.want) {
			t.Errorf("the kernel says %d and %d: error %v, want %v", tt.family, tt.command, err, tt.want)
		}
	}
}

type refusing struct {
	family, command unix.Errno
	next            []byte
}

func (c *refusing) send(b []byte) error {
	m := parseRequest(b)
	switch {
	case m.family != unix.GENL_ID_CTRL:
		c.next = acknowledgement(m.sequence, c.command)
	case c.family != 0:
		c.next = acknowledgement(m.sequence, c.family)
	default: // in one datagram
		c.next = append(message(m.family, m.sequence, familyReply(0x1c)), acknowledgement(m.sequence, 0)...)
	}
	return nil
}

func (c *refusing) receive(into []byte) (int, error) { return copy(into, c.next), nil }
func (c *refusing) close() error                     { return nil }

// Whatever a datagram holds, reading it ends, and without a panic.
func FuzzAnswer(f *testing.F) {
	f.Add(append(message(0x1c, 2, attrs{}.nest(9, attrs{}.nest(1, attrs{}.u32(1, 1)))), acknowledgement(2, 0)...))
	f.Add(acknowledgement(2, unix.EBUSY))
	f.Add(message(unix.GENL_ID_CTRL, 2, familyReply(0x1c))[:19])
	f.Add([]byte{0xff, 0xff, 0xff, 0x7f, 2, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = answer(b, 2, func(a attrs) {
			_ = each(a, func(_ uint16, v []byte) bool { return each(v, func(uint16, []byte) bool { return true }) == nil })
		})
	})
}

func TestPathsOfDevices(t *testing.T) {
	for path, want := range map[string]int{"/dev/nbd0": 0, "/dev/nbd15": 15, "/dev/nbd4095": 4095} {
		if got, err := ParsePath(path); err != nil || got != want {
			t.Errorf("%s: %d, %v; want %d", path, got, err, want)
		}
	}
	for _, path := range []string{"", "nbd0", "/dev/nbd", "/dev/nbd01", "/dev/nbd0p1", "/dev/nbd4096", "/dev/nbd99999", "/dev/sda", "/dev/null", "/tmp/nbd0"} {
		if got, err := ParsePath(path); !errors.Is(err, ErrNotDevice) {
			t.Errorf("%q: %d, %v; want ErrNotDevice", path, got, err)
		}
	}
}
