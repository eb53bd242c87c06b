package server

import (
	"sync"

	"golang.org/x/sync/semaphore"
)

const (
	// stripeBytes is the largest piece of a write, and the boundary that none
	// crosses: the range that the tracker locks at once.
	stripeBytes = 256 << 10
	// slackBytes of a large buffer stand beside a stripe, so that a request header
	// before a piece, or a reply header, does not cost a second buffer.
	slackBytes = 4 << 10
	// bulkBytes is the largest piece of a read from a Device that computes what it
	// returns, and does it better the more it is asked for at once. In pieces of a
	// stripe a point's blocks went out four at a time.
	bulkBytes = 1 << 20
)

// bufferSizes are the classes of pooled buffers: a handshake or one small reply;
// a middling one; a batch of replies, a stripe, the read buffer of a connection; a
// bulk read.
var bufferSizes = [...]int{8 << 10, 64<<10 + slackBytes, stripeBytes + slackBytes, bulkBytes + slackBytes}

const largeBuffer = stripeBytes + slackBytes

// bufferPools keep buffers between requests.
type bufferPools [len(bufferSizes)]sync.Pool

// buffer is a pooled byte slice with one owner, who passes it on or releases it.
type buffer struct {
	b     []byte
	class int
	pools *bufferPools
	// charge is what the buffer takes from budget, if it does.
	charge int64
	budget *semaphore.Weighted
}

// get returns an empty buffer with room for n bytes, n <= bulkBytes+slackBytes.
func (p *bufferPools) get(n int) *buffer {
	class := 0
	for bufferSizes[class] < n {
		class++
	}
	if x, ok := p[class].Get().(*buffer); ok {
		return x
	}
	return &buffer{b: make([]byte, 0, bufferSizes[class]), class: class, pools: p}
}

// release gives the buffer and its charge back. The caller must not use it again.
func (x *buffer) release() {
	if x.charge > 0 {
		x.budget.Release(x.charge)
	}
	x.charge, x.budget, x.b = 0, nil, x.b[:0]
	x.pools[x.class].Put(x)
}

// free is the room that is left.
func (x *buffer) free() int { return cap(x.b) - len(x.b) }
