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
func (c *conn) carryOut(r request) error {
	c.counters.requests.Add(1)
	if r.Type == nbd.CmdDisc {
		return errDisconnected
	}
	payload := c.payloadOf(r)
	if c.extended {
		switch withPayload := r.Flags&nbd.CmdFlagPayloadLength != 0; {
		case r.Type == nbd.CmdWrite && withPayload:
			r.Flags &^= nbd.CmdFlagPayloadLength
		case r.Type == nbd.CmdWrite:
			// By the letter of the document no payload follows. Were one taken for
			// granted, the next requests could end up as data on the disk.
			c.replyError(r, nbd.EINVAL, "a write without NBD_CMD_FLAG_PAYLOAD_LEN has no payload")
			return nil
		case r.Type == nbd.CmdBlockStatus && withPayload:
			return c.filtered(r)
		}
	}
	if errno, text := c.check(r); errno != nbd.OK {
		if payload > 0 {
			if err := c.discardPayload(payload); err != nil {
				return err
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
	nbd.CmdWriteZeroes: nbd.CmdFlagFUA | nbd.CmdFlagNoHole | nbd.CmdFlagFastZero,
	nbd.CmdBlockStatus: nbd.CmdFlagFUA | nbd.CmdFlagReqOne,
}

// check says why a request cannot be done, before anything of it is.
func (c *conn) check(r request) (nbd.Errno, string) {
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
		if r.Flags&nbd.CmdFlagFastZero != 0 && c.exp.fast == nil {
			return nbd.EINVAL, "FAST_ZERO is not offered"
		}
	case nbd.CmdRead:
		if r.Flags&nbd.CmdFlagDF != 0 && !c.structured {
			return nbd.EINVAL, "DF needs structured replies"
		}
	case nbd.CmdBlockStatus:
		if len(c.contexts.list) == 0 {
			return nbd.EINVAL, "no metadata context was negotiated"
		}
		if r.Length == 0 {
			return nbd.EINVAL, "block status of no bytes"
		}
	}
	if (r.Type == nbd.CmdRead || r.Type == nbd.CmdWrite) && r.Length > nbd.MaxPayload {
		return nbd.EINVAL, fmt.Sprintf("%d bytes in one request are more than %d", r.Length, nbd.MaxPayload)
	}
	if size := c.limit(); r.Offset > size || r.Length > size-r.Offset {
		return pastEnd, fmt.Sprintf("%d bytes at %d pass the end of the export, which has %d", r.Length, r.Offset, size)
	}
	if r.Flags&nbd.CmdFlagFastZero != 0 && !c.exp.fast.ZeroesFast(r.Flags&nbd.CmdFlagNoHole == 0) {
		return nbd.ENOTSUP, "zeroes would be written"
	}
	return nbd.OK, ""
}

// limit is how far requests may reach, in bytes: to the size that was negotiated, which
// the Device's own may differ from by now.
func (c *conn) limit() uint64 {
	if c.follows {
		return uint64(c.exp.Device.Size())
	}
	return uint64(c.size)
}

// read answers a read from memory, or gives it to a worker. Of a client that takes no
// replies any more only the reads that were under way are done: a buffer may hold
// thousands.
func (c *conn) read(r request) error {
	if c.out.broken.Load() {
		return nil
	}
	c.counters.reads.Add(1)
	n, off := int(r.Length), int64(r.Offset)
	if c.exp.nowait == nil {
		return c.dispatch(r, c.readByWorker)
	}
	if n >= sendfileBytes && c.exp.file != nil && c.structured && c.sock.tls == nil && c.inMemory(off, n) {
		return c.readBySendfile(r)
	}
	if n > maxInlineBytes {
		return c.dispatch(r, c.readByWorker)
	}
	x := c.room(maxReadHead + n)
	before := len(x.b)
	x.b = c.appendReadHead(x.b, r, nbd.ReplyFlagDone, r.Offset, n)
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

// readBySendfile sends the data from the page cache to the socket. Its chunk is not
// marked as the last, since reading may still fail when its header is gone: then
// the rest is padded and an error chunk follows, as the protocol asks.
func (c *conn) readBySendfile(r request) error {
	n, off := int(r.Length), int64(r.Offset)
	x := c.room(maxReadHead)
	x.b = c.appendReadHead(x.b, r, 0, r.Offset, n)
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
	x = c.room(maxOKReply)
	x.b = c.appendOK(x.b, r)
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

// writeInline reads a payload piece by piece and writes each at once, unless that would
// mean to wait: then workers take the rest.
func (c *conn) writeInline(r request) error {
	c.counters.writes.Add(1)
	off, end := int64(r.Offset), int64(r.Offset)+int64(r.Length)
	for off < end {
		n := pieceLength(off, end)
		err, fatal := c.writePiece(r, off, n)
		if fatal != nil {
			return fatal
		}
		if errors.Is(err, blockdev.ErrWouldBlock) {
			return c.writePieces(r, off) // and the requests behind it do not wait
		}
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

// writePiece writes the next n bytes of a payload at off, and uses them up unless err,
// the Device's, is blockdev.ErrWouldBlock. fatal ends the connection.
func (c *conn) writePiece(r request, off int64, n int) (err, fatal error) {
	pipes := c.mayPipe(r)
	if pipes && n >= spliceBytes && c.in.buffered() == 0 {
		c.in.atMost = 1 // of the next message its head only
		err, fatal = c.pipePiece(off, n)
		if fatal != nil || !errors.Is(err, blockdev.ErrNotSupported) {
			return err, fatal
		}
		pipes = false
	}
	p, fatal := c.payload(n, pipes)
	if fatal != nil {
		return nil, fatal
	}
	if c.exp.nowaitWriter != nil {
		_, err = c.exp.nowaitWriter.WriteAtNowait(p, off)
	} else {
		_, err = c.exp.Device.WriteAt(p, off)
	}
	if !errors.Is(err, blockdev.ErrWouldBlock) {
		c.in.skip(n)
	}
	return err, nil
}

// pieceLength is how much of [off, end) one piece of a write takes.
func pieceLength(off, end int64) int {
	return int(min(end-off, stripeBytes-off%stripeBytes))
}

// replyOK gathers the reply to a request that succeeded and has no data.
func (c *conn) replyOK(r request) {
	x := c.room(maxOKReply)
	x.b = c.appendOK(x.b, r)
}

// replyError gathers an error reply.
func (c *conn) replyError(r request, errno nbd.Errno, text string) {
	x := c.room(maxErrorReply)
	x.b = c.appendError(x.b, r, errno, text)
}

// replyFailure gathers the error reply for an error of the Device.
func (c *conn) replyFailure(r request, err error) {
	errno, text := c.explain(r, err)
	c.replyError(r, errno, text)
}

// explain turns an error of the Device into an NBD error, and logs the first few of
// a connection that no NBD error stands for.
func (c *conn) explain(r request, err error) (nbd.Errno, string) {
	errno, text, known := errnoOf(r.Type, err)
	if !known {
		c.counters.unexpectedErrors.Add(1)
	}
	if errno == nbd.EIO && c.counters.loggedLines.Add(1) <= 10 {
		c.srv.o.Logger.Error("NBD request failed", "export", c.exp.Name, "command", r.Type, "offset", r.Offset, "bytes", r.Length, "err", err)
	}
	return errno, text
}
