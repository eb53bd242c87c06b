package server_test

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/blockdevtest"
	"github.com/keelblock/keelblock/blockdev/nbd/client"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

func TestConformanceOverTLS(t *testing.T) {
	a := newAuthority(t)
	dir, _ := a.issue("client", "client")
	config := a.serverTLS()
	blockdevtest.Run(t, func(t *testing.T, size int64) blockdev.Device {
		d := newDisk(t, t.TempDir(), size)
		s := start(t, server.Options{TLS: config, RequireTLS: true})
		s.add(t, server.Export{Name: "disk", Device: d})
		return dial(t, nbds(s.tcp(t), "disk", dir))
	})
}

// Our client insists on TLS, on the server's certificate, and says what is wrong.
func TestClientOverTLS(t *testing.T) {
	a := newAuthority(t)
	dir, _ := a.issue("client", "client")
	stranger, _ := newAuthority(t).issue("client", "client")
	s := start(t, server.Options{TLS: a.serverTLS(), RequireTLS: true})
	s.add(t, server.Export{Name: "disk", Device: newDisk(t, t.TempDir(), 1<<20)})
	without := start(t, server.Options{})
	without.add(t, server.Export{Name: "disk", Device: newDisk(t, t.TempDir(), 1<<20)})
	addr := s.tcp(t)
	anonymous := t.TempDir() // knows the authority, has no certificate
	ca, err := os.ReadFile(filepath.Join(dir, "ca-cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(anonymous, "ca-cert.pem"), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	unix := func(s *running, dir string) string {
		return "nbds+unix:///disk?socket=" + url.QueryEscape(s.socket) + "&tls-certificates=" + url.QueryEscape(dir)
	}
	for _, x := range []struct{ uri, want string }{
		{nbds(addr, "disk", dir), ""},
		{unix(s, dir), ""},
		{nbds(addr, "disk", dir) + "&tls-hostname=localhost", ""},
		{nbds(addr, "disk", dir) + "&tls-hostname=elsewhere", "certificate is valid for localhost, not elsewhere"},
		{nbds(addr, "disk", stranger), "unknown authority"},
		{"nbds://" + addr + "/disk", "unknown authority"},
		{nbds(addr, "disk", anonymous), "connect to"}, // mostly "tls: certificate required", unless a reset comes before it
		{nbds(addr, "none", dir), "no such export"},
		{"nbd://" + addr + "/disk", "TLS is required"},
		{unix(without, dir), "it does not know the option"},
	} {
		c, err := client.Dial(within(t, 10*time.Second), x.uri)
		if err == nil {
			if _, err := c.WriteAt([]byte("hello"), 4090); err != nil {
				t.Errorf("%s: %v", x.uri, err)
			}
			if err := c.Close(); err != nil {
				t.Errorf("%s: Close: %v", x.uri, err)
			}
		}
		if x.want == "" && err != nil || x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want)) {
			t.Errorf("%s: %v, want %q", x.uri, err, x.want)
		}
	}
}
