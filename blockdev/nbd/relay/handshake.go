package relay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"

	"github.com/keelblock/keelblock/blockdev/nbd"
)

// handshake is the negotiation of one client: an option, then its replies.
type handshake struct {
	name           string
	client, server side
}

// run passes options on until the client has chosen the export, or has left.
func (h *handshake) run() (entered bool, err error) {
	greeting, err := h.server.take(nbd.GreetingSize)
	if err != nil {
		return false, err
	}
	if _, err := nbd.ParseGreeting(greeting); err != nil {
		return false, err
	}
	if _, err := h.client.nc.Write(greeting); err != nil {
		return false, gone(err)
	}
	flags, err := h.client.take(4)
	if err != nil {
		return false, gone(err)
	}
	if _, err := h.server.nc.Write(flags); err != nil {
		return false, err
	}
	for {
		entered, over, err := h.option()
		if entered || over || err != nil {
			return entered, err
		}
	}
}

// option passes one option on, and its replies back. over: the handshake ends without
// an export.
func (h *handshake) option() (entered, over bool, err error) {
	head, err := h.client.take(nbd.OptionSize)
	if err != nil {
		return false, true, gone(err)
	}
	option, length, ok := nbd.ParseOption(head)
	if !ok {
		return false, true, errors.New("the client sends something that is no option")
	}
	if length > maxOptionData {
		if _, err := io.CopyN(io.Discard, h.client.nc, int64(length)); err != nil {
			return false, true, gone(err)
		}
		return false, option == nbd.OptExportName, h.refuse(option, nbd.RepErrTooBig, fmt.Sprintf("%d bytes of data are more than %d", length, maxOptionData))
	}
	data, err := h.client.take(int(length))
	if err != nil {
		return false, true, gone(err)
	}
	switch option {
	case nbd.OptStartTLS:
		return false, false, h.refuse(option, nbd.RepErrUnsup, "the server has no certificate")
	case nbd.OptExportName:
		if !h.means(string(data)) {
			return false, true, fmt.Errorf("the client asks for export %q, only %q is here", data, h.name)
		}
		_, err := h.server.nc.Write(nbd.AppendOption(nil, option, []byte(h.name)))
		return err == nil, true, err
	}
	data, name, err := h.rename(option, data)
	if err != nil {
		return false, false, h.refuse(option, nbd.RepErrInvalid, err.Error())
	}
	if !h.means(name) {
		return false, false, h.refuse(option, nbd.RepErrUnknown, fmt.Sprintf("export %q does not exist; this server has only %q", name, h.name))
	}
	if _, err := h.server.nc.Write(nbd.AppendOption(nil, option, data)); err != nil {
		return false, true, err
	}
	last, err := h.replies(option)
	return option == nbd.OptGo && last == nbd.RepAck, option == nbd.OptAbort, err
}

// means reports whether the client means the export by a name.
func (h *handshake) means(name string) bool { return name == "" || name == h.name }

// rename puts the name of the export into the data of an option that carries one, and
// returns the name that was there.
func (h *handshake) rename(option uint32, data []byte) (renamed []byte, name string, err error) {
	switch option {
	case nbd.OptInfo, nbd.OptGo:
		r, err := nbd.ParseInfoRequest(data)
		if err != nil {
			return nil, "", err
		}
		name, r.Name = r.Name, h.name
		return nbd.AppendInfoRequest(nil, r), name, nil
	case nbd.OptListMetaContext, nbd.OptSetMetaContext:
		r, err := nbd.ParseMetaContextRequest(data)
		if err != nil {
			return nil, "", err
		}
		name, r.Name = r.Name, h.name
		return nbd.AppendMetaContextRequest(nil, r), name, nil
	}
	return data, "", nil
}

// replies passes the replies to an option back, of a list only the export's, and
// returns the last.
func (h *handshake) replies(option uint32) (last uint32, err error) {
	for {
		to, reply, data, err := h.server.optionReply()
		if err != nil {
			if option == nbd.OptAbort {
				return nbd.RepAck, nil // the server need not answer it
			}
			return 0, err
		}
		if reply == nbd.RepServer && len(data) >= 4 {
			if n := binary.BigEndian.Uint32(data); uint64(n) > uint64(len(data)-4) || string(data[4:4+n]) != h.name {
				continue
			}
		}
		if _, err := h.client.nc.Write(nbd.AppendOptionReply(nil, to, reply, data)); err != nil {
			return 0, gone(err)
		}
		if reply == nbd.RepAck || reply&nbd.RepFlagError != 0 {
			return reply, nil
		}
	}
}

// refuse answers an option in the server's place.
func (h *handshake) refuse(option, reply uint32, text string) error {
	_, err := h.client.nc.Write(nbd.AppendOptionReply(nil, option, reply, []byte(text)))
	return gone(err)
}

// gone forgives a client that has left.
func gone(err error) error {
	if ended(err) {
		return nil
	}
	return err
}

// ended reports whether an error is only the end of a connection.
func ended(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) ||
		errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}
