package server_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/keelblock/keelblock/blockdev/nbd"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

func TestLoadTLSNamesTheFileThatIsWrong(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	write := func(name, content string) func(dir string) {
		return func(dir string) {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	remove := func(name string) func(dir string) {
		return func(dir string) {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, x := range map[string]struct {
		damage func(dir string)
		want   string
	}{
		"no certificate":        {remove("server-cert.pem"), "read server-cert.pem: no such file"},
		"no key":                {remove("server-key.pem"), "read server-key.pem: no such file"},
		"broken certificate":    {write("server-cert.pem", "hello"), "server-cert.pem and server-key.pem: "},
		"broken key":            {write("server-key.pem", "hello"), "server-cert.pem and server-key.pem: "},
		"broken authority":      {write("ca-cert.pem", "hello"), "ca-cert.pem: no certificate"},
		"damaged authority":     {write("ca-cert.pem", "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n"), "ca-cert.pem: x509"},
		"broken list":           {write("ca-crl.pem", "hello"), "ca-crl.pem: no revocation list"},
		"list without":          {func(dir string) { a.revoke(dir); remove("ca-cert.pem")(dir) }, "ca-crl.pem is there without ca-cert.pem"},
		"list of another":       {func(dir string) { other.revoke(dir) }, "ca-crl.pem: the list of CN=test authority is signed by no authority in ca-cert.pem"},
		"authority is a folder": {func(dir string) { remove("ca-cert.pem")(dir); os.Mkdir(filepath.Join(dir, "ca-cert.pem"), 0o700) }, "read ca-cert.pem: is a directory"},
		"key of another": {func(dir string) {
			d, _ := other.issue("server", "x")
			p, _ := os.ReadFile(filepath.Join(d, "server-key.pem"))
			write("server-key.pem", string(p))(dir)
		}, "private key does not match"},
	} {
		dir, _ := a.issue("server", "the server")
		x.damage(dir)
		if _, err := server.LoadTLS(dir); err == nil || !strings.Contains(err.Error(), x.want) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: LoadTLS: %v, want an error with %q and the folder", name, err, x.want)
		}
	}
	dir, _ := a.issue("server", "the server")
	if c := loadTLS(t, dir); c.ClientAuth != tls.RequireAndVerifyClientCert || c.MinVersion != tls.VersionTLS12 {
		t.Errorf("with an authority: client auth %v, version %#x", c.ClientAuth, c.MinVersion)
	}
	remove("ca-cert.pem")(dir)
	if c := loadTLS(t, dir); c.ClientAuth != tls.NoClientCert {
		t.Errorf("without an authority: client auth %v", c.ClientAuth)
	}
}

func TestOnlyVerifiedClientsPassTheTLSHandshake(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	dir, _ := a.issue("server", "the server")
	good, _ := a.issue("client", "good")
	bad, serial := a.issue("client", "revoked")
	strange, _ := other.issue("client", "strange")
	wrongUse, _ := a.issue("server", "no client") // a certificate for servers
	for _, kind := range []string{"cert", "key"} {
		if err := os.Rename(filepath.Join(wrongUse, "server-"+kind+".pem"), filepath.Join(wrongUse, "client-"+kind+".pem")); err != nil {
			t.Fatal(err)
		}
	}
	a.revoke(dir, serial)
	s := start(t, server.Options{TLS: loadTLS(t, dir)})
	s.add(t, server.Export{Name: "disk", Device: newDisk(t, t.TempDir(), 1<<20)})
	old := a.clientTLS(good)
	old.MaxVersion = tls.VersionTLS11
	for name, x := range map[string]struct {
		config *tls.Config
		ok     bool
	}{
		"good": {a.clientTLS(good), true}, "revoked": {a.clientTLS(bad), false}, "no certificate": {a.clientTLS(""), false},
		"of another authority": {a.clientTLS(strange), false}, "for servers": {a.clientTLS(wrongUse), false}, "TLS 1.1": {old, false},
	} {
		w := s.connect(t)
		w.ack(nbd.OptStartTLS, nil)
		tc := tls.Client(w.nc, x.config)
		_, err := tc.Write(nbd.AppendOption(nil, nbd.OptGo, infoRequest("disk")))
		if err == nil {
			_, err = io.ReadFull(tc, make([]byte, nbd.OptionReplySize)) // TLS 1.3 tells the client only now
		}
		if (err == nil) != x.ok {
			t.Errorf("%s: %v, want success %v", name, err, x.ok)
		}
	}
}

// access lets each client have the disk that has its name.
func access(p server.Peer, name string) error {
	if p.Network == "unix" {
		return nil
	}
	if !p.TLS || name != "disk-of-"+p.CommonName {
		return fmt.Errorf("%q may not use it", p.CommonName)
	}
	return nil
}

// Each client sees and opens what its certificate allows, whichever way it asks.
func TestCertificatesDecideOnExports(t *testing.T) {
	a := newAuthority(t)
	s := start(t, server.Options{TLS: a.serverTLS(), RequireTLS: true, AllowList: true, Authorize: access})
	for _, name := range []string{"anna", "bert"} {
		s.add(t, server.Export{Name: "disk-of-" + name, Device: newDisk(t, t.TempDir(), 1<<20)})
	}
	addr := s.tcp(t)
	for _, x := range [][2]string{{"anna", "bert"}, {"bert", "anna"}} {
		mine, others := "disk-of-"+x[0], "disk-of-"+x[1]
		dir, _ := a.issue("client", x[0])
		w := connectTCP(t, addr)
		w.startTLS(a.clientTLS(dir))
		list := w.ack(nbd.OptList, nil)
		if len(list) != 2 || !bytes.Equal(list[0].data, nbd.AppendServer(nil, mine, "")) {
			t.Errorf("%s sees %v", x[0], list)
		}
		w.ack(nbd.OptStructuredReply, nil)
		for _, name := range []string{others, "disk-of-nobody"} { // whether it exists or not
			w.refused(nbd.OptGo, infoRequest(name), nbd.RepErrPolicy)
			w.refused(nbd.OptInfo, infoRequest(name), nbd.RepErrPolicy)
			w.refused(nbd.OptSetMetaContext, contextRequest(name, "base:allocation"), nbd.RepErrPolicy)
			w.refused(nbd.OptListMetaContext, contextRequest(name), nbd.RepErrPolicy)
		}
		w.ack(nbd.OptInfo, infoRequest(mine))
		w.ack(nbd.OptGo, infoRequest(mine))
		w.structured = true
		w.alive()

		w = connectTCP(t, addr)
		w.startTLS(a.clientTLS(dir))
		w.put(nbd.AppendOption(nil, nbd.OptExportName, []byte(others)))
		if n, err := w.nc.Read(make([]byte, 100)); n > 0 || err == nil || isTimeout(err) {
			t.Errorf("EXPORT_NAME of another's disk: %d bytes, %v", n, err)
		}
		w = connectTCP(t, addr)
		w.startTLS(a.clientTLS(dir))
		w.put(nbd.AppendOption(nil, nbd.OptExportName, []byte(mine)))
		w.take(nbd.ExportReplySize)
		w.alive()
	}
}

// An authorization that fails says so to the client, and the peer tells what is
// needed to decide.
func TestPeerTellsTheCertificate(t *testing.T) {
	a := newAuthority(t)
	dir, _ := a.issue("client", "anna")
	var mu sync.Mutex
	var seen []server.Peer
	s := start(t, server.Options{TLS: a.serverTLS(), Authorize: func(p server.Peer, _ string) error {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, p)
		return errors.New("not today")
	}})
	w := connectTCP(t, s.tcp(t))
	w.refused(nbd.OptGo, infoRequest("disk"), nbd.RepErrPolicy)
	w.startTLS(a.clientTLS(dir))
	list := w.option(nbd.OptGo, infoRequest("disk"))
	if len(list) != 1 || string(list[0].data) != "not today" {
		t.Errorf("replies %v", list)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(seen) != 2 || seen[0].TLS || seen[0].CommonName != "" || !seen[1].TLS || seen[1].CommonName != "anna" || seen[1].Network != "tcp" {
		t.Errorf("peers %+v", seen)
	}
}
