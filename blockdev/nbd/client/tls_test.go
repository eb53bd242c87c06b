package client_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/blockdev/nbd"
	"github.com/keelblock/keelblock/blockdev/nbd/client"
)

// Servers that spoil STARTTLS: the client never goes on in plain text, and takes
// nothing that came in plain text for encrypted.
func TestSTARTTLSThatGoesWrongEndsTheConnection(t *testing.T) {
	begin := func(s script) {
		s.put(nbd.AppendGreeting(nil, nbd.FlagFixedNewstyle|nbd.FlagNoZeroes))
		s.take(4 + nbd.OptionSize)
	}
	ack := nbd.AppendOptionReply(nil, nbd.OptStartTLS, nbd.RepAck, nil)
	for want, answer := range map[string]func(s script){
		"it does not know the option": func(s script) {
			begin(s)
			s.put(nbd.AppendOptionReply(nil, nbd.OptStartTLS, nbd.RepErrUnsup, nil))
			if s.take(1)[0] != 0 {
				t.Error("the client goes on without TLS")
			}
		},
		"the server sends 20 bytes before the TLS handshake": func(s script) {
			begin(s)
			s.put(append(ack, nbd.AppendOptionReply(nil, nbd.OptStructuredReply, nbd.RepAck, nil)...))
			s.take(1)
		},
		"TLS handshake": func(s script) { begin(s); s.put(ack); s.take(5); s.put([]byte("no TLS")) },
	} {
		c, err := tryDial(strings.Replace(scripted(t, answer), "nbd+unix", "nbds+unix", 1))
		if err == nil {
			c.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Dial: %v, want an error with %q", err, want)
		}
	}
}

func TestLoadTLSNamesTheFileThatIsWrong(t *testing.T) {
	dir := t.TempDir()
	check := func(want string) {
		t.Helper()
		if _, err := client.LoadTLS(dir); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), dir) {
			t.Errorf("LoadTLS: %v, want an error with %q and the folder", err, want)
		}
	}
	write := func(name string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("hello"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	check("read ca-cert.pem: no such file")
	write("ca-cert.pem")
	check("ca-cert.pem: no certificate")
	if _, err := tryDial("nbds+unix:///x?socket=/none&tls-certificates=" + dir); err == nil || !strings.Contains(err.Error(), "ca-cert.pem") {
		t.Errorf("Dial with a broken folder: %v", err)
	}
}
