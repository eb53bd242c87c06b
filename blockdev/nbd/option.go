package nbd

import (
	"encoding/binary"
	"fmt"
	"unicode/utf8"
)

// Lengths of the headers of the handshake, in bytes.
const (
	GreetingSize     = 18
	OptionSize       = 16
	OptionReplySize  = 20
	ExportReplySize  = 10  // of NBD_OPT_EXPORT_NAME
	ExportReplyZeros = 124 // follow it unless both sides have NO_ZEROES
)

// AppendGreeting adds the first message of a server.
func AppendGreeting(b []byte, flags uint16) []byte {
	b = binary.BigEndian.AppendUint64(b, Magic)
	b = binary.BigEndian.AppendUint64(b, OptionMagic)
	return binary.BigEndian.AppendUint16(b, flags)
}

// ParseGreeting reads the first GreetingSize bytes from a server.
func ParseGreeting(b []byte) (flags uint16, err error) {
	b = b[:GreetingSize]
	if binary.BigEndian.Uint64(b) != Magic {
		return 0, fmt.Errorf("the first bytes are %q: not an NBD server", b[:8])
	}
	if binary.BigEndian.Uint64(b[8:]) != OptionMagic {
		return 0, fmt.Errorf("the server speaks the oldstyle handshake, which has no exports to choose from")
	}
	return binary.BigEndian.Uint16(b[16:]), nil
}

// AppendOption adds an option with its data.
func AppendOption(b []byte, option uint32, data []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, OptionMagic)
	b = binary.BigEndian.AppendUint32(b, option)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// ParseOption reads the head of an option from the first OptionSize bytes of b. ok
// is false when they do not begin with the magic number.
func ParseOption(b []byte) (option, length uint32, ok bool) {
	b = b[:OptionSize]
	return binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint32(b[12:]), binary.BigEndian.Uint64(b) == OptionMagic
}

// AppendOptionReply adds a reply to an option with its data; for errors that is a
// text for people.
func AppendOptionReply(b []byte, option, reply uint32, data []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, OptionReplyMagic)
	b = binary.BigEndian.AppendUint32(b, option)
	b = binary.BigEndian.AppendUint32(b, reply)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// ParseOptionReply reads the head of a reply to an option from the first
// OptionReplySize bytes of b.
func ParseOptionReply(b []byte) (option, reply, length uint32, err error) {
	b = b[:OptionReplySize]
	if binary.BigEndian.Uint64(b) != OptionReplyMagic {
		return 0, 0, 0, fmt.Errorf("reply to an option begins with %#x, which is no magic number", b[:8])
	}
	length = binary.BigEndian.Uint32(b[16:])
	if length > maxOptionReplyLength {
		return 0, 0, 0, fmt.Errorf("reply to an option is %d bytes long", length)
	}
	return binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint32(b[12:]), length, nil
}

// InfoRequest is the data of NBD_OPT_INFO and NBD_OPT_GO.
type InfoRequest struct {
	Name  string
	Infos []uint16
}

// AppendInfoRequest adds the data of NBD_OPT_INFO or NBD_OPT_GO.
func AppendInfoRequest(b []byte, r InfoRequest) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.Name)))
	b = append(b, r.Name...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(r.Infos)))
	for _, i := range r.Infos {
		b = binary.BigEndian.AppendUint16(b, i)
	}
	return b
}

// ParseInfoRequest reads the data of NBD_OPT_INFO or NBD_OPT_GO.
func ParseInfoRequest(data []byte) (r InfoRequest, err error) {
	r.Name, data, err = cutString(data)
	if err != nil {
		return r, fmt.Errorf("export name: %w", err)
	}
	if len(data) < 2 {
		return r, fmt.Errorf("count of information requests is missing")
	}
	n := int(binary.BigEndian.Uint16(data))
	if data = data[2:]; len(data) != 2*n {
		return r, fmt.Errorf("%d information requests in %d bytes", n, len(data))
	}
	for ; len(data) > 0; data = data[2:] {
		r.Infos = append(r.Infos, binary.BigEndian.Uint16(data))
	}
	return r, nil
}

// AppendInfoExport adds the data of an NBD_INFO_EXPORT reply.
func AppendInfoExport(b []byte, size uint64, flags uint16) []byte {
	b = binary.BigEndian.AppendUint16(b, InfoExport)
	b = binary.BigEndian.AppendUint64(b, size)
	return binary.BigEndian.AppendUint16(b, flags)
}

// AppendInfoBlockSize adds the data of an NBD_INFO_BLOCK_SIZE reply.
func AppendInfoBlockSize(b []byte, s BlockSizes) []byte {
	b = binary.BigEndian.AppendUint16(b, InfoBlockSize)
	b = binary.BigEndian.AppendUint32(b, s.Minimum)
	b = binary.BigEndian.AppendUint32(b, s.Preferred)
	return binary.BigEndian.AppendUint32(b, s.Maximum)
}

