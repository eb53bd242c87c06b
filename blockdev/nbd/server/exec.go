package server

import (
	"errors"
	"fmt"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/nbd"
)

const (
	// growBytes: a request of this length shows that the connection moves bulk
	// data, so its socket gets large buffers.
	growBytes = 64 << 10
	// sendfileBytes: from here on sendfile beats copying into the batch.
	sendfileBytes = 64 << 10
	// maxInlineBytes: the longest read that goes into the batch.
	maxInlineBytes = stripeBytes
)

// carryOut does a request, or gives it to a worker. An error ends the connection.
func (c *conn) carryOut(r nbd.Request) error {
	c.counters.requests.Add(1)
	if r.Type == nbd.CmdDisc {
		return errDisconnected
	}
	if errno, text := c.check(r); errno != nbd.OK {
		if r.Type == nbd.CmdWrite {
			if err := c.discard(int64(r.Length)); err != nil {
				return noEOF(err)
			}
		}
		c.replyError(r, errno, text)
		return nil
	}
	if r.Length >= growBytes && !c.grown && (r.Type == nbd.CmdRead || r.Type == nbd.CmdWrite) {
		c.grown = true
		c.sock.grow()
	}
	switch {
	case r.Type == nbd.CmdWrite && c.exp.nowait != nil:
		return c.writeInline(r)
	case r.Type == nbd.CmdWrite:
		return c.writeByWorkers(r)
	case r.Length == 0 && r.Type != nbd.CmdFlush:
		c.replyOK(r)
	case r.Type == nbd.CmdRead:
		return c.read(r)
	default:
		return c.dispatch(r, c.worker)
	}
	return nil
}

// validFlags are the command flags that each type may carry. FUA is valid with
// every command ("Command flags").
var validFlags = [...]uint16{
	nbd.CmdRead:        nbd.CmdFlagFUA | nbd.CmdFlagDF,
	nbd.CmdWrite:       nbd.CmdFlagFUA,
	nbd.CmdFlush:       nbd.CmdFlagFUA,
	nbd.CmdTrim:        nbd.CmdFlagFUA,
	nbd.CmdCache:       nbd.CmdFlagFUA,
	nbd.CmdWriteZeroes: nbd.CmdFlagFUA | nbd.CmdFlagNoHole,
	nbd.CmdBlockStatus: nbd.CmdFlagFUA | nbd.CmdFlagReqOne,
}

// check says why a request cannot be done, before anything of it is.
func (c *conn) check(r nbd.Request) (nbd.Errno, string) {
	if int(r.Type) >= len(validFlags) {
		return nbd.EINVAL, fmt.Sprintf("command %d is unknown", r.Type)
	}
	if unknown := r.Flags &^ validFlags[r.Type]; unknown != 0 {
		return nbd.EINVAL, fmt.Sprintf("flags %#x do not go with command %d", unknown, r.Type)
	}
	pastEnd := nbd.EINVAL
	switch r.Type {
	case nbd.CmdFlush:
		return nbd.OK, "" // offset and length are reserved
	case nbd.CmdWrite, nbd.CmdWriteZeroes:
		pastEnd = nbd.ENOSPC
		fallthrough
	case nbd.CmdTrim:
		if c.exp.ReadOnly {
			return nbd.EPERM, "the export is read-only"
		}
	case nbd.CmdRead:
		if r.Flags&nbd.CmdFlagDF != 0 && !c.structured {
			return nbd.EINVAL, "DF needs structured replies"
		}
	case nbd.CmdBlockStatus:
		if !c.allocation {
			return nbd.EINVAL, "no metadata context was negotiated"
		}
		if r.Length == 0 {
			return nbd.EINVAL, "block status of no bytes"
		}
	}
	if (r.Type == nbd.CmdRead || r.Type == nbd.CmdWrite) && r.Length > nbd.MaxPayload {
		return nbd.EINVAL, fmt.Sprintf("%d bytes in one request are more than %d", r.Length, nbd.MaxPayload)
	}
	if r.Offset > uint64(c.size) || uint64(r.Length) > uint64(c.size)-r.Offset {
		return pastEnd, fmt.Sprintf("%d bytes at %d pass the end of the export, which has %d", r.Length, r.Offset, c.size)
	}
	return nbd.OK, ""
}

