package client

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/keelblock/keelblock/blockdev/nbd"
)

// do sends a request with its payload and waits for its reply.
func (c *Client) do(r *request, payload []byte) error {
	r.wake = make(chan struct{}, 1)
	c.mu.Lock()
	if err := c.err; err != nil {
		c.mu.Unlock()
		return err
	}
	c.cookie++
	r.Cookie = c.cookie
	c.requests[r.Cookie] = r
	c.mu.Unlock()
	if err := c.write(r, payload); err != nil {
		c.breakOff(noEOF(err))
	}
	return c.wait(r)
}

func (c *Client) write(r *request, payload []byte) error {
	c.send.Lock()
	defer c.send.Unlock()
	c.scratch = nbd.AppendRequest(c.scratch[:0], r.Request)
	if len(payload) == 0 {
		_, err := c.nc.Write(c.scratch)
		return err
	}
	if c.encrypted {
		return c.writeEncrypted(payload)
	}
	c.bufs = append(c.bufs[:0], c.scratch, payload)
	bufs := c.bufs
	_, err := bufs.WriteTo(c.nc)
	clear(c.bufs) // nothing of the caller's is kept
	return err
}

// wait returns when r is done. While nobody else reads the socket, the caller does.
func (c *Client) wait(r *request) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	r.waiting = true
	for !r.done {
		if c.reading {
			c.mu.Unlock()
			<-r.wake
			c.mu.Lock()
			continue
		}
		c.reading = true
		c.mu.Unlock()
		err := c.readReply()
		c.mu.Lock()
		c.reading = false
		if err != nil && c.err == nil {
			c.err = noEOF(err)
			c.nc.Close()
		}
		if c.err != nil {
			c.failAll()
		}
	}
	if !c.reading {
		c.passOn()
	}
	return r.err
}

// passOn wakes one of those that wait, who will read. One that is still sending
// must not be chosen: the server may take no more of its payload before others
// have read their replies. mu is held.
func (c *Client) passOn() {
	for _, r := range c.requests {
		if r.waiting {
			r.signal()
			return
		}
	}
}

func (r *request) signal() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// finish ends a request. Its caller, if it is not the one who reads, is woken.
func (c *Client) finish(r *request) {
	c.mu.Lock()
	delete(c.requests, r.Cookie)
	r.done = true
	c.mu.Unlock()
	r.signal()
}

// breakOff ends the connection with the first error: all requests fail, and all
// later ones. Whoever reads the socket is stopped first, as it may be writing to
// the buffer of any of them.
func (c *Client) breakOff(err error) {
	c.nc.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
	if !c.reading {
		c.failAll()
	}
}

// failAll ends all requests with the error of the connection. mu is held, and
// nobody reads.
func (c *Client) failAll() {
	for cookie, r := range c.requests {
		delete(c.requests, cookie)
		r.err, r.done = c.err, true
		r.signal()
	}
}

// readReply reads one simple reply or one chunk. An error breaks the connection.
func (c *Client) readReply() error {
	head, need := []byte(nil), nbd.SimpleReplySize
	var h nbd.ReplyHeader
	for need > 0 {
		var err error
		if head, err = c.read.Peek(need); err != nil {
			return err
		}
		if h, need, err = nbd.ParseReplyHeader(head); err != nil {
			return err
		}
	}
	c.read.Discard(len(head))
	c.mu.Lock()
	r := c.requests[h.Cookie]
	c.mu.Unlock()
	if r == nil {
		return fmt.Errorf("reply to request %d, which is not under way", h.Cookie)
	}
	if h.Structured {
		return c.readChunk(r, h.Chunk)
	}
	if h.Errno != nbd.OK {
		r.err = remoteError(h.Errno, "")
	} else if r.Type == nbd.CmdRead {
		if c.structured {
			return fmt.Errorf("simple reply to a read although structured replies are negotiated")
		}
		if _, err := io.ReadFull(c.read, r.p); err != nil {
			return err
		}
	}
	c.finish(r)
	return nil
}

// maxChunk is the longest payload of a chunk other than data.
const maxChunk = 1 << 20

func (c *Client) readChunk(r *request, h nbd.Chunk) error {
	if !c.structured {
		return fmt.Errorf("structured reply that was not negotiated")
	}
	var err error
	switch {
	case h.Type == nbd.ReplyTypeOffsetData && r.Type == nbd.CmdRead:
		err = c.readData(r, h.Length)
	case h.Type == nbd.ReplyTypeNone && h.Length == 0 && h.Flags&nbd.ReplyFlagDone != 0:
	case h.Length > maxChunk:
		return fmt.Errorf("chunk of type %d is %d bytes long", h.Type, h.Length)
	default:
		payload := make([]byte, h.Length)
		if _, err := io.ReadFull(c.read, payload); err != nil {
			return err
		}
		err = c.takePayload(r, h, payload)
	}
	if err == nil && h.Flags&nbd.ReplyFlagDone != 0 {
		c.finish(r)
	}
	return err
}

// readData reads an NBD_REPLY_TYPE_OFFSET_DATA chunk into the buffer of its caller.
func (c *Client) readData(r *request, length uint32) error {
	var off [8]byte
	if length < 9 {
		return fmt.Errorf("data chunk of %d bytes", length)
	}
	if _, err := io.ReadFull(c.read, off[:]); err != nil {
		return err
	}
	p, err := r.part(binary.BigEndian.Uint64(off[:]), uint64(length-8))
	if err != nil {
		return err
	}
	_, err = io.ReadFull(c.read, p)
	return err
}

// part is the piece of the buffer of a read that holds [off, off+n) of the export.
func (r *request) part(off, n uint64) ([]byte, error) {
	if off < r.Offset || off-r.Offset > uint64(len(r.p)) || n > uint64(len(r.p))-(off-r.Offset) {
		return nil, fmt.Errorf("chunk of %d bytes at %d in the reply to a read of %d at %d", n, off, len(r.p), r.Offset)
	}
	return r.p[off-r.Offset:][:n], nil
}

func (c *Client) takePayload(r *request, h nbd.Chunk, payload []byte) error {
	switch {
	case h.IsError():
		errno, text, err := nbd.ParseErrorChunk(payload)
		if err != nil {
			return err
		}
		if r.err == nil {
			r.err = remoteError(errno, text)
		}
	case h.Type == nbd.ReplyTypeOffsetHole && r.Type == nbd.CmdRead && len(payload) == 12:
		p, err := r.part(binary.BigEndian.Uint64(payload), uint64(binary.BigEndian.Uint32(payload[8:])))
		if err != nil {
			return err
		}
		clear(p)
	case h.Type == nbd.ReplyTypeBlockStatus && r.Type == nbd.CmdBlockStatus:
		id, list, err := nbd.ParseBlockStatus(payload)
		if err != nil {
			return err
		}
		if id == c.contextID {
			r.extents = list
		}
		if list[0].Length == 0 {
			return fmt.Errorf("block status with an empty extent")
		}
	default:
		return fmt.Errorf("chunk of type %d and %d bytes in the reply to command %d", h.Type, len(payload), r.Type)
	}
	return nil
}
