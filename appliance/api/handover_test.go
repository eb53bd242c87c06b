package api

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A file that a client hands over with its request is the handler's, once, and is what the
// client opened it for; a second one, and one that nobody takes, are closed.
func TestFilesAreHandedOver(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{ConnContext: ConnContext, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/leave" {
			return
		}
		f, again := handedOver(r.Context()), handedOver(r.Context())
		if f == nil || again != nil {
			http.Error(w, fmt.Sprintf("first %v, then %v", f, again), http.StatusBadRequest)
			return
		}
		defer f.Close()
		if uid := peerOf(r.Context()).UID; uid != os.Getuid() {
			http.Error(w, fmt.Sprintf("user %d", uid), http.StatusBadRequest)
		}
		if _, err := f.WriteAt([]byte("written by the other side"), 0); err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
		}
	})}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(FileListener(l)) }()
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		<-done
	})

	call := func(path string, files ...*os.File) (status string) {
		t.Helper()
		c, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		var fds []int
		for _, f := range files {
			fds = append(fds, int(f.Fd()))
		}
		var rights []byte
		if len(fds) > 0 {
			rights = unix.UnixRights(fds...)
		}
		request := "GET " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
		if _, _, err := c.(*net.UnixConn).WriteMsgUnix([]byte(request), rights, nil); err != nil {
			t.Fatal(err)
		}
		var reply bytes.Buffer
		if _, err := reply.ReadFrom(c); err != nil {
			t.Fatal(err)
		}
		status, _, _ = strings.Cut(reply.String(), "\r\n")
		return status
	}
	open := func(name string, flags int) *os.File {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(dir, name), flags|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	a, b, readOnly := open("a", os.O_RDWR), open("b", os.O_RDWR), open("c", os.O_RDONLY)
	before := openFiles(t)
	if s := call("/", a, b); s != "HTTP/1.1 200 OK" {
		t.Errorf("two files: %s", s)
	}
	if got, err := os.ReadFile(a.Name()); err != nil || string(got) != "written by the other side" {
		t.Errorf("the first file has %q, %v", got, err)
	}
	if got, err := os.ReadFile(b.Name()); err != nil || len(got) > 0 {
		t.Errorf("the second file has %q, %v", got, err)
	}
	if s := call("/"); s != "HTTP/1.1 400 Bad Request" {
		t.Errorf("without a file: %s", s)
	}
	if s := call("/", readOnly); s != "HTTP/1.1 403 Forbidden" {
		t.Errorf("a file that is open for reading: %s", s)
	}
	if s := call("/leave", a); s != "HTTP/1.1 200 OK" {
		t.Errorf("a file that is not taken: %s", s)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for openFiles(t) > before { // connections end a moment after their answers
		if ctx.Err() != nil {
			t.Fatalf("%d files are open, %d were before", openFiles(t), before)
		}
		time.Sleep(time.Millisecond)
	}
}

// openFiles counts the files, not the sockets, that this process has open.
func openFiles(t *testing.T) (n int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && filepath.IsAbs(to) {
			n++
		}
	}
	return n
}
