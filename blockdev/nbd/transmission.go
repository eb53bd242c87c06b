package nbd

import (
	"encoding/binary"
	"fmt"
)

// Lengths of the headers of the transmission phase, in bytes.
const (
	RequestSize     = 28
	SimpleReplySize = 16
	ChunkSize       = 20 // of a structured reply chunk, without its payload
)

// Request is one request message, without the payload of a write.
type Request struct {
	Flags  uint16
	Type   uint16
	Cookie uint64
	Offset uint64
	Length uint32
}

// AppendRequest adds the 28 bytes of r to b.
func AppendRequest(b []byte, r Request) []byte {
	b = binary.BigEndian.AppendUint32(b, RequestMagic)
	b = binary.BigEndian.AppendUint16(b, r.Flags)
	b = binary.BigEndian.AppendUint16(b, r.Type)
	b = binary.BigEndian.AppendUint64(b, r.Cookie)
	b = binary.BigEndian.AppendUint64(b, r.Offset)
	return binary.BigEndian.AppendUint32(b, r.Length)
}

// ParseRequest reads a request from the first RequestSize bytes of b. ok is false
// when they do not begin with the magic number: the stream is out of step and
// cannot be brought back.
func ParseRequest(b []byte) (r Request, ok bool) {
	b = b[:RequestSize]
	return Request{
		Flags:  binary.BigEndian.Uint16(b[4:]),
		Type:   binary.BigEndian.Uint16(b[6:]),
		Cookie: binary.BigEndian.Uint64(b[8:]),
		Offset: binary.BigEndian.Uint64(b[16:]),
		Length: binary.BigEndian.Uint32(b[24:]),
	}, binary.BigEndian.Uint32(b) == RequestMagic
}

// AppendSimpleReply adds a simple reply. The data of a read that succeeded
// follows it.
func AppendSimpleReply(b []byte, cookie uint64, errno Errno) []byte {
	b = binary.BigEndian.AppendUint32(b, SimpleReplyMagic)
	b = binary.BigEndian.AppendUint32(b, uint32(errno))
	return binary.BigEndian.AppendUint64(b, cookie)
}

// Chunk is the header of a structured reply chunk.
type Chunk struct {
	Flags  uint16
	Type   uint16
	Cookie uint64
	Length uint32
}

// IsError reports whether the chunk says that the request failed.
func (c Chunk) IsError() bool { return c.Type&(1<<15) != 0 }

// AppendChunk adds the header of a chunk; Length bytes must follow.
func AppendChunk(b []byte, c Chunk) []byte {
	b = binary.BigEndian.AppendUint32(b, StructuredReplyMagic)
	b = binary.BigEndian.AppendUint16(b, c.Flags)
	b = binary.BigEndian.AppendUint16(b, c.Type)
	b = binary.BigEndian.AppendUint64(b, c.Cookie)
	return binary.BigEndian.AppendUint32(b, c.Length)
}

// OffsetDataSize is what AppendOffsetData adds, in bytes.
const OffsetDataSize = ChunkSize + 8

// AppendOffsetData adds the head of an NBD_REPLY_TYPE_OFFSET_DATA chunk; n bytes
// of data, which the disk holds at off, must follow.
func AppendOffsetData(b []byte, flags uint16, cookie, off uint64, n int) []byte {
	b = AppendChunk(b, Chunk{Flags: flags, Type: ReplyTypeOffsetData, Cookie: cookie, Length: uint32(8 + n)})
	return binary.BigEndian.AppendUint64(b, off)
}

// AppendErrorChunk adds the last chunk of a reply: the request failed, with a text
// for people.
func AppendErrorChunk(b []byte, cookie uint64, errno Errno, text string) []byte {
	text = clip(text)
	b = AppendChunk(b, Chunk{Flags: ReplyFlagDone, Type: ReplyTypeError, Cookie: cookie, Length: uint32(6 + len(text))})
	return appendErrorPayload(b, errno, text)
}

// appendErrorPayload adds the payload of an error chunk. text is clipped.
func appendErrorPayload(b []byte, errno Errno, text string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(errno))
	b = binary.BigEndian.AppendUint16(b, uint16(len(text)))
	return append(b, text...)
}

