package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/cbt"
	"github.com/keelblock/keelblock/blockdev/localdisk"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

// diskBytes is the size of an export. It stays in memory.
const diskBytes = 256 << 20

// peer is one server that is being measured.
type peer struct {
	name  string
	file  string
	pid   int
	loads []*load
}

// The servers of a stage, in this order.
const (
	tracked = iota
	raw
	nbdkit
	servers
)

var serverNames = [servers]string{"tracked", "raw", "nbdkit"}

// places are the folders and certificates that stages use.
type places struct {
	memory string // on tmpfs
	disk   string // on a disk's file system
	certs  string // ca-cert.pem, server-cert.pem, server-key.pem
	client *tls.Config
}

// newPlaces makes them.
func newPlaces(diskDir string) (p places, remove func(), err error) {
	remove = func() {
		os.RemoveAll(p.memory)
		os.RemoveAll(p.disk)
	}
	if p.memory, err = os.MkdirTemp("/dev/shm", "keelblock-nbdslices-"); err != nil {
		return p, remove, err
	}
	if p.disk, err = os.MkdirTemp(diskDir, "keelblock-nbdslices-"); err != nil {
		return p, remove, err
	}
	p.certs = filepath.Join(p.memory, "certs")
	p.client, err = writeCertificates(p.certs)
	return p, remove, err
}

// start starts the three servers of a stage, each over a file of the same content, and
// connects to them. stop ends them.
func (p places) start(ctx context.Context, st stage) (peers [servers]*peer, stop func(), err error) {
	var running []*process
	end := func() {
		for _, p := range peers {
			if p != nil {
				for _, l := range p.loads {
					l.close() // nbdkit waits for its clients to leave
				}
			}
		}
		for _, c := range running {
			c.stop()
		}
	}
	defer func() {
		if err != nil {
			end()
		}
	}()
	dir := p.memory
	if st.onDisk {
		dir = p.disk
	}
	for i, name := range serverNames {
		q := &peer{name: name, file: filepath.Join(dir, name+".raw")}
		if err := fill(q.file); err != nil {
			return peers, nil, err
		}
		a := address{network: st.network, at: filepath.Join(p.memory, name+".sock")}
		if st.network == "tcp" {
			if a.at, err = freePort(); err != nil {
				return peers, nil, err
			}
		}
		os.Remove(a.at) // which nbdkit leaves behind
		certs := ""
		if st.tls {
			certs, a.tls = p.certs, p.client
		}
		var c *process
		if i == nbdkit {
			c, err = startProcess(nbdkitCommand(ctx, a, certs, q.file))
		} else {
			c, err = startServer(ctx, serveOptions{q.file, i == tracked, p.memory, certs, a.network, a.at})
		}
		if err != nil {
			return peers, nil, err
		}
		running = append(running, c)
		q.pid = c.cmd.Process.Pid
		peers[i] = q
		for range st.conns {
			l, err := connect(a, diskBytes)
			if err != nil {
				return peers, nil, fmt.Errorf("%s: %w", name, err)
			}
			q.loads = append(q.loads, l)
		}
	}
	return peers, end, nil
}

// process is a server that runs.
type process struct{ cmd *exec.Cmd }

func startProcess(cmd *exec.Cmd) (*process, error) {
	cmd.Stderr = os.Stderr
	if _, err := cmd.StdinPipe(); err != nil { // held open until we end
		return nil, err
	}
	return &process{cmd}, cmd.Start()
}

// stop ends it, and waits.
func (p *process) stop() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	late := time.AfterFunc(5*time.Second, func() { p.cmd.Process.Kill() })
	p.cmd.Wait()
	late.Stop()
}

// startServer starts our server in a process of its own.
func startServer(ctx context.Context, o serveOptions) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return startProcess(exec.CommandContext(ctx, self, "-serve", o.file, "-track="+strconv.FormatBool(o.track), "-maps", o.maps,
		"-certs", o.certs, o.network, o.at))
}

