package nbd

import (
	"encoding/binary"
	"fmt"
)

// Lengths of the headers of the transmission phase with extended headers, in bytes.
const (
	ExtendedRequestSize = 32
	ExtendedChunkSize   = 32 // of a reply chunk, without its payload
)

// ExtendedRequest is one request message of a connection with extended headers,
// without its payload. A payload follows if Flags has CmdFlagPayloadLength; then
// Length is that of the payload, else of the range.
type ExtendedRequest struct {
	Flags  uint16
	Type   uint16
	Cookie uint64
	Offset uint64
	Length uint64
}

// AppendExtendedRequest adds the 32 bytes of r to b.
func AppendExtendedRequest(b []byte, r ExtendedRequest) []byte {
	b = binary.BigEndian.AppendUint32(b, ExtendedRequestMagic)
	b = binary.BigEndian.AppendUint16(b, r.Flags)
	b = binary.BigEndian.AppendUint16(b, r.Type)
	b = binary.BigEndian.AppendUint64(b, r.Cookie)
	b = binary.BigEndian.AppendUint64(b, r.Offset)
	return binary.BigEndian.AppendUint64(b, r.Length)
}

// ParseExtendedRequest reads a request from the first ExtendedRequestSize bytes of
// b. ok is false when they do not begin with the magic number.
func ParseExtendedRequest(b []byte) (r ExtendedRequest, ok bool) {
	b = b[:ExtendedRequestSize]
	return ExtendedRequest{
		Flags:  binary.BigEndian.Uint16(b[4:]),
		Type:   binary.BigEndian.Uint16(b[6:]),
		Cookie: binary.BigEndian.Uint64(b[8:]),
		Offset: binary.BigEndian.Uint64(b[16:]),
		Length: binary.BigEndian.Uint64(b[24:]),
	}, binary.BigEndian.Uint32(b) == ExtendedRequestMagic
}

// ExtendedChunk is the header of a reply chunk with extended headers. There is no
// other form of reply then. Offset repeats that of the request.
type ExtendedChunk struct {
	Flags  uint16
	Type   uint16
	Cookie uint64
	Offset uint64
	Length uint64
}

// IsError reports whether the chunk says that the request failed.
func (c ExtendedChunk) IsError() bool { return c.Type&(1<<15) != 0 }

// AppendExtendedChunk adds the header of a chunk; Length bytes must follow.
func AppendExtendedChunk(b []byte, c ExtendedChunk) []byte {
	b = binary.BigEndian.AppendUint32(b, ExtendedReplyMagic)
	b = binary.BigEndian.AppendUint16(b, c.Flags)
	b = binary.BigEndian.AppendUint16(b, c.Type)
	b = binary.BigEndian.AppendUint64(b, c.Cookie)
	b = binary.BigEndian.AppendUint64(b, c.Offset)
	return binary.BigEndian.AppendUint64(b, c.Length)
}

// ParseExtendedChunk reads the header of a chunk from the first ExtendedChunkSize
// bytes of b.
func ParseExtendedChunk(b []byte) (c ExtendedChunk, err error) {
	b = b[:ExtendedChunkSize]
	if magic := binary.BigEndian.Uint32(b); magic != ExtendedReplyMagic {
		return c, fmt.Errorf("reply begins with %#08x, which is not the magic number of extended headers", magic)
	}
	return ExtendedChunk{
		Flags:  binary.BigEndian.Uint16(b[4:]),
		Type:   binary.BigEndian.Uint16(b[6:]),
		Cookie: binary.BigEndian.Uint64(b[8:]),
		Offset: binary.BigEndian.Uint64(b[16:]),
		Length: binary.BigEndian.Uint64(b[24:]),
	}, nil
}

// ExtendedOffsetDataSize is what AppendExtendedOffsetData adds, in bytes.
const ExtendedOffsetDataSize = ExtendedChunkSize + 8

