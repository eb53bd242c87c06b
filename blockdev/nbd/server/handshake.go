package server

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/keelblock/keelblock/blockdev/nbd"
)

// maxOptionData is the longest data of an option that is looked at: it must hold
// an export name and a few queries. Longer data is dropped as it comes, and the
// option is refused.
const maxOptionData = 7 << 10

var (
	// errAborted: the client has ended the handshake with NBD_OPT_ABORT.
	errAborted = errors.New("the client has aborted the handshake")
	// errNoSuchExport: NBD_OPT_EXPORT_NAME knows no error reply.
	errNoSuchExport = errors.New("the client asked for an export that it cannot have")
)

// optionError refuses an option.
type optionError struct {
	reply uint32
	text  string
}

func (e *optionError) Error() string { return e.text }

// handshake is the negotiation of one connection ("Newstyle negotiation").
type handshake struct {
	c        *conn
	noZeroes bool
	// fixed: the client speaks the fixed newstyle, which TLS needs.
	fixed bool
	// deadline is the end of the time that the client has for all of it.
	deadline time.Time
	// out gathers the replies to one option.
	out []byte
}

// negotiate runs the handshake. When it returns nil the connection is attached to
// an export and the transmission phase has begun.
func (c *conn) negotiate() error {
	h := handshake{c: c, deadline: time.Now().Add(c.srv.o.HandshakeTimeout)}
	c.sock.setFixedDeadline(h.deadline)
	h.out = nbd.AppendGreeting(h.out, nbd.FlagFixedNewstyle|nbd.FlagNoZeroes)
	if err := h.flush(); err != nil {
		return err
	}
	flags, err := h.take(4)
	if err != nil {
		return err
	}
	clientFlags := binary.BigEndian.Uint32(flags)
	if unknown := clientFlags &^ (nbd.FlagCFixedNewstyle | nbd.FlagCNoZeroes); unknown != 0 {
		return fmt.Errorf("the client sets handshake flags %#x, which are unknown", unknown)
	}
	h.noZeroes, h.fixed = clientFlags&nbd.FlagCNoZeroes != 0, clientFlags&nbd.FlagCFixedNewstyle != 0
	for done := false; !done; {
		if done, err = h.option(); err != nil {
			return err
		}
	}
	c.sock.clearFixedDeadline()
	c.in.grow()
	return nil
}

// option reads an option and answers it. done ends the handshake.
func (h *handshake) option() (done bool, err error) {
	head, err := h.take(nbd.OptionSize)
	if err != nil {
		return false, err
	}
	option, length, ok := nbd.ParseOption(head)
	if !ok {
		return false, errors.New("the client sends something that is no option")
	}
	if c := h.c; c.srv.o.RequireTLS && c.peer.Network != "unix" && !c.peer.TLS && option != nbd.OptStartTLS && option != nbd.OptAbort {
		return false, h.demandTLS(option, int64(length))
	}
	if length > maxOptionData {
		if err := h.discard(int64(length)); err != nil {
			return false, err
		}
		if option == nbd.OptExportName {
			return false, errNoSuchExport
		}
		return false, h.refuse(option, &optionError{nbd.RepErrTooBig, fmt.Sprintf("%d bytes of data are more than %d", length, maxOptionData)})
	}
	data, err := h.take(int(length))
	if err != nil {
		return false, err
	}
	if done, err = h.answer(option, data); err == nil {
		return done, h.flush()
	}
	var oe *optionError
	if errors.As(err, &oe) {
		return false, h.refuse(option, oe)
	}
	return false, err
}

// answer gathers the replies to an option in h.out. data is good until it returns.
func (h *handshake) answer(option uint32, data []byte) (done bool, err error) {
	switch option {
	case nbd.OptExportName:
		return true, h.exportName(data)
	case nbd.OptAbort:
		h.reply(option, nbd.RepAck, nil)
		h.flush() // the client may be gone already
		return false, errAborted
	case nbd.OptList:
		return false, h.list(data)
	case nbd.OptInfo, nbd.OptGo:
		return option == nbd.OptGo, h.info(option, data)
	case nbd.OptStartTLS:
		return false, h.startTLS(data)
	case nbd.OptStructuredReply:
		return false, h.structuredReply(data)
	case nbd.OptExtendedHeaders:
		return false, h.extendedHeaders(data)
	case nbd.OptListMetaContext, nbd.OptSetMetaContext:
		return false, h.metaContext(option, data)
	}
	return false, &optionError{nbd.RepErrUnsup, fmt.Sprintf("option %d is not supported", option)}
}

// exportName answers the oldest way to choose an export. It knows no errors: a
// name that cannot be had ends the connection.
func (h *handshake) exportName(data []byte) error {
	c := h.c
	if c.extended {
		return errors.New("the client chooses an export by NBD_OPT_EXPORT_NAME after NBD_OPT_EXTENDED_HEADERS")
	}
	e, err := c.srv.find(c.peer, string(data))
	if err == nil {
		err = c.srv.attach(c, e)
	}
	if err != nil {
		return fmt.Errorf("%w: %v", errNoSuchExport, err)
	}
	h.out = binary.BigEndian.AppendUint64(h.out, uint64(c.size))
	h.out = binary.BigEndian.AppendUint16(h.out, c.transmissionFlags(e))
	if !h.noZeroes {
		h.out = append(h.out, make([]byte, nbd.ExportReplyZeros)...)
	}
	c.keepContexts(e)
	return nil
}

