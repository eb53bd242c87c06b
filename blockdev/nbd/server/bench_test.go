package server_test

import (
	"fmt"
	"net"
	"os"
	"testing"

	"github.com/keelblock/keelblock/blockdev/nbd"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

// BenchmarkServer measures requests over a unix socket, with the disk on tmpfs and
// the client, a plain loop, in the same process. tools/compare/nbdslices compares
// with other servers.
func BenchmarkServer(b *testing.B) {
	dir, err := os.MkdirTemp("/dev/shm", "keelblock-bench-")
	if err != nil {
		b.Skipf("no tmpfs: %v", err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	const size = 64 << 20
	d := newDisk(b, dir, size)
	if _, err := d.WriteAt(make([]byte, size), 0); err != nil {
		b.Fatal(err)
	}
	s := start(b, server.Options{})
	s.add(b, server.Export{Name: "disk", Device: d})
	for _, x := range []struct {
		command uint16
		bytes   int
		depth   int
	}{
		{nbd.CmdRead, 4 << 10, 1}, {nbd.CmdRead, 4 << 10, 32}, {nbd.CmdRead, 1 << 20, 4},
		{nbd.CmdWrite, 4 << 10, 1}, {nbd.CmdWrite, 4 << 10, 32}, {nbd.CmdWrite, 1 << 20, 4},
	} {
		name := map[uint16]string{nbd.CmdRead: "read", nbd.CmdWrite: "write"}[x.command]
		b.Run(fmt.Sprintf("%s-%dk-qd%d", name, x.bytes>>10, x.depth), func(b *testing.B) {
			w := s.open(b, "disk", true)
			w.nc.(*net.UnixConn).SetWriteBuffer(2 << 20)
			batch, answer := []byte{}, 0
			for i := range x.depth {
				batch = nbd.AppendRequest(batch, nbd.Request{Type: x.command, Cookie: uint64(i), Offset: uint64(i*7919*x.bytes) % size, Length: uint32(x.bytes)})
				if x.command == nbd.CmdWrite {
					batch = append(batch, make([]byte, x.bytes)...)
					answer += nbd.SimpleReplySize
				} else {
					answer += nbd.OffsetDataSize + x.bytes
					if x.bytes >= 64<<10 { // by sendfile, which ends with a chunk of its own
						answer += nbd.ChunkSize
					}
				}
			}
			in := make([]byte, answer)
			b.SetBytes(int64(x.bytes * x.depth))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := w.nc.Write(batch); err != nil {
					b.Fatal(err)
				}
				for got := 0; got < answer; {
					n, err := w.nc.Read(in[got:])
					if err != nil {
						b.Fatal(err)
					}
					got += n
				}
			}
		})
	}
}
