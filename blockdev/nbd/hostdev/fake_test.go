package hostdev

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/nbd"
)

// parsed is a request as the kernel reads it; written apart from the code that it
// checks.
type parsed struct {
	family   uint16
	sequence uint32
	command  byte
	attrs    map[uint16][]byte
	sockets  []int
}

func parseRequest(b []byte) parsed {
	le := binary.NativeEndian
	if int(le.Uint32(b)) != len(b) || le.Uint16(b[6:]) != unix.NLM_F_REQUEST|unix.NLM_F_ACK {
		panic(fmt.Sprintf("no request: %x", b))
	}
	m := parsed{family: le.Uint16(b[4:]), sequence: le.Uint32(b[8:]), command: b[16], attrs: map[uint16][]byte{}}
	walk := func(b []byte, f func(kind uint16, v []byte)) {
		for len(b) >= 4 {
			n := int(le.Uint16(b))
			f(le.Uint16(b[2:])&0x3fff, b[4:n])
			b = b[min((n+3)/4*4, len(b)):]
		}
	}
	walk(b[20:], func(kind uint16, v []byte) {
		m.attrs[kind] = v
		if m.family != unix.GENL_ID_CTRL && kind == 7 {
			walk(v, func(_ uint16, item []byte) {
				walk(item, func(_ uint16, fd []byte) { m.sockets = append(m.sockets, int(le.Uint32(fd))) })
			})
		}
	})
	return m
}

func message(family uint16, sequence uint32, a attrs) []byte {
	le := binary.NativeEndian
	b := le.AppendUint32(nil, uint32(20+len(a)))
	b = le.AppendUint16(b, family)
	b = le.AppendUint16(b, 0)
	b = le.AppendUint32(b, sequence)
	b = append(b, 0, 0, 0, 0, 1, 1, 0, 0)
	return append(b, a...)
}

func acknowledgement(sequence uint32, errno unix.Errno) []byte {
	le := binary.NativeEndian
	b := le.AppendUint32(nil, 36)
	b = le.AppendUint16(b, unix.NLMSG_ERROR)
	b = le.AppendUint16(b, 0)
	b = le.AppendUint32(b, sequence)
	b = le.AppendUint32(b, 0)
	b = le.AppendUint32(b, uint32(-int32(errno)))
	return append(b, make([]byte, 16)...)
}

func familyReply(id uint16) attrs {
	return attrs{}.text(unix.CTRL_ATTR_FAMILY_NAME, "nbd").add(unix.CTRL_ATTR_FAMILY_ID, binary.NativeEndian.AppendUint16(nil, id))
}

// fakeKernel behaves as the kernel's driver does: it keeps sockets, notices those that
// end, drops a fresh socket for which none is dead while it says success, and shows
// itself in a folder that looks like /sys/block.
type fakeKernel struct {
	t    *testing.T
	host host

	mu      sync.Mutex
	devices map[uint32]*fakeDevice
	calls   []string
}

type fakeDevice struct {
	backend string
	flags   uint64
	size    uint64
	sockets []*os.File // nil: dead
}

func newFakeKernel(t *testing.T) *fakeKernel {
	dir := t.TempDir()
	k := &fakeKernel{t: t, devices: map[uint32]*fakeDevice{},
		host: host{filepath.Join(dir, "sys"), filepath.Join(dir, "dev"), filepath.Join(dir, "mounts")}}
	if err := os.Mkdir(k.host.dev, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		for i := range k.devices {
			k.free(i)
		}
	})
	return k
}

func (k *fakeKernel) kernel() *kernel {
	return &kernel{open: func() (conversation, error) { return &fakeConversation{k: k}, nil }}
}

type fakeConversation struct {
	k    *fakeKernel
	next []byte
}

func (c *fakeConversation) send(b []byte) error {
	m := parseRequest(b)
	if m.family == unix.GENL_ID_CTRL {
		c.next = append(message(m.family, m.sequence, familyReply(0x1c)), acknowledgement(m.sequence, 0)...)
		return nil
	}
	c.next = acknowledgement(m.sequence, c.k.carryOut(m))
	return nil
}

