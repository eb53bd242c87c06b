// Package server serves Devices as exports of the Network Block Device protocol.
//
//	guest → nbd/server → cbt → localdisk
//	nbdcopy, qemu-img, restore → nbd/server → recovery point
//
// A [Server] holds the exports; [Server.Add] and [Server.Remove] change them while
// others are in use. [Server.Serve] accepts connections from a listener and may
// run for several at once; [Server.Shutdown] ends everything.
//
//	s := server.New(server.Options{Logger: log})
//	err := s.Add(server.Export{Name: "web0", Device: disk})
//	go s.Serve(ctx, listener)
//	…
//	err = s.Shutdown(ctx)
//
// [Server.ServeConn] serves one connection that the caller has.
//
// # What it speaks
//
// The fixed newstyle handshake with NO_ZEROES: EXPORT_NAME, GO, INFO, LIST, ABORT,
// STARTTLS, STRUCTURED_REPLY, EXTENDED_HEADERS, LIST_META_CONTEXT and
// SET_META_CONTEXT. READ with DF, WRITE, FLUSH, FUA, TRIM, WRITE_ZEROES with NO_HOLE
// and, where the Device is a blockdev.FastZeroer, FAST_ZERO, CACHE, BLOCK_STATUS with
// REQ_ONE, DISC. Any alignment. Block sizes 1, 4 KiB and 32 MiB are advertised, up to
// 64 MiB are served.
//
// With extended headers ranges have 64 bits, and BLOCK_STATUS may name some of its
// contexts in a payload. The metadata contexts are base:allocation and those of
// Export.Contexts; "base:", "qemu:" and "qemu:dirty-bitmap:" list all that begin so. A
// reply to BLOCK_STATUS has one chunk for each context that was selected.
//
// An error reply never ends a connection: the payload of a refused write is read
// and dropped, and with structured replies the error carries a text. Only bytes
// that are no request, and a client that stops in the middle of one, end it.
//
// # TLS
//
// [LoadTLS] reads a folder of certificates as qemu-nbd and nbdkit have it. A client
// that shows a certificate is Peer.CommonName to Options.Authorize, which decides at
// GO, INFO, EXPORT_NAME, LIST and the options of metadata contexts; a name that the
// client may not use is refused alike whether it exists or not. STARTTLS forgets all
// that was negotiated before it. Anything that stands behind it in plain text ends the
// connection, since a third party may have put it there. With Options.RequireTLS
// nothing but STARTTLS and ABORT is answered before it on TCP.
//
// # How a request is served
//
// One goroutine per connection reads whatever the socket has into one buffer,
// carries out each complete request at once if that cannot block, and writes all
// replies together when the buffer is used up. Measured at queue depth 32: a
// hand-off per request reaches 0.73–0.84 of nbdkit's rate, this passes it. What may
// wait for a disk goes to a worker goroutine: reads that are not in memory
// (blockdev.NowaitReader tells), everything on a Device that is no NowaitReader,
// flush, FUA, trim and zeroes. Workers are bounded per connection, running device
// requests per server, and buffers that wait for a slow client by
// Options.MaxInflightBytes.
//
// A large write is carried out in pieces of at most 256 KiB that do not cross a
// 256 KiB boundary of the disk (the stripes that the tracker locks). Each piece is
// read whole from the socket before the Device sees any of it, so nothing below
// ever waits for a socket, and a piece that does not arrive whole is not written. Where
// the Device is a blockdev.PipeWriter large pieces wait in a pipe, whose pages the
// kernel moves there, and not in a buffer (pipe.go).
// Large reads of file-backed Devices are sent by sendfile(2), but over TLS. There
// replies are gathered to full records, and many records go with one system call.
//
// # Durability
//
// FLUSH, and a request with FUA, is answered after Device.Flush returned. By the
// contract of blockdev.Device that covers what was acknowledged on any connection,
// which is what CAN_MULTI_CONN promises.
//
// # Connections that break, and come back
//
// A client that opens an export for writing is answered only when nothing of other
// connections can land on top of what it will write: see barrier.go. With
// Export.Exclusive the connections before it are cut. Shutdown leaves requests that it
// does not carry out unanswered, so that clients which reconnect send them to the next
// server; Remove answers them with ESHUTDOWN, as its export does not come back. A
// connection keeps the size it was told.
//
// # Bounds
//
// A client waits at most Options.BarrierTimeout for others, and is refused then.
// A handshake has Options.HandshakeTimeout in all. A client that stops in the
// middle of a request, or does not read its replies, is cut off after
// Options.StallTimeout without progress. TCP peers that vanish are found by
// keepalive and TCP_USER_TIMEOUT within 15 s. An idle connection costs a goroutine
// and no buffer, and may stay for ever.
//
// # Locking
//
// Server.mu guards the exports and connections and is held over no I/O.
// replies.mu, one per connection, guards the queue of replies; who sets
// replies.busy owns the writing side of the socket. fences.mu, one per connection,
// guards who waits for it. No goroutine holds two of them.
package server