// structuredReply answers NBD_OPT_STRUCTURED_REPLY.
func (h *handshake) structuredReply(data []byte) error {
	switch {
	case len(data) > 0:
		return &optionError{nbd.RepErrInvalid, "NBD_OPT_STRUCTURED_REPLY takes no data"}
	case h.c.extended:
		return &optionError{nbd.RepErrExtHeaderReqd, "extended headers are negotiated, which have structured replies in them"}
	}
	h.c.structured = true
	h.reply(nbd.OptStructuredReply, nbd.RepAck, nil)
	return nil
}

// extendedHeaders answers NBD_OPT_EXTENDED_HEADERS. There is no way back.
func (h *handshake) extendedHeaders(data []byte) error {
	switch {
	case len(data) > 0:
		return &optionError{nbd.RepErrInvalid, "NBD_OPT_EXTENDED_HEADERS takes no data"}
	case h.c.extended:
		return &optionError{nbd.RepErrInvalid, "extended headers are negotiated already"}
	}
	h.c.structured, h.c.extended = true, true
	h.reply(nbd.OptExtendedHeaders, nbd.RepAck, nil)
	return nil
}

// keepContexts drops the metadata contexts unless they are those of the export that
// the connection is for.
func (c *conn) keepContexts(e *export) {
	if c.contexts.of != e {
		c.contexts.close()
	}
}

func (h *handshake) list(data []byte) error {
	c := h.c
	if len(data) > 0 {
		return &optionError{nbd.RepErrInvalid, "NBD_OPT_LIST takes no data"}
	}
	if c.peer.Network != "unix" && !c.srv.o.AllowList {
		return &optionError{nbd.RepErrPolicy, "exports are not listed on this network"}
	}
	for _, x := range c.srv.names(c.peer) {
		h.reply(nbd.OptList, nbd.RepServer, nbd.AppendServer(nil, x.Name, x.Description))
		if err := h.flushSome(); err != nil {
			return err
		}
	}
	h.reply(nbd.OptList, nbd.RepAck, nil)
	return nil
}

// info answers NBD_OPT_INFO, and NBD_OPT_GO, which also attaches.
func (h *handshake) info(option uint32, data []byte) error {
	c := h.c
	r, err := nbd.ParseInfoRequest(data)
	if err != nil {
		return &optionError{nbd.RepErrInvalid, err.Error()}
	}
	e, err := c.srv.find(c.peer, r.Name)
	if err != nil {
		return err
	}
	size := e.Device.Size()
	if option == nbd.OptGo {
		if err := c.srv.attach(c, e); err != nil {
			return err
		}
		size = c.size
		c.keepContexts(e)
	}
	h.reply(option, nbd.RepInfo, nbd.AppendInfoExport(nil, uint64(size), c.transmissionFlags(e)))
	h.reply(option, nbd.RepInfo, nbd.AppendInfoBlockSize(nil, nbd.BlockSizes{Minimum: nbd.MinBlockSize, Preferred: nbd.PreferredBlockSize, Maximum: nbd.MaxBlockSize}))
	for _, i := range r.Infos {
		switch i {
		case nbd.InfoName:
			h.reply(option, nbd.RepInfo, nbd.AppendInfoText(nil, i, e.Name))
		case nbd.InfoDescription:
			if e.Description != "" {
				h.reply(option, nbd.RepInfo, nbd.AppendInfoText(nil, i, e.Description))
			}
		}
	}
	h.reply(option, nbd.RepAck, nil)
	return nil
}

// transmissionFlags tell what the export can do.
func (c *conn) transmissionFlags(e *export) uint16 {
	flags := nbd.FlagHasFlags | nbd.FlagSendFlush | nbd.FlagSendCache
	if !e.Exclusive || e.ReadOnly {
		flags |= nbd.FlagCanMultiConn
	}
	if c.structured {
		flags |= nbd.FlagSendDF
	}
	if c.extended && c.contexts.of == e && len(c.contexts.list) > 0 {
		flags |= nbd.FlagBlockStatusPayload
	}
	if e.ReadOnly {
		return flags | nbd.FlagReadOnly
	}
	flags |= nbd.FlagSendFUA | nbd.FlagSendWriteZeroes
	if e.trimmer != nil {
		flags |= nbd.FlagSendTrim
	}
	if e.fast != nil {
		flags |= nbd.FlagSendFastZero
	}
	return flags
}

func (h *handshake) reply(option, reply uint32, data []byte) {
	h.out = nbd.AppendOptionReply(h.out, option, reply, data)
}

// refuse drops what was gathered and answers with an error and its text.
func (h *handshake) refuse(option uint32, e *optionError) error {
	h.out = h.out[:0]
	h.reply(option, e.reply, []byte(e.text[:min(len(e.text), nbd.MaxNameLength)]))
	return h.flush()
}

func (h *handshake) flush() error {
	if len(h.out) == 0 {
		return nil
	}
	err := h.c.sock.write([][]byte{h.out}, false)
	h.out = h.out[:0]
	return err
}

// flushSome flushes once much is gathered.
func (h *handshake) flushSome() error {
	if len(h.out) <= 64<<10 {
		return nil
	}
	return h.flush()
}

// take returns the next n bytes, n <= maxOptionData. They are good until the next
// call.
func (h *handshake) take(n int) ([]byte, error) {
	in := &h.c.in
	for in.buffered() < n {
		if err := in.fill(n, true); err != nil {
			return nil, err
		}
	}
	p := in.peek(n)
	in.skip(n)
	return p, nil
}

func (h *handshake) discard(n int64) error {
	in := &h.c.in
	for n > 0 {
		if in.buffered() == 0 {
			if err := in.fill(1, true); err != nil {
				return err
			}
		}
		k := min(n, int64(in.buffered()))
		in.skip(int(k))
		n -= k
	}
	return nil
}