// read answers a read from memory, or gives it to a worker.
func (c *conn) read(r nbd.Request) error {
	c.counters.reads.Add(1)
	n, off := int(r.Length), int64(r.Offset)
	if c.exp.nowait == nil {
		return c.dispatch(r, c.readByWorker)
	}
	if n >= sendfileBytes && c.exp.file != nil && c.structured && c.inMemory(off, n) {
		return c.readBySendfile(r)
	}
	if n > maxInlineBytes {
		return c.dispatch(r, c.readByWorker)
	}
	x := c.room(nbd.OffsetDataSize + n)
	before := len(x.b)
	x.b = c.appendReadHeader(x.b, r, nbd.ReplyFlagDone, r.Offset, n)
	data := x.b[len(x.b) : len(x.b)+n]
	_, err := c.exp.nowait.ReadAtNowait(data, off)
	if err != nil {
		x.b = x.b[:before]
		if errors.Is(err, blockdev.ErrWouldBlock) {
			return c.dispatch(r, c.readByWorker)
		}
		c.replyFailure(r, err)
		return nil
	}
	x.b = x.b[:len(x.b)+n]
	c.counters.inlineReads.Add(1)
	c.counters.readBytes.Add(uint64(n))
	return nil
}

// inMemory guesses whether all of a range is in memory: its first and last byte
// are. A wrong guess costs this connection a wait for the disk, nothing more.
func (c *conn) inMemory(off int64, n int) bool {
	var p [1]byte
	if _, err := c.exp.nowait.ReadAtNowait(p[:], off); err != nil {
		return false
	}
	_, err := c.exp.nowait.ReadAtNowait(p[:], off+int64(n)-1)
	return err == nil
}

// appendReadHeader adds the header of n bytes of data from off.
func (c *conn) appendReadHeader(b []byte, r nbd.Request, flags uint16, off uint64, n int) []byte {
	if !c.structured {
		return nbd.AppendSimpleReply(b, r.Cookie, nbd.OK)
	}
	return nbd.AppendOffsetData(b, flags, r.Cookie, off, n)
}

// readBySendfile sends the data from the page cache to the socket. Its chunk is not
// marked as the last, since reading may still fail when its header is gone: then
// the rest is padded and an error chunk follows, as the protocol asks.
func (c *conn) readBySendfile(r nbd.Request) error {
	n, off := int(r.Length), int64(r.Offset)
	x := c.room(nbd.OffsetDataSize)
	x.b = c.appendReadHeader(x.b, r, 0, r.Offset, n)
	c.batch = nil
	var fileErr error
	err := c.out.acquire()
	if err == nil {
		if err = c.sock.write([][]byte{x.b}, true); err == nil {
			fileErr, err = c.sendfile(off, n)
		}
		c.out.release(err)
	}
	x.release()
	if err != nil {
		return err
	}
	if fileErr != nil {
		c.replyFailure(r, fileErr)
		return nil
	}
	c.counters.sendfileReads.Add(1)
	c.counters.readBytes.Add(uint64(n))
	x = c.room(nbd.ChunkSize)
	x.b = nbd.AppendChunk(x.b, nbd.Chunk{Flags: nbd.ReplyFlagDone, Type: nbd.ReplyTypeNone, Cookie: r.Cookie})
	return nil
}

