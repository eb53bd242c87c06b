package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
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

	"github.com/keelblock/keelblock/blockdev/cbt"
	"github.com/keelblock/keelblock/blockdev/localdisk"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

// diskBytes is the size of an export. It stays in memory.
const diskBytes = 256 << 20

// peer is one side that is being measured.
type peer struct {
	name  string
	pid   int
	loads []*load
}

// The sides of a stage, in this order. All are exports of one file: two files of the same
// content differ in where their pages lie, for as long as they exist. The first three
// are exports of one process of ours, so that a start that went well favours none.
const (
	tracked = iota // around the disk, a tracker
	raw            // the disk itself
	control        // once more, to see what a difference between equals looks like
	nbdkit
	sides
)

// Exports of our server.
const (
	exportRaw     = ""
	exportTracked = "tracked"
	exportControl = "control"
)

var (
	sideNames   = [sides]string{"tracked", "raw", "control", "nbdkit"}
	sideExports = [sides]string{exportTracked, exportRaw, exportControl, ""}
)

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

// file is the disk of a stage.
func (p places) file(st stage) string {
	if st.onDisk {
		return filepath.Join(p.disk, "disk.raw")
	}
	return filepath.Join(p.memory, "disk.raw")
}

// start starts the servers of a stage and connects to their exports. stop ends them.
func (p places) start(ctx context.Context, st stage) (peers [sides]*peer, stop func(), err error) {
	var running []*process
	end := func() {
		for _, q := range peers {
			if q != nil {
				for _, l := range q.loads {
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
	file, certs := p.file(st), ""
	if err := prepare(file, st.onDisk); err != nil {
		return peers, nil, err
	}
	var addresses [2]address // ours, nbdkit's
	for i, name := range []string{"ours", "nbdkit"} {
		a := address{network: st.network, at: filepath.Join(p.memory, name+".sock")}
		if st.network == "tcp" {
			if a.at, err = freePort(); err != nil {
				return peers, nil, err
			}
		}
		os.Remove(a.at) // which nbdkit leaves behind
		if st.tls {
			certs, a.tls = p.certs, p.client
		}
		addresses[i] = a
	}
	ours, err := startServer(ctx, serveOptions{file, true, p.memory, certs, st.network, addresses[0].at})
	if err != nil {
		return peers, nil, err
	}
	running = append(running, ours)
	theirs, err := startProcess(nbdkitCommand(ctx, addresses[1], certs, file))
	if err != nil {
		return peers, nil, err
	}
	running = append(running, theirs)
	memory := make([]*buffers, st.conns)
	for i := range memory {
		memory[i] = newBuffers()
	}
	for i, name := range sideNames {
		a, q := addresses[0], &peer{name: name, pid: ours.cmd.Process.Pid}
		if i == nbdkit {
			a, q.pid = addresses[1], theirs.cmd.Process.Pid
		}
		a.export = sideExports[i]
		peers[i] = q
		for k := range st.conns {
			l, err := connectWith(a, diskBytes, memory[k])
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

// prepare makes the file of a stage and brings it into the page cache, into other pages
// with every start.
func prepare(file string, onDisk bool) error {
	if s, err := os.Stat(file); err == nil && onDisk && s.Size() == diskBytes {
		if err := dropCache(file); err != nil {
			return err
		}
		return readAll(file)
	}
	if err := os.RemoveAll(file); err != nil {
		return err
	}
	if err := fill(file); err != nil || !onDisk {
		return err
	}
	// Or the kernel begins to write it in the middle of a row.
	return syncFile(file)
}

func readAll(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, make([]byte, 1<<20))
	return err
}

func syncFile(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// fill makes the file, of content without zeros and without anything that repeats.
func fill(file string) error {
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
			binary.LittleEndian.PutUint64(p[i:], x)
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
	track       bool // also as exportTracked and exportControl
	maps, certs string
	network, at string
}

// serve is our server, in the process that start starts. Its standard input ends with
// that of its parent.
func serve(ctx context.Context, o serveOptions) error {
	runtime.GOMAXPROCS(2 * runtime.GOMAXPROCS(0)) // as `keelblock serve` has it
	exports, err := o.open()
	if err != nil {
		return err
	}
	defer exports[0].Device.Close()
	var so server.Options
	if o.certs != "" {
		if so.TLS, err = server.LoadTLS(o.certs); err != nil {
			return err
		}
		so.RequireTLS = true
	}
	s := server.New(so)
	for _, e := range exports {
		if err := s.Add(e); err != nil {
			return err
		}
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

// open opens the file as the daemon does, or without its tracker. Who closes the first
// Device closes all.
func (o serveOptions) open() ([]server.Export, error) {
	d, err := localdisk.Open(o.file, localdisk.Options{})
	if err != nil || !o.track {
		return []server.Export{{Name: exportRaw, Device: d}}, err
	}
	t, err := cbt.Open(d, cbt.NewClock(), cbt.Options{DiskID: "slices", MapPath: filepath.Join(o.maps, "slices.map"), SavePath: o.file + ".saved",
		IntentPath: o.file + ".intent"})
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return []server.Export{{Name: exportTracked, Device: t}, {Name: exportRaw, Device: d}, {Name: exportControl, Device: d}}, nil
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
