package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// authority signs certificates of a test.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	der  []byte
	key  *ecdsa.PrivateKey
	next int64
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, key: newKey(t), next: 1}
	a.cert = &x509.Certificate{SerialNumber: big.NewInt(a.next), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	var err error
	if a.der, err = x509.CreateCertificate(rand.Reader, a.cert, a.cert, &a.key.PublicKey, a.key); err != nil {
		t.Fatal(err)
	}
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// folder makes a folder of certificates as qemu-nbd, nbdkit and libnbd have them, for a
// role of "server" or "client".
func (a *authority) folder(dir, role, commonName string) string {
	a.t.Helper()
	a.next++
	key := newKey(a.t)
	c := &x509.Certificate{SerialNumber: big.NewInt(a.next), Subject: pkix.Name{CommonName: commonName}, NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if role == "client" {
		c.IPAddresses, c.ExtKeyUsage = nil, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		a.t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"ca-cert.pem":      {Type: "CERTIFICATE", Bytes: a.der},
		role + "-cert.pem": {Type: "CERTIFICATE", Bytes: der},
		role + "-key.pem":  {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	return dir
}

// With --nbd-tls-require clients over TCP need TLS and a certificate; a disk with a list
// is for the names on it. Unix sockets do without: their permissions rule.
func TestTLSDecidesWhoUsesADiskOverTCP(t *testing.T) {
	need(t, "nbdinfo")
	dir := home(t)
	a := newAuthority(t)
	certs := a.folder(dir+"/certs", "server", "keelblock")
	web, db := a.folder(dir+"/web", "client", "web-host"), a.folder(dir+"/db", "client", "db-host")
	stranger := newAuthority(t).folder(dir+"/stranger", "client", "db-host")
	line := must(t, dir, "keelblock", "serve", "-d", "--nbd-listen", "tcp:127.0.0.1:0", "--nbd-tls", certs, "--nbd-tls-require")
	m := regexp.MustCompile(` nbd=tcp:(127\.0\.0\.1:\d+) nbd-tls=required$`).FindStringSubmatch(line)
	if m == nil {
		t.Fatalf("ready line %q does not say that TLS is required", line)
	}
	if status := must(t, dir, "keelblock", "status"); !strings.Contains(status, "(TLS required over TCP)") {
		t.Errorf("status does not say that TLS is required:\n%s", status)
	}
	must(t, dir, "keelblock", "disk", "create", "any0", "--size", "1MiB")
	must(t, dir, "keelblock", "disk", "create", "db0", "--size", "1MiB")
	must(t, dir, "keelblock", "disk", "edit", "db0", "--allow", "db-host")
	must(t, dir, "keelblock", "machine", "create", "db", "--disk", "db0")
	must(t, dir, "keelblock", "backup", "db")
	must(t, dir, "keelblock", "export", "db@latest", "--as", "look")
	size := func(uri string) bool {
		t.Helper()
		out, _, status := command(t, dir, "nbdinfo", "--size", uri)
		return status == 0 && out == "1048576\n"
	}
	for _, x := range []struct {
		disk, certs string
		want        bool
	}{
		{"any0", web, true}, {"any0", db, true}, {"any0", stranger, false}, {"any0", "", false},
		{"look", db, true}, {"look", web, false}, {"look", "", false}, // a point of db0
		{"db0", db, true}, {"db0", web, false}, {"db0", stranger, false}, {"db0", "", false},
	} {
		uri := "nbd://" + m[1] + "/" + x.disk
		if x.certs != "" {
			uri = "nbds://" + m[1] + "/" + x.disk + "?tls-certificates=" + x.certs
		}
		if got := size(uri); got != x.want {
			t.Errorf("%s: usable %v, want %v", uri, got, x.want)
		}
		if !size("nbd+unix:///" + x.disk + "?socket=" + dir + "/d/run/nbd.sock") {
			t.Errorf("disk %s cannot be used over the unix socket", x.disk)
		}
	}
	must(t, dir, "keelblock", "disk", "edit", "db0", "--disallow", "db-host")
	if !size("nbds://" + m[1] + "/db0?tls-certificates=" + web) {
		t.Error("a disk whose list is empty again is not for all")
	}
	must(t, dir, "keelblock", "stop")
}

// Certificates that cannot be used end the start, and say so. TLS that is offered leaves
// clients without it alone.
func TestTLSAtTheStart(t *testing.T) {
	need(t, "nbdinfo")
	dir := home(t)
	if _, stderr, status := command(t, dir, "keelblock", "serve", "-d", "--nbd-tls-require"); status != 2 || !strings.Contains(stderr, "nbd-tls-require") {
		t.Errorf("--nbd-tls-require alone: status %d, %s", status, stderr)
	}
	if _, stderr, status := command(t, dir, "keelblock", "serve", "-d", "--nbd-tls", dir); status != 4 || !strings.Contains(stderr, "server-cert.pem") {
		t.Errorf("--nbd-tls of an empty folder: status %d, %s", status, stderr)
	}
	certs := newAuthority(t).folder(dir+"/certs", "server", "keelblock")
	if err := os.WriteFile(dir+"/kb.toml", []byte("nbd-listen = [\"tcp:127.0.0.1:0\"]\nnbd-tls = \""+certs+"\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	line := must(t, dir, "keelblock", "serve", "-d", "--config", dir+"/kb.toml")
	m := regexp.MustCompile(` nbd=tcp:(127\.0\.0\.1:\d+) nbd-tls=offered$`).FindStringSubmatch(line)
	if m == nil {
		t.Fatalf("ready line %q does not say that TLS is offered", line)
	}
	must(t, dir, "keelblock", "disk", "create", "any0", "--size", "1MiB")
	must(t, dir, "keelblock", "disk", "create", "db0", "--size", "1MiB")
	must(t, dir, "keelblock", "disk", "edit", "db0", "--allow", "db-host")
	if got := must(t, dir, "nbdinfo", "--size", "nbd://"+m[1]+"/any0"); got != "1048576" {
		t.Errorf("size %q without TLS", got)
	}
	if _, stderr, status := command(t, dir, "nbdinfo", "--size", "nbd://"+m[1]+"/db0"); status == 0 {
		t.Errorf("a disk for db-host is open without TLS: %s", stderr)
	}
	must(t, dir, "keelblock", "stop")
}
