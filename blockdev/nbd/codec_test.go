package nbd_test

import (
	"bytes"
	"encoding/hex"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/blockdev/nbd"
)

// The bytes as the protocol document has them, so that a constant that changes in
// a library does not go unnoticed.
func TestWireBytes(t *testing.T) {
	for name, x := range map[string]struct {
		got  []byte
		want string
	}{
		"greeting":     {nbd.AppendGreeting(nil, nbd.FlagFixedNewstyle|nbd.FlagNoZeroes), "4e42444d41474943 49484156454f5054 0003"},
		"option":       {nbd.AppendOption(nil, nbd.OptGo, []byte{0xAA}), "49484156454f5054 00000007 00000001 aa"},
		"option reply": {nbd.AppendOptionReply(nil, nbd.OptSetMetaContext, nbd.RepErrTooBig, []byte{0xAA}), "0003e889045565a9 0000000a 80000009 00000001 aa"},
		"info request": {nbd.AppendInfoRequest(nil, nbd.InfoRequest{Name: "a", Infos: []uint16{nbd.InfoBlockSize}}), "00000001 61 0001 0003"},
		"info export":  {nbd.AppendInfoExport(nil, 512, nbd.FlagHasFlags|nbd.FlagCanMultiConn), "0000 0000000000000200 0101"},
		"block sizes":  {nbd.AppendInfoBlockSize(nil, nbd.BlockSizes{Minimum: 1, Preferred: 4096, Maximum: 32 << 20}), "0003 00000001 00001000 02000000"},
		"server":       {nbd.AppendServer(nil, "a", "b"), "00000001 61 62"},
		"meta request": {nbd.AppendMetaContextRequest(nil, nbd.MetaContextRequest{Name: "a", Queries: []string{"b:"}}), "00000001 61 00000001 00000002 623a"},
		"meta context": {nbd.AppendMetaContext(nil, 1, "b:"), "00000001 623a"},
		"request": {nbd.AppendRequest(nil, nbd.Request{Flags: nbd.CmdFlagFUA, Type: nbd.CmdBlockStatus, Cookie: 2, Offset: 3, Length: 4}),
			"25609513 0001 0007 0000000000000002 0000000000000003 00000004"},
		"simple reply":       {nbd.AppendSimpleReply(nil, 2, nbd.ESHUTDOWN), "67446698 0000006c 0000000000000002"},
		"data chunk":         {nbd.AppendOffsetData(nil, nbd.ReplyFlagDone, 2, 3, 5), "668e33ef 0001 0001 0000000000000002 0000000d 0000000000000003"},
		"error chunk":        {nbd.AppendErrorChunk(nil, 2, nbd.EINVAL, "no"), "668e33ef 0001 8001 0000000000000002 00000008 00000016 0002 6e6f"},
		"error offset chunk": {nbd.AppendErrorOffsetChunk(nil, 2, nbd.EIO, "no", 9), "668e33ef 0001 8002 0000000000000002 00000010 00000005 0002 6e6f 0000000000000009"},
		"block status": {nbd.AppendBlockStatus(nil, nbd.ReplyFlagDone, 2, 1, []nbd.Descriptor{{Length: 512, Flags: nbd.StateHole | nbd.StateZero}}),
			"668e33ef 0001 0005 0000000000000002 0000000c 00000001 00000200 00000003"},
		"extended request": {nbd.AppendExtendedRequest(nil, nbd.ExtendedRequest{Flags: nbd.CmdFlagPayloadLength, Type: nbd.CmdWrite, Cookie: 2, Offset: 3, Length: 1 << 40}),
			"21e41c71 0020 0001 0000000000000002 0000000000000003 0000010000000000"},
		"extended data": {nbd.AppendExtendedOffsetData(nil, nbd.ReplyFlagDone, 2, 3, 4, 5),
			"6e8a278c 0001 0001 0000000000000002 0000000000000003 000000000000000d 0000000000000004"},
		"extended end":   {nbd.AppendExtendedChunk(nil, nbd.ExtendedChunk{Flags: nbd.ReplyFlagDone, Cookie: 2, Offset: 3}), "6e8a278c 0001 0000 0000000000000002 0000000000000003 0000000000000000"},
		"extended error": {nbd.AppendExtendedError(nil, 2, 3, nbd.ENOTSUP, "no"), "6e8a278c 0001 8001 0000000000000002 0000000000000003 0000000000000008 0000005f 0002 6e6f"},
		"extended block status": {nbd.AppendBlockStatusExt(nil, 0, 2, 3, 7, []nbd.ExtendedDescriptor{{Length: 1 << 33, Flags: 1}}),
			"6e8a278c 0000 0006 0000000000000002 0000000000000003 0000000000000018 00000007 00000001 0000000200000000 0000000000000001"},
		"status filter": {nbd.AppendStatusFilter(nil, nbd.StatusFilter{Length: 1 << 33, ContextIDs: []uint32{1, 7}}), "0000000200000000 00000001 00000007"},
	} {
		if want, _ := hex.DecodeString(strings.ReplaceAll(x.want, " ", "")); !bytes.Equal(x.got, want) {
			t.Errorf("%s is\n %x, want\n %x", name, x.got, want)
		}
	}
}

