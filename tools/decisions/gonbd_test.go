package decisions

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/pojntfx/go-nbd/pkg/backend"
	"github.com/pojntfx/go-nbd/pkg/protocol"
	"github.com/pojntfx/go-nbd/pkg/server"
)

// NBD_CMD_TRIM of the protocol document, which go-nbd does not define.
const cmdTrim = 4

// The server of go-nbd v0.3.2 answers TRIM, whose header is all there is of it, only
// after it has read as many bytes of the client's next requests as were to be trimmed.
func TestGoNBDHangsOnTrim(t *testing.T) {
	client, srv := net.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- server.Handle(srv, []*server.Export{{Name: "disk", Backend: backend.NewMemoryBackend(make([]byte, 1<<20))}}, nil)
	}()
	t.Cleanup(func() {
		if err := errors.Join(client.Close(), srv.Close()); err != nil {
			t.Error(err)
		}
		<-ended // however it ended
	})
	deadline(t, client, 10*time.Second)
	negotiate(t, client)

	const length = 4096
	send(t, client, protocol.TransmissionRequestHeader{RequestMagic: protocol.TRANSMISSION_MAGIC_REQUEST, Type: cmdTrim, Handle: 7, Length: length})
	deadline(t, client, 500*time.Millisecond)
	var reply protocol.TransmissionReplyHeader
	err := binary.Read(client, binary.BigEndian, &reply)
	if err == nil {
		t.Fatalf("the decision falls: go-nbd's server answered TRIM (error %d): see design of the NBD server, and whether its server can be used", reply.Error)
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the decision falls, or another fault came: read after TRIM: %v", err)
	}
	// It is the payload that it waits for: 4096 bytes later it answers.
	deadline(t, client, 5*time.Second)
	if _, err := client.Write(make([]byte, length)); err != nil {
		t.Fatalf("write what the server waits for: %v", err)
	}
	if err := binary.Read(client, binary.BigEndian, &reply); err != nil || reply.Handle != 7 {
		t.Errorf("the server did not wait for a payload: reply %+v, %v", reply, err)
	}
	send(t, client, protocol.TransmissionRequestHeader{RequestMagic: protocol.TRANSMISSION_MAGIC_REQUEST, Type: protocol.TRANSMISSION_TYPE_REQUEST_DISC})
}

func deadline(t *testing.T, c net.Conn, d time.Duration) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(d)); err != nil {
		t.Fatal(err)
	}
}

func send(t *testing.T, c net.Conn, v any) {
	t.Helper()
	if err := binary.Write(c, binary.BigEndian, v); err != nil {
		t.Fatalf("send %T: %v", v, err)
	}
}

// negotiate goes through the fixed newstyle handshake up to the transmission phase.
func negotiate(t *testing.T, c net.Conn) {
	t.Helper()
	var hello protocol.NegotiationNewstyleHeader
	if err := binary.Read(c, binary.BigEndian, &hello); err != nil {
		t.Fatalf("handshake: %v", err)
	}
	send(t, c, uint32(1)) // client flags: fixed newstyle
	const name = "disk"
	send(t, c, protocol.NegotiationOptionHeader{OptionMagic: protocol.NEGOTIATION_MAGIC_OPTION, ID: protocol.NEGOTIATION_ID_OPTION_GO, Length: 4 + uint32(len(name)) + 2})
	send(t, c, uint32(len(name)))
	send(t, c, []byte(name))
	send(t, c, uint16(0)) // no information requests
	for {
		var reply protocol.NegotiationReplyHeader
		if err := binary.Read(c, binary.BigEndian, &reply); err != nil {
			t.Fatalf("read option reply: %v", err)
		}
		if _, err := io.CopyN(io.Discard, c, int64(reply.Length)); err != nil {
			t.Fatalf("read option reply: %v", err)
		}
		switch reply.Type {
		case protocol.NEGOTIATION_TYPE_REPLY_ACK:
			return
		case protocol.NEGOTIATION_TYPE_REPLY_INFO:
		default:
			t.Fatalf("option reply %#x", reply.Type)
		}
	}
}