// AppendInfoText adds the data of an NBD_INFO_NAME or NBD_INFO_DESCRIPTION reply.
func AppendInfoText(b []byte, info uint16, text string) []byte {
	return append(binary.BigEndian.AppendUint16(b, info), text...)
}

// BlockSizes are the limits that a server asks for, in bytes ("Block size
// constraints").
type BlockSizes struct {
	Minimum, Preferred, Maximum uint32
}

// ExportInfo gathers what NBD_REP_INFO replies tell of an export.
type ExportInfo struct {
	Size       uint64
	Flags      uint16
	BlockSizes BlockSizes // zero if not told
	// HasExport is set once Size and Flags are known.
	HasExport bool
}

// Parse adds the data of one NBD_REP_INFO reply. Types that it does not know are
// left out, as the document asks.
func (x *ExportInfo) Parse(data []byte) error {
	if len(data) < 2 {
		return fmt.Errorf("information of %d bytes", len(data))
	}
	switch info := binary.BigEndian.Uint16(data); info {
	case InfoExport:
		if len(data) != 12 {
			return fmt.Errorf("export information of %d bytes, want 12", len(data))
		}
		x.Size, x.Flags, x.HasExport = binary.BigEndian.Uint64(data[2:]), binary.BigEndian.Uint16(data[10:]), true
	case InfoBlockSize:
		if len(data) != 14 {
			return fmt.Errorf("block size information of %d bytes, want 14", len(data))
		}
		x.BlockSizes = BlockSizes{binary.BigEndian.Uint32(data[2:]), binary.BigEndian.Uint32(data[6:]), binary.BigEndian.Uint32(data[10:])}
	}
	return nil
}

// AppendServer adds the data of an NBD_REP_SERVER reply: one name of a list.
func AppendServer(b []byte, name, description string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(name)))
	b = append(b, name...)
	return append(b, description...)
}

// MetaContextRequest is the data of NBD_OPT_LIST_META_CONTEXT and
// NBD_OPT_SET_META_CONTEXT.
type MetaContextRequest struct {
	Name    string
	Queries []string
}

// AppendMetaContextRequest adds the data of the two options.
func AppendMetaContextRequest(b []byte, r MetaContextRequest) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.Name)))
	b = append(b, r.Name...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.Queries)))
	for _, q := range r.Queries {
		b = binary.BigEndian.AppendUint32(b, uint32(len(q)))
		b = append(b, q...)
	}
	return b
}

// ParseMetaContextRequest reads the data of the two options.
func ParseMetaContextRequest(data []byte) (r MetaContextRequest, err error) {
	r.Name, data, err = cutString(data)
	if err != nil {
		return r, fmt.Errorf("export name: %w", err)
	}
	if len(data) < 4 {
		return r, fmt.Errorf("count of queries is missing")
	}
	n := binary.BigEndian.Uint32(data)
	data = data[4:]
	if uint64(n)*4 > uint64(len(data)) {
		return r, fmt.Errorf("%d queries in %d bytes", n, len(data))
	}
	for range n {
		var q string
		if q, data, err = cutString(data); err != nil {
			return r, fmt.Errorf("query: %w", err)
		}
		r.Queries = append(r.Queries, q)
	}
	if len(data) > 0 {
		return r, fmt.Errorf("%d bytes after the last query", len(data))
	}
	return r, nil
}

// AppendMetaContext adds the data of an NBD_REP_META_CONTEXT reply.
func AppendMetaContext(b []byte, id uint32, name string) []byte {
	return append(binary.BigEndian.AppendUint32(b, id), name...)
}

// ParseMetaContext reads the data of an NBD_REP_META_CONTEXT reply.
func ParseMetaContext(data []byte) (id uint32, name string, err error) {
	if len(data) < 5 || len(data) > 4+MaxNameLength {
		return 0, "", fmt.Errorf("metadata context of %d bytes", len(data))
	}
	return binary.BigEndian.Uint32(data), string(data[4:]), nil
}

// CheckName says why a string cannot be an export name, or nil.
func CheckName(name string) error {
	switch {
	case len(name) > MaxNameLength:
		return fmt.Errorf("%d bytes are more than %d", len(name), MaxNameLength)
	case !utf8.ValidString(name):
		return fmt.Errorf("%q is not UTF-8", name)
	}
	for _, r := range name {
		if r == 0 {
			return fmt.Errorf("%q holds a NUL", name)
		}
	}
	return nil
}

// cutString takes a string with a 32-bit length from the start of b.
func cutString(b []byte) (s string, rest []byte, err error) {
	if len(b) < 4 {
		return "", nil, fmt.Errorf("length is missing")
	}
	n := binary.BigEndian.Uint32(b)
	if b = b[4:]; uint64(n) > uint64(len(b)) {
		return "", nil, fmt.Errorf("%d bytes announced, %d there", n, len(b))
	}
	s = string(b[:n])
	if err := CheckName(s); err != nil {
		return "", nil, err
	}
	return s, b[n:], nil
}