func TestParseIsTheInverseOfAppend(t *testing.T) {
	r := nbd.Request{Flags: 5, Type: 6, Cookie: 1 << 63, Offset: 1<<64 - 1, Length: 1<<32 - 1}
	if got, ok := nbd.ParseRequest(nbd.AppendRequest(nil, r)); !ok || got != r {
		t.Errorf("request %+v, %v", got, ok)
	}
	wide := nbd.ExtendedRequest{Flags: 5, Type: 6, Cookie: 1 << 63, Offset: 1<<64 - 1, Length: 1<<64 - 1}
	if got, ok := nbd.ParseExtendedRequest(nbd.AppendExtendedRequest(nil, wide)); !ok || got != wide {
		t.Errorf("extended request %+v, %v", got, ok)
	}
	head := nbd.ExtendedChunk{Flags: 1, Type: 1<<15 + 9, Cookie: 2, Offset: 3, Length: 4}
	if got, err := nbd.ParseExtendedChunk(nbd.AppendExtendedChunk(nil, head)); err != nil || got != head || !got.IsError() {
		t.Errorf("extended chunk %+v, %v", got, err)
	}
	status := []nbd.ExtendedDescriptor{{Length: 1 << 40, Flags: 2}, {Length: 3}}
	if id, got, err := nbd.ParseBlockStatusExt(nbd.AppendBlockStatusExt(nil, 0, 1, 2, 9, status)[nbd.ExtendedChunkSize:]); id != 9 || err != nil || !slices.Equal(got, status) {
		t.Errorf("extended block status %d, %v, %v", id, got, err)
	}
	info := nbd.InfoRequest{Name: "dä", Infos: []uint16{1, 2, 3}}
	if got, err := nbd.ParseInfoRequest(nbd.AppendInfoRequest(nil, info)); err != nil || !reflect.DeepEqual(got, info) {
		t.Errorf("info request %+v, %v", got, err)
	}
	meta := nbd.MetaContextRequest{Name: "", Queries: []string{"", "base:allocation"}}
	if got, err := nbd.ParseMetaContextRequest(nbd.AppendMetaContextRequest(nil, meta)); err != nil || !reflect.DeepEqual(got, meta) {
		t.Errorf("meta context request %+v, %v", got, err)
	}
	if id, name, err := nbd.ParseMetaContext(nbd.AppendMetaContext(nil, 7, "x:y")); id != 7 || name != "x:y" || err != nil {
		t.Errorf("meta context %d, %q, %v", id, name, err)
	}
	var x nbd.ExportInfo
	for _, data := range [][]byte{nbd.AppendInfoExport(nil, 99, 3), nbd.AppendInfoBlockSize(nil, nbd.BlockSizes{Minimum: 1, Preferred: 2, Maximum: 3}), nbd.AppendInfoText(nil, nbd.InfoName, "n"), {0xFF, 0xFF}} {
		if err := x.Parse(data); err != nil {
			t.Errorf("information %x: %v", data, err)
		}
	}
	if want := (nbd.ExportInfo{Size: 99, Flags: 3, HasExport: true, BlockSizes: nbd.BlockSizes{Minimum: 1, Preferred: 2, Maximum: 3}}); x != want {
		t.Errorf("export information %+v, want %+v", x, want)
	}
	list := []nbd.Descriptor{{Length: 1, Flags: 2}, {Length: 3}}
	chunk := nbd.AppendBlockStatus(nil, 0, 1, 9, list)
	if id, got, err := nbd.ParseBlockStatus(chunk[nbd.ChunkSize:]); id != 9 || err != nil || !slices.Equal(got, list) {
		t.Errorf("block status %d, %v, %v", id, got, err)
	}
	chunk = nbd.AppendErrorChunk(nil, 1, nbd.ENOSPC, "full")
	if errno, text, err := nbd.ParseErrorChunk(chunk[nbd.ChunkSize:]); errno != nbd.ENOSPC || text != "full" || err != nil {
		t.Errorf("error chunk %v, %q, %v", errno, text, err)
	}
	h, need, err := nbd.ParseReplyHeader(chunk[:nbd.SimpleReplySize])
	if need != nbd.ChunkSize || err != nil {
		t.Errorf("the first bytes of a chunk need %d bytes, %v", need, err)
	}
	if h, need, err = nbd.ParseReplyHeader(chunk); need != 0 || err != nil || !h.Structured || h.Cookie != 1 || !h.Chunk.IsError() || int(h.Chunk.Length) != len(chunk)-nbd.ChunkSize {
		t.Errorf("chunk header %+v, %d, %v", h, need, err)
	}
}