// AppendErrorOffsetChunk is AppendErrorChunk that also tells at which offset of
// the disk it happened.
func AppendErrorOffsetChunk(b []byte, cookie uint64, errno Errno, text string, off uint64) []byte {
	text = clip(text)
	b = AppendChunk(b, Chunk{Flags: ReplyFlagDone, Type: ReplyTypeErrorOffset, Cookie: cookie, Length: uint32(14 + len(text))})
	return binary.BigEndian.AppendUint64(appendErrorPayload(b, errno, text), off)
}

// ParseErrorChunk reads the payload of an error chunk.
func ParseErrorChunk(payload []byte) (errno Errno, text string, err error) {
	if len(payload) < 6 {
		return 0, "", fmt.Errorf("error chunk of %d bytes", len(payload))
	}
	errno = Errno(binary.BigEndian.Uint32(payload))
	n := int(binary.BigEndian.Uint16(payload[4:]))
	if n > len(payload)-6 {
		return 0, "", fmt.Errorf("error text of %d bytes in a chunk of %d", n, len(payload))
	}
	if errno == OK {
		return 0, "", fmt.Errorf("error chunk without an error")
	}
	return errno, string(payload[6 : 6+n]), nil
}

// Descriptor is one extent of a block status reply.
type Descriptor struct {
	Length uint32
	Flags  uint32
}

// AppendBlockStatus adds a whole NBD_REPLY_TYPE_BLOCK_STATUS chunk.
func AppendBlockStatus(b []byte, flags uint16, cookie uint64, contextID uint32, list []Descriptor) []byte {
	b = AppendChunk(b, Chunk{Flags: flags, Type: ReplyTypeBlockStatus, Cookie: cookie, Length: uint32(4 + 8*len(list))})
	b = binary.BigEndian.AppendUint32(b, contextID)
	for _, d := range list {
		b = binary.BigEndian.AppendUint32(b, d.Length)
		b = binary.BigEndian.AppendUint32(b, d.Flags)
	}
	return b
}

// ParseBlockStatus reads the payload of a block status chunk.
func ParseBlockStatus(payload []byte) (contextID uint32, list []Descriptor, err error) {
	if len(payload) < 12 || len(payload)%8 != 4 {
		return 0, nil, fmt.Errorf("block status of %d bytes", len(payload))
	}
	contextID = binary.BigEndian.Uint32(payload)
	for p := payload[4:]; len(p) > 0; p = p[8:] {
		list = append(list, Descriptor{Length: binary.BigEndian.Uint32(p), Flags: binary.BigEndian.Uint32(p[4:])})
	}
	return contextID, list, nil
}

// ReplyHeader is the head of a simple reply or of a structured reply chunk.
type ReplyHeader struct {
	Structured bool
	Cookie     uint64
	Errno      Errno // simple replies
	Chunk      Chunk // structured replies
}

// ParseReplyHeader reads the head of a reply from b. need is 0 when it is done,
// else how many bytes b must have; at first that is SimpleReplySize.
func ParseReplyHeader(b []byte) (h ReplyHeader, need int, err error) {
	if len(b) < SimpleReplySize {
		return h, SimpleReplySize, nil
	}
	switch magic := binary.BigEndian.Uint32(b); magic {
	case SimpleReplyMagic:
		return ReplyHeader{Errno: Errno(binary.BigEndian.Uint32(b[4:])), Cookie: binary.BigEndian.Uint64(b[8:])}, 0, nil
	case StructuredReplyMagic:
		if len(b) < ChunkSize {
			return h, ChunkSize, nil
		}
		c := Chunk{
			Flags:  binary.BigEndian.Uint16(b[4:]),
			Type:   binary.BigEndian.Uint16(b[6:]),
			Cookie: binary.BigEndian.Uint64(b[8:]),
			Length: binary.BigEndian.Uint32(b[16:]),
		}
		return ReplyHeader{Structured: true, Cookie: c.Cookie, Chunk: c}, 0, nil
	default:
		return h, 0, fmt.Errorf("reply begins with %#08x, which is no magic number", magic)
	}
}

// clip shortens a text to what an error chunk may carry.
func clip(text string) string { return text[:min(len(text), maxErrText)] }
