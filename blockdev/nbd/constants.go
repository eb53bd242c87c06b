package nbd

import "github.com/pojntfx/go-nbd/pkg/protocol"

// Magic numbers of the handshake ("Newstyle negotiation").
const (
	// Magic is NBDMAGIC, the first eight bytes that a server sends.
	Magic = protocol.NEGOTIATION_MAGIC_OLDSTYLE
	// OptionMagic is IHAVEOPT, the second eight and the start of each option.
	OptionMagic = protocol.NEGOTIATION_MAGIC_OPTION
	// OptionReplyMagic begins each reply to an option.
	OptionReplyMagic = protocol.NEGOTIATION_MAGIC_REPLY
)

// Magic numbers of the transmission phase ("Request message", "Simple reply
// message", "Structured reply chunk message", "Extended reply chunk message").
const (
	RequestMagic         = protocol.TRANSMISSION_MAGIC_REQUEST
	SimpleReplyMagic     = protocol.TRANSMISSION_MAGIC_REPLY
	StructuredReplyMagic = uint32(0x668e33ef)

	ExtendedRequestMagic = uint32(0x21e41c71)
	ExtendedReplyMagic   = uint32(0x6e8a278c)
)

// Handshake flags, from the server ("Handshake flags").
const (
	FlagFixedNewstyle = protocol.NEGOTIATION_HANDSHAKE_FLAG_FIXED_NEWSTYLE
	FlagNoZeroes      = uint16(1 << 1)
)

// Handshake flags, from the client ("Client flags").
const (
	FlagCFixedNewstyle = uint32(1 << 0)
	FlagCNoZeroes      = uint32(1 << 1)
)

// Option types ("Option types").
const (
	OptExportName      = uint32(1)
	OptAbort           = protocol.NEGOTIATION_ID_OPTION_ABORT
	OptList            = protocol.NEGOTIATION_ID_OPTION_LIST
	OptStartTLS        = uint32(5)
	OptInfo            = protocol.NEGOTIATION_ID_OPTION_INFO
	OptGo              = protocol.NEGOTIATION_ID_OPTION_GO
	OptStructuredReply = uint32(8)
	OptListMetaContext = uint32(9)
	OptSetMetaContext  = uint32(10)
	OptExtendedHeaders = uint32(11)
)

// Option reply types ("Option reply types"). Errors have bit 31 set.
const (
	RepAck         = protocol.NEGOTIATION_TYPE_REPLY_ACK
	RepServer      = protocol.NEGOTIATION_TYPE_REPLY_SERVER
	RepInfo        = protocol.NEGOTIATION_TYPE_REPLY_INFO
	RepMetaContext = uint32(4)

	// RepFlagError is set in every error reply.
	RepFlagError         = uint32(1 << 31)
	RepErrUnsup          = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED
	RepErrPolicy         = 2 | RepFlagError
	RepErrInvalid        = 3 | RepFlagError
	RepErrPlatform       = 4 | RepFlagError
	RepErrTLSRequired    = 5 | RepFlagError
	RepErrUnknown        = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN
	RepErrShutdown       = 7 | RepFlagError
	RepErrBlockSizeReqd  = 8 | RepFlagError
	RepErrTooBig         = 9 | RepFlagError
	RepErrExtHeaderReqd  = 10 | RepFlagError
	maxOptionReplyLength = 1 << 20 // what our client reads; the document names no limit
)

// Information types of NBD_OPT_INFO and NBD_OPT_GO ("NBD_REP_INFO").
const (
	InfoExport      = protocol.NEGOTIATION_TYPE_INFO_EXPORT
	InfoName        = protocol.NEGOTIATION_TYPE_INFO_NAME
	InfoDescription = protocol.NEGOTIATION_TYPE_INFO_DESCRIPTION
	InfoBlockSize   = protocol.NEGOTIATION_TYPE_INFO_BLOCKSIZE
)

// Transmission flags ("Transmission flags").
const (
	FlagHasFlags        = protocol.NEGOTIATION_REPLY_FLAGS_HAS_FLAGS
	FlagReadOnly        = uint16(1 << 1)
	FlagSendFlush       = uint16(1 << 2)
	FlagSendFUA         = uint16(1 << 3)
	FlagRotational      = uint16(1 << 4)
	FlagSendTrim        = uint16(1 << 5)
	FlagSendWriteZeroes = uint16(1 << 6)
	FlagSendDF          = uint16(1 << 7)
	FlagCanMultiConn    = protocol.NEGOTIATION_REPLY_FLAGS_CAN_MULTI_CONN
	FlagSendResize      = uint16(1 << 9)
	FlagSendCache       = uint16(1 << 10)
	FlagSendFastZero    = uint16(1 << 11)
	// FlagBlockStatusPayload: BLOCK_STATUS takes a payload that names some of the
	// contexts. Only with extended headers.
	FlagBlockStatusPayload = uint16(1 << 12)
)

// Request types ("Request types").
const (
	CmdRead        = protocol.TRANSMISSION_TYPE_REQUEST_READ
	CmdWrite       = protocol.TRANSMISSION_TYPE_REQUEST_WRITE
	CmdDisc        = protocol.TRANSMISSION_TYPE_REQUEST_DISC
	CmdFlush       = uint16(3)
	CmdTrim        = uint16(4)
	CmdCache       = uint16(5)
	CmdWriteZeroes = uint16(6)
	CmdBlockStatus = uint16(7)
)

// Command flags ("Command flags").
const (
	CmdFlagFUA      = uint16(1 << 0)
	CmdFlagNoHole   = uint16(1 << 1)
	CmdFlagDF       = uint16(1 << 2)
	CmdFlagReqOne   = uint16(1 << 3)
	CmdFlagFastZero = uint16(1 << 4)
	// CmdFlagPayloadLength: the length of an extended request is that of the payload
	// which follows it, not of the range. Only with extended headers.
	CmdFlagPayloadLength = uint16(1 << 5)
)

// Structured reply flags and types ("Structured reply flags", "Structured reply
// types"). Error types have bit 15 set.
const (
	ReplyFlagDone = uint16(1 << 0)

	ReplyTypeNone        = uint16(0)
	ReplyTypeOffsetData  = uint16(1)
	ReplyTypeOffsetHole  = uint16(2)
	ReplyTypeBlockStatus = uint16(5)
	// ReplyTypeBlockStatusExt takes the place of ReplyTypeBlockStatus with extended
	// headers.
	ReplyTypeBlockStatusExt = uint16(6)
	ReplyTypeError          = uint16(1<<15 + 1)
	ReplyTypeErrorOffset    = uint16(1<<15 + 2)
)

// The metadata context base:allocation and its flags ("base: metadata context").
const (
	ContextBaseAllocation = "base:allocation"

	StateHole = uint32(1 << 0)
	StateZero = uint32(1 << 1)
)

// Limits.
const (
	// MaxNameLength is the longest export name or description, in bytes ("Values":
	// strings are at most 4096 bytes).
	MaxNameLength = 4096

	// MinBlockSize, PreferredBlockSize and MaxBlockSize are what a server of ours
	// advertises ("Block size constraints"). 32 MiB is what every known client
	// keeps to.
	MinBlockSize       = 1
	PreferredBlockSize = 4096
	MaxBlockSize       = 32 << 20

	// MaxPayload is the longest read or write that a server of ours carries out:
	// twice what it advertises, for clients that never asked.
	MaxPayload = 64 << 20
)
