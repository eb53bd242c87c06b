package server

import (
	"encoding/binary"
	"fmt"

	"github.com/keelblock/keelblock/blockdev/nbd"
)

// request is a request of either form: a compact one is widened. In an extended one
// with a payload, Length is what the command is about once payloadOf has been asked.
type request = nbd.ExtendedRequest

// Room for the heads of replies, whatever their form.
const (
	maxReadHead   = nbd.ExtendedOffsetDataSize
	maxOKReply    = nbd.ExtendedChunkSize
	maxErrorReply = 1 << 10 // longer texts are cut
)

// requestSize is how many bytes the head of a request has.
func (c *conn) requestSize() int {
	if c.extended {
		return nbd.ExtendedRequestSize
	}
	return nbd.RequestSize
}

// parseRequest reads the head of a request. ok is false when it is none.
func (c *conn) parseRequest(b []byte) (r request, ok bool) {
	if c.extended {
		return nbd.ParseExtendedRequest(b)
	}
	x, ok := nbd.ParseRequest(b)
	return request{Flags: x.Flags, Type: x.Type, Cookie: x.Cookie, Offset: x.Offset, Length: uint64(x.Length)}, ok
}

// payloadOf is how many bytes follow a request. In the extended form its flags say
// so, else only writes have a payload.
func (c *conn) payloadOf(r request) uint64 {
	if c.extended && r.Flags&nbd.CmdFlagPayloadLength == 0 || !c.extended && r.Type != nbd.CmdWrite {
		return 0
	}
	return r.Length
}

// discardPayload drops the payload of a request that is refused. A payload that no
// client of good will sends ends the connection, as dropping it could take for ever.
func (c *conn) discardPayload(n uint64) error {
	if n > maxDiscard {
		return fmt.Errorf("the client announces a payload of %d bytes", n)
	}
	return noEOF(c.discard(int64(n)))
}

// maxDiscard is the longest payload that is read and dropped: what the compact form
// can announce.
const maxDiscard = 1<<32 - 1

// appendReadHead adds the head of n bytes of data from off.
func (c *conn) appendReadHead(b []byte, r request, flags uint16, off uint64, n int) []byte {
	switch {
	case c.extended:
		return nbd.AppendExtendedOffsetData(b, flags, r.Cookie, r.Offset, off, n)
	case c.structured:
		return nbd.AppendOffsetData(b, flags, r.Cookie, off, n)
	}
	return nbd.AppendSimpleReply(b, r.Cookie, nbd.OK)
}

// appendOK adds the reply to a request that succeeded and has no more data. With
// structured replies a read needs a chunk, others may have the shorter simple reply.
func (c *conn) appendOK(b []byte, r request) []byte {
	switch {
	case c.extended:
		return nbd.AppendExtendedChunk(b, nbd.ExtendedChunk{Flags: nbd.ReplyFlagDone, Type: nbd.ReplyTypeNone, Cookie: r.Cookie, Offset: r.Offset})
	case c.structured && r.Type == nbd.CmdRead:
		return nbd.AppendChunk(b, nbd.Chunk{Flags: nbd.ReplyFlagDone, Type: nbd.ReplyTypeNone, Cookie: r.Cookie})
	}
	return nbd.AppendSimpleReply(b, r.Cookie, nbd.OK)
}

// appendError adds the reply to a request that failed.
func (c *conn) appendError(b []byte, r request, errno nbd.Errno, text string) []byte {
	c.counters.errors.Add(1)
	text = text[:min(len(text), maxErrorReply/2)]
	switch {
	case c.extended:
		return nbd.AppendExtendedError(b, r.Cookie, r.Offset, errno, text)
	case c.structured:
		return nbd.AppendErrorChunk(b, r.Cookie, errno, text)
	}
	return nbd.AppendSimpleReply(b, r.Cookie, errno)
}

// maxDescriptors bounds the extents of one block status chunk; the client asks again
// for the rest. A chunk fits the middling class of buffers.
const maxDescriptors = 4096

// statusSize is the length of a block status chunk of n extents, in the longer form.
func statusSize(n int) int { return nbd.ExtendedChunkSize + 8 + 16*n }

// appendStatus adds the chunk of one metadata context.
func (c *conn) appendStatus(b []byte, r request, flags uint16, id uint32, list []nbd.ExtendedDescriptor) []byte {
	if c.extended {
		return nbd.AppendBlockStatusExt(b, flags, r.Cookie, r.Offset, id, list)
	}
	b = nbd.AppendChunk(b, nbd.Chunk{Flags: flags, Type: nbd.ReplyTypeBlockStatus, Cookie: r.Cookie, Length: uint32(4 + 8*len(list))})
	b = binary.BigEndian.AppendUint32(b, id)
	for _, d := range list {
		b = binary.BigEndian.AppendUint32(b, uint32(d.Length)) // no longer than the request
		b = binary.BigEndian.AppendUint32(b, uint32(d.Flags))
	}
	return b
}