func nbdkitCommand(ctx context.Context, a address, certs, file string) *exec.Cmd {
	args := []string{"--foreground", "--exit-with-parent"}
	if a.network == "unix" {
		args = append(args, "--unix", a.at)
	} else {
		host, port, _ := net.SplitHostPort(a.at)
		args = append(args, "--ipaddr", host, "--port", port)
	}
	if certs != "" {
		args = append(args, "--tls=require", "--tls-verify-peer", "--tls-certificates="+certs)
	}
	return exec.CommandContext(ctx, "nbdkit", append(args, "file", file)...)
}

// freePort is a port that was free a moment ago.
func freePort() (string, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// fill makes the file, of content without zeros and without anything that repeats, and
// brings it into the page cache.
func fill(file string) error {
	if s, err := os.Stat(file); err == nil && s.Size() == diskBytes { // of an earlier start
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, make([]byte, 1<<20))
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	p := make([]byte, 1<<20)
	x := uint64(88172645463325252)
	for range diskBytes / len(p) {
		for i := 0; i < len(p); i += 8 {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
			for j := range 8 {
				p[i+j] = byte(x >> (8 * j))
			}
		}
		if _, err := f.Write(p); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return f.Close()
}

// serveOptions are those of our server in a process of its own.
type serveOptions struct {
	file        string
	track       bool
	maps, certs string
	network, at string
}

// serve is our server, in the process that start starts. Its standard input ends with
// that of its parent.
func serve(ctx context.Context, o serveOptions) error {
	runtime.GOMAXPROCS(2 * runtime.GOMAXPROCS(0)) // as `keelblock serve` has it
	d, err := o.open()
	if err != nil {
		return err
	}
	defer d.Close()
	var so server.Options
	if o.certs != "" {
		if so.TLS, err = server.LoadTLS(o.certs); err != nil {
			return err
		}
		so.RequireTLS = true
	}
	s := server.New(so)
	if err := s.Add(server.Export{Device: d}); err != nil {
		return err
	}
	l, err := net.Listen(o.network, o.at)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		os.Stdin.Read(make([]byte, 1)) // ends with the parent
		cancel()
	}()
	if err := s.Serve(ctx, l); err != nil {
		return err
	}
	return s.Shutdown(context.Background())
}

// open opens the file as the daemon does, or without its tracker.
func (o serveOptions) open() (blockdev.Device, error) {
	d, err := localdisk.Open(o.file, localdisk.Options{})
	if err != nil || !o.track {
		return d, err
	}
	t, err := cbt.Open(d, cbt.NewClock(), cbt.Options{DiskID: "slices", MapPath: filepath.Join(o.maps, "slices.map"), SavePath: o.file + ".saved",
		IntentPath: o.file + ".intent"})
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return t, nil
}

// writeCertificates makes an authority, and certificates of the server (in dir, under
// the names that nbdkit and our server look for) and of the client.
func writeCertificates(dir string) (*tls.Config, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "nbdslices"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if err := writeCertificate(dir, "ca", ca, ca, caKey, caKey); err != nil {
		return nil, err
	}
	for i, name := range []string{"server", "client"} {
		c := &x509.Certificate{SerialNumber: big.NewInt(int64(2 + i)), Subject: pkix.Name{CommonName: name}, DNSNames: []string{"localhost"},
			KeyUsage: x509.KeyUsageDigitalSignature, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		if err := writeCertificate(dir, name, c, ca, key, caKey); err != nil {
			return nil, err
		}
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "client-cert.pem"), filepath.Join(dir, "client-key.pem"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	text, err := os.ReadFile(filepath.Join(dir, "ca-cert.pem"))
	if err != nil {
		return nil, err
	}
	roots.AppendCertsFromPEM(text)
	return &tls.Config{RootCAs: roots, ServerName: "localhost", Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}, nil
}

func writeCertificate(dir, name string, c, ca *x509.Certificate, key, caKey *ecdsa.PrivateKey) error {
	der, err := x509.CreateCertificate(rand.Reader, c, ca, &key.PublicKey, caKey)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, name+"-cert.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600),
		os.WriteFile(filepath.Join(dir, name+"-key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600))
}