func TestWhatIsWrongIsRefused(t *testing.T) {
	if _, err := nbd.ParseGreeting([]byte("HTTP/1.1 400 Bad Request\r\n")); err == nil {
		t.Error("a web server is taken for an NBD server")
	}
	if _, _, ok := nbd.ParseOption(make([]byte, nbd.OptionSize)); ok {
		t.Error("zeros are taken for an option")
	}
	if _, ok := nbd.ParseRequest(make([]byte, nbd.RequestSize)); ok {
		t.Error("zeros are taken for a request")
	}
	if _, _, err := nbd.ParseReplyHeader(make([]byte, nbd.ChunkSize)); err == nil {
		t.Error("zeros are taken for a reply")
	}
	if _, ok := nbd.ParseExtendedRequest(append(nbd.AppendRequest(nil, nbd.Request{}), 0, 0, 0, 0)); ok {
		t.Error("a compact request is taken for an extended one")
	}
	long := nbd.AppendOptionReply(nil, 1, 1, nil)
	copy(long[16:], "\xFF\xFF\xFF\xFF")
	if _, _, _, err := nbd.ParseOptionReply(long); err == nil {
		t.Error("a reply of 4 GiB to an option is accepted")
	}
	for _, name := range []string{"a\x00", "\xC0", strings.Repeat("n", 4097)} {
		if nbd.CheckName(name) == nil {
			t.Errorf("the name %.10q is accepted", name)
		}
	}
	if err := nbd.CheckName(strings.Repeat("n", 4096)); err != nil {
		t.Errorf("a name of 4096 bytes: %v", err)
	}
	for _, e := range []nbd.Errno{nbd.OK, nbd.EPERM, nbd.EIO, nbd.ENOMEM, nbd.EINVAL, nbd.ENOSPC, nbd.EOVERFLOW, nbd.ENOTSUP, nbd.ESHUTDOWN, 12345} {
		if e.Error() == "" {
			t.Errorf("error %d has no text", uint32(e))
		}
	}
}

// What the decoders accept they must understand whole: encoding it again gives the
// same bytes.
func FuzzParse(f *testing.F) {
	f.Add(nbd.AppendInfoRequest(nil, nbd.InfoRequest{Name: "disk", Infos: []uint16{0, 3}}))
	f.Add(nbd.AppendMetaContextRequest(nil, nbd.MetaContextRequest{Name: "disk", Queries: []string{"base:allocation", "q:"}}))
	f.Add(nbd.AppendErrorChunk(nil, 1, nbd.EIO, "text")[nbd.ChunkSize:])
	f.Add(nbd.AppendBlockStatus(nil, 0, 1, 1, []nbd.Descriptor{{Length: 1}, {Length: 2, Flags: 3}})[nbd.ChunkSize:])
	f.Add([]byte{0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF})
	f.Add(nbd.AppendBlockStatusExt(nil, 0, 1, 2, 9, []nbd.ExtendedDescriptor{{Length: 1}, {Length: 2, Flags: 3}})[nbd.ExtendedChunkSize:])
	f.Add(nbd.AppendStatusFilter(nil, nbd.StatusFilter{Length: 1, ContextIDs: []uint32{1, 2}}))
	f.Fuzz(func(t *testing.T, p []byte) {
		if r, err := nbd.ParseInfoRequest(p); err == nil && !bytes.Equal(nbd.AppendInfoRequest(nil, r), p) {
			t.Errorf("info request %+v is not %x", r, p)
		}
		if r, err := nbd.ParseMetaContextRequest(p); err == nil && !bytes.Equal(nbd.AppendMetaContextRequest(nil, r), p) {
			t.Errorf("meta context request %+v is not %x", r, p)
		}
		if id, list, err := nbd.ParseBlockStatus(p); err == nil && !bytes.Equal(nbd.AppendBlockStatus(nil, 0, 0, id, list)[nbd.ChunkSize:], p) {
			t.Errorf("block status %v is not %x", list, p)
		}
		if errno, text, err := nbd.ParseErrorChunk(p); err == nil && !bytes.HasPrefix(p, nbd.AppendErrorChunk(nil, 0, errno, text)[nbd.ChunkSize:]) && len(text) <= 4096 {
			t.Errorf("error chunk %v %q is not %x", errno, text, p)
		}
		if id, list, err := nbd.ParseBlockStatusExt(p); err == nil && !bytes.Equal(nbd.AppendBlockStatusExt(nil, 0, 0, 0, id, list)[nbd.ExtendedChunkSize:], p) {
			t.Errorf("extended block status %v is not %x", list, p)
		}
		if f, err := nbd.ParseStatusFilter(p); err == nil && !bytes.Equal(nbd.AppendStatusFilter(nil, f), p) {
			t.Errorf("status filter %+v is not %x", f, p)
		}
		var x nbd.ExportInfo
		x.Parse(p)
		nbd.ParseMetaContext(p)
		nbd.ParseReplyHeader(p)
	})
}
