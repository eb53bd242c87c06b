package server

import (
	"context"
	"fmt"
	"strings"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/nbd"
)

// maxContexts bounds the metadata contexts that one connection selects.
const maxContexts = 64

// selection is what NBD_OPT_SET_META_CONTEXT has chosen: contexts of one export,
// which is kept, rather than its name, as another may come under the same name.
type selection struct {
	of   *export
	list []selected
}

// selected is one context under the number that replies have. context is nil for
// base:allocation.
type selected struct {
	id      uint32
	name    string
	context Context
}

// close ends the use of the contexts.
func (s *selection) close() {
	for _, x := range s.list {
		if x.context != nil {
			x.context.Close()
		}
	}
	*s = selection{}
}

// metaContext answers NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT.
func (h *handshake) metaContext(option uint32, data []byte) error {
	c := h.c
	if option == nbd.OptSetMetaContext {
		c.contexts.close() // also when this request fails
	}
	r, err := nbd.ParseMetaContextRequest(data)
	if err != nil {
		return &optionError{nbd.RepErrInvalid, err.Error()}
	}
	if !c.structured {
		return &optionError{nbd.RepErrInvalid, "metadata contexts need NBD_OPT_STRUCTURED_REPLY or NBD_OPT_EXTENDED_HEADERS before"}
	}
	e, err := c.srv.find(c.peer, r.Name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithDeadline(c.ctx, h.deadline)
	defer cancel()
	if option == nbd.OptListMetaContext {
		err = h.listContexts(ctx, e, r.Queries)
	} else {
		err = h.selectContexts(ctx, e, r.Queries)
	}
	if err != nil {
		return err
	}
	h.reply(option, nbd.RepAck, nil)
	return nil
}

// listContexts names the contexts of an export that any of the queries asks for. A
// query ends with a colon to ask for all that begin so ("base:", "qemu:",
// "qemu:dirty-bitmap:"); no queries ask for all.
func (h *handshake) listContexts(ctx context.Context, e *export, queries []string) error {
	names := []string{nbd.ContextBaseAllocation}
	if e.Contexts != nil {
		more, err := e.Contexts.Contexts(ctx)
		if err != nil {
			h.c.srv.o.Logger.Warn("metadata contexts cannot be listed", "export", e.Name, "err", err)
		}
		names = append(names, more...)
	}
	for _, name := range names {
		match := len(queries) == 0
		for _, q := range queries {
			match = match || q == name || strings.HasSuffix(q, ":") && strings.HasPrefix(name, q)
		}
		if !match {
			continue
		}
		// The number is reserved in the reply to a list.
		h.reply(nbd.OptListMetaContext, nbd.RepMetaContext, nbd.AppendMetaContext(nil, 0, name))
		if err := h.flushSome(); err != nil {
			return err
		}
	}
	return nil
}

// selectContexts opens the contexts that the queries name in full. Wildcards, names
// that are unknown and names that are asked for twice select nothing.
func (h *handshake) selectContexts(ctx context.Context, e *export, queries []string) error {
	s := &h.c.contexts
	s.of = e
	for _, q := range queries {
		if strings.HasSuffix(q, ":") || s.has(q) {
			continue
		}
		x := selected{id: uint32(len(s.list) + 1), name: q}
		if q != nbd.ContextBaseAllocation {
			if e.Contexts == nil {
				continue
			}
			open, err := e.Contexts.OpenContext(ctx, q)
			if err != nil {
				h.c.srv.o.Logger.Debug("metadata context is refused", "export", e.Name, "context", q, "err", err)
				continue
			}
			x.context = open
		}
		s.list = append(s.list, x)
		if len(s.list) > maxContexts {
			s.close()
			return &optionError{nbd.RepErrTooBig, fmt.Sprintf("more than %d metadata contexts", maxContexts)}
		}
		h.reply(nbd.OptSetMetaContext, nbd.RepMetaContext, nbd.AppendMetaContext(nil, x.id, x.name))
	}
	return nil
}

func (s *selection) has(name string) bool {
	for _, x := range s.list {
		if x.name == name {
			return true
		}
	}
	return false
}

// filtered carries out a block status that names the contexts which the client wants
// to hear of, in a payload that is read here.
func (c *conn) filtered(r request) error {
	if r.Length > 8+4*maxContexts {
		if err := c.discardPayload(r.Length); err != nil {
			return err
		}
		c.replyError(r, nbd.EINVAL, fmt.Sprintf("block status with a payload of %d bytes", r.Length))
		return nil
	}
	p, err := c.payload(int(r.Length), false)
	if err != nil {
		return err
	}
	f, err := nbd.ParseStatusFilter(p)
	c.in.skip(len(p))
	if err != nil {
		c.replyError(r, nbd.EINVAL, err.Error())
		return nil
	}
	r.Flags &^= nbd.CmdFlagPayloadLength
	r.Length = f.Length
	if errno, text := c.check(r); errno != nbd.OK {
		c.replyError(r, errno, text)
		return nil
	}
	list, err := c.contexts.only(f.ContextIDs)
	if err != nil {
		c.replyError(r, nbd.EINVAL, err.Error())
		return nil
	}
	return c.dispatch(r, func(r request) { c.blockStatus(r, list) })
}

// only returns the contexts with the numbers.
func (s *selection) only(ids []uint32) (list []selected, err error) {
	for i, id := range ids {
		if id == 0 || int64(id) > int64(len(s.list)) {
			return nil, fmt.Errorf("metadata context %d was not selected", id)
		}
		for _, other := range ids[:i] {
			if id == other {
				return nil, fmt.Errorf("metadata context %d is named twice", id)
			}
		}
		list = append(list, s.list[id-1])
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("no metadata context is named")
	}
	return list, nil
}

// blockStatus answers with one chunk for each of the contexts, or with an error if
// one of them fails.
func (c *conn) blockStatus(r request, contexts []selected) {
	chunks := make([]*buffer, 0, len(contexts))
	for i, x := range contexts {
		var list []nbd.ExtendedDescriptor
		err := c.device(func() (err error) {
			list, err = c.statusOf(r, x)
			return err
		})
		if err != nil {
			for _, x := range chunks {
				x.release()
			}
			c.answer(r, err)
			return
		}
		flags := uint16(0)
		if i == len(contexts)-1 {
			flags = nbd.ReplyFlagDone
		}
		b := c.srv.buffers.get(statusSize(len(list)))
		b.b = c.appendStatus(b.b, r, flags, x.id, list)
		chunks = append(chunks, b)
	}
	c.out.send(chunks...)
}

// maxTold bounds the extents that one context is asked for, joined or not, so that a
// request of a whole disk does not keep a thread for minutes.
const maxTold = 1 << 20

// statusOf asks one context for its extents of the range of r, or the first of them.
func (c *conn) statusOf(r request, x selected) ([]nbd.ExtendedDescriptor, error) {
	limit := maxDescriptors
	if r.Flags&nbd.CmdFlagReqOne != 0 {
		limit = 1
	}
	var list []nbd.ExtendedDescriptor
	off, n := int64(r.Offset), int64(r.Length)
	next, told := off, 0
	add := func(e blockdev.Extent, flags uint32) bool {
		if told++; told > maxTold {
			return false
		}
		length := min(e.End(), off+n) - next // whatever a context of ours tells
		if length <= 0 {
			return next < off+n
		}
		if last := len(list) - 1; last >= 0 && list[last].Flags == uint64(flags) {
			list[last].Length += uint64(length)
		} else if len(list) < limit {
			list = append(list, nbd.ExtendedDescriptor{Length: uint64(length), Flags: uint64(flags)})
		} else {
			return false
		}
		next += length
		return true
	}
	var err error
	switch {
	case x.context != nil:
		err = x.context.Status(off, n, add)
	case c.exp.extents != nil:
		err = c.exp.extents.Extents(off, n, func(e blockdev.Extent, s blockdev.ExtentStatus) bool {
			return add(e, allocationFlags(s))
		})
	default:
		add(blockdev.Extent{Offset: off, Length: n}, 0)
	}
	if err == nil && len(list) == 0 {
		err = fmt.Errorf("metadata context %q tells nothing of %d bytes at %d", x.name, n, off)
	}
	return list, err
}

// allocationFlags are the flags of base:allocation.
func allocationFlags(s blockdev.ExtentStatus) (flags uint32) {
	if s.Hole {
		flags |= nbd.StateHole
	}
	if s.Zero {
		flags |= nbd.StateZero
	}
	return flags
}