// sendfile sends exactly n bytes to the socket, which the caller owns: those of the
// file, and zeros in place of what could not be read, which fileErr tells.
func (c *conn) sendfile(off int64, n int) (fileErr, err error) {
	sent := 0
	err = c.exp.file.ReadFD(func(fd int) (err error) {
		sent, fileErr, err = c.sock.sendfile(fd, off, n)
		return err
	})
	if err != nil || fileErr == nil {
		return fileErr, err
	}
	x := c.srv.buffers.get(stripeBytes)
	defer x.release()
	clear(x.b[:stripeBytes])
	for sent < n && err == nil {
		k := min(n-sent, stripeBytes)
		err = c.sock.write([][]byte{x.b[:k]}, true)
		sent += k
	}
	return fileErr, err
}

// writeInline reads a payload piece by piece and writes each at once.
func (c *conn) writeInline(r nbd.Request) error {
	c.counters.writes.Add(1)
	off, end := int64(r.Offset), int64(r.Offset)+int64(r.Length)
	for off < end {
		n := pieceLength(off, end)
		p, err := c.payload(n)
		if err != nil {
			return err
		}
		_, err = c.exp.Device.WriteAt(p, off)
		c.in.skip(n)
		off += int64(n)
		if err != nil {
			if err := c.discard(end - off); err != nil {
				return noEOF(err)
			}
			c.replyFailure(r, err)
			return nil
		}
		c.counters.writeBytes.Add(uint64(n))
	}
	if r.Flags&nbd.CmdFlagFUA != 0 {
		return c.dispatch(r, c.sync)
	}
	c.replyOK(r)
	return nil
}

// pieceLength is how much of [off, end) one piece of a write takes.
func pieceLength(off, end int64) int {
	return int(min(end-off, stripeBytes-off%stripeBytes))
}

// replyOK gathers the reply to a request that succeeded and has no data.
func (c *conn) replyOK(r nbd.Request) {
	x := c.room(nbd.ChunkSize)
	x.b = c.appendOK(x.b, r)
}

// appendOK adds the reply to a request that succeeded and has no data. With
// structured replies a read needs a chunk, others may have the shorter simple
// reply.
func (c *conn) appendOK(b []byte, r nbd.Request) []byte {
	if c.structured && r.Type == nbd.CmdRead {
		return nbd.AppendChunk(b, nbd.Chunk{Flags: nbd.ReplyFlagDone, Type: nbd.ReplyTypeNone, Cookie: r.Cookie})
	}
	return nbd.AppendSimpleReply(b, r.Cookie, nbd.OK)
}

const maxErrorReply = 1 << 10 // room for an error reply; longer texts are cut

// replyError gathers an error reply.
func (c *conn) replyError(r nbd.Request, errno nbd.Errno, text string) {
	x := c.room(maxErrorReply)
	x.b = c.appendError(x.b, r, errno, text)
}

// replyFailure gathers the error reply for an error of the Device.
func (c *conn) replyFailure(r nbd.Request, err error) {
	errno, text := c.explain(r, err)
	c.replyError(r, errno, text)
}

func (c *conn) appendError(b []byte, r nbd.Request, errno nbd.Errno, text string) []byte {
	c.counters.errors.Add(1)
	if !c.structured {
		return nbd.AppendSimpleReply(b, r.Cookie, errno)
	}
	return nbd.AppendErrorChunk(b, r.Cookie, errno, text[:min(len(text), maxErrorReply/2)])
}

// explain turns an error of the Device into an NBD error, and logs the first few of
// a connection that no NBD error stands for.
func (c *conn) explain(r nbd.Request, err error) (nbd.Errno, string) {
	errno, text, known := errnoOf(r.Type, err)
	if !known {
		c.counters.unexpectedErrors.Add(1)
	}
	if errno == nbd.EIO && c.counters.loggedLines.Add(1) <= 10 {
		c.srv.o.Logger.Error("NBD request failed", "export", c.exp.Name, "command", r.Type, "offset", r.Offset, "bytes", r.Length, "err", err)
	}
	return errno, text
}