// AppendExtendedOffsetData adds the head of an NBD_REPLY_TYPE_OFFSET_DATA chunk in
// the reply to a read at requestOff; n bytes of data, which the disk holds at off,
// must follow.
func AppendExtendedOffsetData(b []byte, flags uint16, cookie, requestOff, off uint64, n int) []byte {
	b = AppendExtendedChunk(b, ExtendedChunk{Flags: flags, Type: ReplyTypeOffsetData, Cookie: cookie, Offset: requestOff, Length: uint64(8 + n)})
	return binary.BigEndian.AppendUint64(b, off)
}

// AppendExtendedError adds the last chunk of a reply: the request failed, with a
// text for people. Its payload is that of an error chunk of structured replies.
func AppendExtendedError(b []byte, cookie, requestOff uint64, errno Errno, text string) []byte {
	text = clip(text)
	b = AppendExtendedChunk(b, ExtendedChunk{Flags: ReplyFlagDone, Type: ReplyTypeError, Cookie: cookie, Offset: requestOff, Length: uint64(6 + len(text))})
	return appendErrorPayload(b, errno, text)
}

// ExtendedDescriptor is one extent of a block status reply with extended headers.
type ExtendedDescriptor struct {
	Length uint64
	Flags  uint64
}

// AppendBlockStatusExt adds a whole NBD_REPLY_TYPE_BLOCK_STATUS_EXT chunk.
func AppendBlockStatusExt(b []byte, flags uint16, cookie, requestOff uint64, contextID uint32, list []ExtendedDescriptor) []byte {
	b = AppendExtendedChunk(b, ExtendedChunk{Flags: flags, Type: ReplyTypeBlockStatusExt, Cookie: cookie, Offset: requestOff, Length: uint64(8 + 16*len(list))})
	b = binary.BigEndian.AppendUint32(b, contextID)
	b = binary.BigEndian.AppendUint32(b, uint32(len(list)))
	for _, d := range list {
		b = binary.BigEndian.AppendUint64(b, d.Length)
		b = binary.BigEndian.AppendUint64(b, d.Flags)
	}
	return b
}

// ParseBlockStatusExt reads the payload of an NBD_REPLY_TYPE_BLOCK_STATUS_EXT chunk.
func ParseBlockStatusExt(payload []byte) (contextID uint32, list []ExtendedDescriptor, err error) {
	if len(payload) < 24 || len(payload)%16 != 8 {
		return 0, nil, fmt.Errorf("extended block status of %d bytes", len(payload))
	}
	contextID = binary.BigEndian.Uint32(payload)
	if n := binary.BigEndian.Uint32(payload[4:]); uint64(n) != uint64(len(payload)-8)/16 {
		return 0, nil, fmt.Errorf("%d extents in an extended block status of %d bytes", n, len(payload))
	}
	for p := payload[8:]; len(p) > 0; p = p[16:] {
		list = append(list, ExtendedDescriptor{Length: binary.BigEndian.Uint64(p), Flags: binary.BigEndian.Uint64(p[8:])})
	}
	return contextID, list, nil
}

// StatusFilter is the payload of an NBD_CMD_BLOCK_STATUS with CmdFlagPayloadLength:
// the length of the range, and the contexts that the client wants to hear of.
type StatusFilter struct {
	Length     uint64
	ContextIDs []uint32
}

// AppendStatusFilter adds the payload.
func AppendStatusFilter(b []byte, f StatusFilter) []byte {
	b = binary.BigEndian.AppendUint64(b, f.Length)
	for _, id := range f.ContextIDs {
		b = binary.BigEndian.AppendUint32(b, id)
	}
	return b
}

// ParseStatusFilter reads the payload.
func ParseStatusFilter(payload []byte) (f StatusFilter, err error) {
	if len(payload) < 8 || len(payload)%4 != 0 {
		return f, fmt.Errorf("block status with a payload of %d bytes", len(payload))
	}
	f.Length = binary.BigEndian.Uint64(payload)
	for p := payload[8:]; len(p) > 0; p = p[4:] {
		f.ContextIDs = append(f.ContextIDs, binary.BigEndian.Uint32(p))
	}
	return f, nil
}
