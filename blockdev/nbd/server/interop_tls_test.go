package server_test

import (
	"bytes"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

// failing runs a tool that must fail, and returns what it says.
func failing(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is not installed", name)
	}
	out, err := exec.CommandContext(within(t, 60*time.Second), name, args...).CombinedOutput()
	if err == nil {
		t.Errorf("%s %s succeeded:\n%s", name, strings.Join(args, " "), out)
	}
	return string(out)
}

func nbds(addr, export, dir string) string {
	return "nbds://" + addr + "/" + export + "?tls-certificates=" + url.QueryEscape(dir)
}

func qemuOptions(addr, export string) string {
	host, port, _ := net.SplitHostPort(addr)
	return "driver=nbd,server.type=inet,server.host=" + host + ",server.port=" + port + ",tls-creds=tls0,export=" + export
}

func qemuCreds(dir string) string { return "tls-creds-x509,id=tls0,endpoint=client,dir=" + dir }

// Two clients with certificates, each with one disk of two.
func TestInteropTLSAccess(t *testing.T) {
	a := newAuthority(t)
	s := start(t, server.Options{TLS: a.serverTLS(), RequireTLS: true, AllowList: true, Authorize: access})
	for _, name := range []string{"anna", "bert"} {
		s.add(t, server.Export{Name: "disk-of-" + name, Device: newDisk(t, t.TempDir(), 1<<20)})
	}
	addr := s.tcp(t)
	anna, _ := a.issue("client", "anna")
	bert, _ := a.issue("client", "bert")
	for _, x := range []struct{ dir, mine, others string }{{anna, "disk-of-anna", "disk-of-bert"}, {bert, "disk-of-bert", "disk-of-anna"}} {
		if out := tool(t, "nbdinfo", nbds(addr, x.mine, x.dir)); !strings.Contains(out, "protocol: newstyle-fixed with TLS, using structured packets") {
			t.Errorf("nbdinfo prints\n%s", out)
		}
		list := tool(t, "nbdinfo", "--list", nbds(addr, "", x.dir))
		if !strings.Contains(list, `export="`+x.mine+`"`) || strings.Contains(list, x.others) {
			t.Errorf("nbdinfo --list prints\n%s", list)
		}
		if out := failing(t, "nbdinfo", nbds(addr, x.others, x.dir)); !strings.Contains(out, "server replied with error to opt_go") {
			t.Errorf("nbdinfo of another's disk prints\n%s", out)
		}
		tool(t, "qemu-img", "info", "--object", qemuCreds(x.dir), "--image-opts", qemuOptions(addr, x.mine))
		if out := failing(t, "qemu-img", "info", "--object", qemuCreds(x.dir), "--image-opts", qemuOptions(addr, x.others)); !strings.Contains(out, "may not use it") {
			t.Errorf("qemu-img info of another's disk prints\n%s", out)
		}
		tool(t, "nbdsh", "-c", `
import nbd
def connect(name, go):
    h = nbd.NBD()
    h.set_uri_allow_local_file(True)
    h.set_opt_mode(True)
    h.set_export_name(name)
    h.connect_uri("`+nbds(addr, "", x.dir)+`")
    assert h.get_tls_negotiated()
    h.set_export_name(name)
    h.opt_go() if go else h.opt_info()
    return h
h = connect("`+x.mine+`", True)
h.pwrite(b"x" * 512, 0)
assert h.pread(512, 0) == b"x" * 512
connect("`+x.mine+`", False)
for go in (True, False):
    try:
        connect("`+x.others+`", go)
    except nbd.Error as e:
        assert "server replied with error" in str(e), e
    else:
        raise AssertionError("another's disk is open")
`)
	}
	plain := "nbd://" + addr + "/disk-of-anna"
	if out := failing(t, "nbdinfo", plain); !strings.Contains(out, "TLS") {
		t.Errorf("nbdinfo without TLS prints\n%s", out)
	}
	failing(t, "qemu-img", "info", plain)
	stranger, _ := newAuthority(t).issue("client", "anna")
	failing(t, "nbdinfo", nbds(addr, "disk-of-anna", stranger))
}

func TestInteropTLSCopies(t *testing.T) {
	a := newAuthority(t)
	dir, _ := a.issue("client", "client")
	path, content := image(t)
	s := start(t, server.Options{TLS: a.serverTLS(), RequireTLS: true})
	s.add(t, server.Export{Name: "disk", Device: newDisk(t, t.TempDir(), int64(len(content)))})
	addr := s.tcp(t)
	uri := nbds(addr, "disk", dir)
	tool(t, "nbdcopy", "--connections=4", "--flush", path, uri)
	back := filepath.Join(t.TempDir(), "back.raw")
	tool(t, "nbdcopy", "--connections=4", uri, back)
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, content) {
		t.Errorf("nbdcopy there and back has changed the image (%v)", err)
	}
	qcow := filepath.Join(t.TempDir(), "back.qcow2")
	tool(t, "qemu-img", "convert", "--object", qemuCreds(dir), "-O", "qcow2", "-m", "8", "-W", "--image-opts", qemuOptions(addr, "disk"), qcow)
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", path, qcow)
	socket := "nbds+unix:///disk?socket=" + url.QueryEscape(s.socket) + "&tls-certificates=" + url.QueryEscape(dir) + "&tls-hostname=localhost"
	if out := tool(t, "nbdinfo", "--map", socket); out == "" {
		t.Error("nbdinfo --map prints nothing over a unix socket with TLS")
	}
}
