package hostdev

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// The family's name, version, commands and attributes: linux/nbd-netlink.h.
const (
	familyName    = "nbd"
	familyVersion = 1

	cmdConnect     = 1
	cmdDisconnect  = 2
	cmdReconfigure = 3

	attrIndex             = 1 // u32
	attrSizeBytes         = 2 // u64
	attrBlockSizeBytes    = 3 // u64
	attrTimeout           = 4 // u64, seconds
	attrServerFlags       = 5 // u64, transmission flags
	attrSockets           = 7 // of sockItem, of sockFD
	attrDeadConnTimeout   = 8 // u64, seconds
	attrBackendIdentifier = 10

	sockItem = 1
	sockFD   = 1 // u32
)

// Sizes of the headers of linux/netlink.h and linux/genetlink.h.
const (
	headerSize  = unix.NLMSG_HDRLEN
	genericSize = 4 // struct genlmsghdr
	attrSize    = unix.NLA_HDRLEN
	align       = unix.NLA_ALIGNTO
)

// attrs is a sequence of attributes in the host's byte order.
type attrs []byte

// add adds an attribute, padded.
func (a attrs) add(kind uint16, payload []byte) attrs {
	a = binary.NativeEndian.AppendUint16(a, uint16(attrSize+len(payload)))
	a = binary.NativeEndian.AppendUint16(a, kind)
	a = append(a, payload...)
	for len(a)%align != 0 {
		a = append(a, 0)
	}
	return a
}

func (a attrs) u32(kind uint16, v uint32) attrs {
	return a.add(kind, binary.NativeEndian.AppendUint32(nil, v))
}

func (a attrs) u64(kind uint16, v uint64) attrs {
	return a.add(kind, binary.NativeEndian.AppendUint64(nil, v))
}

// text adds a string with the zero at its end.
func (a attrs) text(kind uint16, s string) attrs {
	return a.add(kind, append([]byte(s), 0))
}

// nest adds attributes as the payload of one.
func (a attrs) nest(kind uint16, inner attrs) attrs {
	return a.add(kind|unix.NLA_F_NESTED, inner)
}

// each calls yield for the attributes of b, without their flags, until it is false.
// What comes from the kernel is checked all the same.
func each(b []byte, yield func(kind uint16, payload []byte) bool) error {
	for len(b) > 0 {
		if len(b) < attrSize {
			return fmt.Errorf("attribute of %d bytes", len(b))
		}
		n := int(binary.NativeEndian.Uint16(b))
		kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
		if n < attrSize || n > len(b) {
			return fmt.Errorf("attribute %d says that it has %d bytes, there are %d", kind, n, len(b))
		}
		if !yield(kind, b[attrSize:n]) {
			return nil
		}
		b = b[min((n+align-1)&^(align-1), len(b)):]
	}
	return nil
}

// request is one generic netlink message that asks for an acknowledgement.
func request(family uint16, command, version uint8, sequence uint32, a attrs) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(headerSize+genericSize+len(a)))
	b = binary.NativeEndian.AppendUint16(b, family)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	b = binary.NativeEndian.AppendUint32(b, sequence)
	b = binary.NativeEndian.AppendUint32(b, 0) // the kernel knows who sends
	b = append(b, command, version, 0, 0)
	return append(b, a...)
}

// errMore: a datagram did not hold the acknowledgement; another one does.
var errMore = errors.New("the acknowledgement is still to come")

// answer reads one datagram: reply gets the attributes of each message that answers
// the request. The kernel's refusal is a unix.Errno.
func answer(datagram []byte, sequence uint32, reply func(attrs)) error {
	for b := datagram; len(b) > 0; {
		if len(b) < headerSize {
			return fmt.Errorf("netlink message of %d bytes", len(b))
		}
		n := int(binary.NativeEndian.Uint32(b))
		kind := binary.NativeEndian.Uint16(b[4:])
		if n < headerSize || n > len(b) {
			return fmt.Errorf("netlink message says that it has %d bytes, there are %d", n, len(b))
		}
		body := b[headerSize:n]
		mine := binary.NativeEndian.Uint32(b[8:]) == sequence
		b = b[min((n+align-1)&^(align-1), len(b)):]
		switch {
		case !mine: // what was still on its way to an earlier request
		case kind == unix.NLMSG_ERROR:
			if len(body) < 4 {
				return fmt.Errorf("netlink acknowledgement of %d bytes", len(body))
			}
			if code := int32(binary.NativeEndian.Uint32(body)); code != 0 {
				return unix.Errno(-code)
			}
			return nil
		case kind >= unix.NLMSG_MIN_TYPE && len(body) >= genericSize:
			reply(attrs(body[genericSize:]))
		}
	}
	return errMore
}