func (c *fakeConversation) receive(into []byte) (int, error) { return copy(into, c.next), nil }
func (c *fakeConversation) close() error                     { return nil }

func (k *fakeKernel) carryOut(m parsed) unix.Errno {
	k.mu.Lock()
	defer k.mu.Unlock()
	le := binary.NativeEndian
	index := le.Uint32(m.attrs[attrIndex])
	d := k.devices[index]
	backend := strings.TrimRight(string(m.attrs[attrBackendIdentifier]), "\x00")
	switch m.command {
	case cmdConnect:
		k.calls = append(k.calls, "connect")
		if d != nil {
			return unix.EBUSY
		}
		d = &fakeDevice{backend: backend, flags: le.Uint64(m.attrs[attrServerFlags]), size: le.Uint64(m.attrs[attrSizeBytes])}
		for _, fd := range m.sockets {
			d.sockets = append(d.sockets, k.take(fd))
		}
		k.devices[index] = d
	case cmdReconfigure:
		k.calls = append(k.calls, "reconfigure")
		if d == nil || d.backend != backend {
			return unix.EINVAL
		}
		if v := m.attrs[attrSizeBytes]; v != nil {
			d.size = le.Uint64(v)
		}
		for _, fd := range m.sockets {
			for i, s := range d.sockets {
				if k.dead(s) {
					s.Close()
					d.sockets[i] = k.take(fd)
					break
				}
			}
		}
	case cmdDisconnect:
		k.calls = append(k.calls, "disconnect")
		if d != nil {
			k.free(index)
		}
	default:
		return unix.EOPNOTSUPP
	}
	k.show(index)
	return 0
}

// dead reports whether the other end of a socket has ended.
func (k *fakeKernel) dead(s *os.File) bool {
	var b [1]byte
	n, _, err := unix.Recvfrom(int(s.Fd()), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return n == 0 && err == nil
}

func (k *fakeKernel) take(fd int) *os.File {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		k.t.Error(err)
	}
	return os.NewFile(uintptr(dup), "socket of the kernel")
}

func (k *fakeKernel) free(index uint32) {
	for _, s := range k.devices[index].sockets {
		s.Write(nbd.AppendRequest(nil, nbd.Request{Type: nbd.CmdDisc}))
		s.Close()
	}
	delete(k.devices, index)
}

// show writes the device's attributes.
func (k *fakeKernel) show(index uint32) {
	dir := filepath.Join(k.host.sys, fmt.Sprintf("nbd%d", index))
	d := k.devices[index]
	if d == nil {
		os.RemoveAll(dir)
		return
	}
	os.MkdirAll(dir, 0o755)
	for name, text := range map[string]string{"pid": fmt.Sprint(os.Getpid()), "backend": d.backend, "size": fmt.Sprint(d.size / 512)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text+"\n"), 0o644); err != nil {
			k.t.Error(err)
		}
	}
}

// request sends one request on a socket of a device and returns the error of the reply
// and its payload.
func (k *fakeKernel) request(index uint32, socket int, r nbd.Request, payload []byte) (errno uint32, data []byte, err error) {
	k.mu.Lock()
	s := k.devices[index].sockets[socket]
	k.mu.Unlock()
	if _, err := s.Write(append(nbd.AppendRequest(nil, r), payload...)); err != nil {
		return 0, nil, err
	}
	head := make([]byte, 16)
	if _, err := io.ReadFull(s, head); err != nil {
		return 0, nil, err
	}
	if binary.BigEndian.Uint32(head) != nbd.SimpleReplyMagic {
		return 0, nil, fmt.Errorf("reply %x is not a simple one", head)
	}
	errno = binary.BigEndian.Uint32(head[4:])
	if r.Type == nbd.CmdRead && errno == 0 {
		data = make([]byte, r.Length)
		_, err = io.ReadFull(s, data)
	}
	return errno, data, err
}
