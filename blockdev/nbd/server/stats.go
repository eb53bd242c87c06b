package server

import "sync/atomic"

// Stats are totals since New, save Connections and Exports, which are of now.
type Stats struct {
	Connections int // open, in the handshake or after it
	Exports     int

	Accepted          uint64 // connections
	HandshakesFailed  uint64 // ended before an export was chosen, other than by ABORT
	Requests          uint64 // all commands
	Reads, Writes     uint64
	Flushes           uint64 // FLUSH and FUA
	ReadBytes         uint64 // sent
	WriteBytes        uint64 // written
	PipedBytes        uint64 // of WriteBytes, those that went through a pipe; see pipe.go
	InlineReads       uint64 // answered without a worker
	SendfileReads     uint64
	WorkerRequests    uint64 // handed to a worker
	Errors            uint64 // error replies
	UnexpectedErrors  uint64 // those that no NBD error stands for, sent as EIO
	StalledClients    uint64 // connections cut by StallTimeout
	RefusedConnection uint64 // over MaxConnections
	BarrierWaits      uint64 // clients that had to wait for another connection; see barrier.go
	BarrierRefusals   uint64 // those that were refused after BarrierTimeout
}

func (a *Stats) add(b Stats) {
	a.Accepted += b.Accepted
	a.HandshakesFailed += b.HandshakesFailed
	a.Requests += b.Requests
	a.Reads += b.Reads
	a.Writes += b.Writes
	a.Flushes += b.Flushes
	a.ReadBytes += b.ReadBytes
	a.WriteBytes += b.WriteBytes
	a.PipedBytes += b.PipedBytes
	a.InlineReads += b.InlineReads
	a.SendfileReads += b.SendfileReads
	a.WorkerRequests += b.WorkerRequests
	a.Errors += b.Errors
	a.UnexpectedErrors += b.UnexpectedErrors
	a.StalledClients += b.StalledClients
	a.RefusedConnection += b.RefusedConnection
}

// Stats takes the totals of now.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	total := s.retired
	for c := range s.conns {
		total.add(c.counters.snapshot())
	}
	total.Connections, total.Exports = len(s.conns), len(s.exports)
	total.BarrierWaits, total.BarrierRefusals = s.barrierWaits.Load(), s.barrierRefusals.Load()
	return total
}

// counters are those of one connection, so that no two connections write to the
// same cache line.
type counters struct {
	handshakesFailed, requests, reads, writes, flushes    atomic.Uint64
	readBytes, writeBytes, pipedBytes                     atomic.Uint64
	inlineReads, sendfileReads, workerRequests            atomic.Uint64
	errors, unexpectedErrors, stalledClients, loggedLines atomic.Uint64
}

func (c *counters) snapshot() Stats {
	return Stats{
		Accepted:         1,
		HandshakesFailed: c.handshakesFailed.Load(),
		Requests:         c.requests.Load(),
		Reads:            c.reads.Load(),
		Writes:           c.writes.Load(),
		Flushes:          c.flushes.Load(),
		ReadBytes:        c.readBytes.Load(),
		WriteBytes:       c.writeBytes.Load(),
		PipedBytes:       c.pipedBytes.Load(),
		InlineReads:      c.inlineReads.Load(),
		SendfileReads:    c.sendfileReads.Load(),
		WorkerRequests:   c.workerRequests.Load(),
		Errors:           c.errors.Load(),
		UnexpectedErrors: c.unexpectedErrors.Load(),
		StalledClients:   c.stalledClients.Load(),
	}
}
