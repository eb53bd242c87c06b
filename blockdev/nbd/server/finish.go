package server

import "time"

// finishFor bounds how long a connection that is asked to stop goes on while its client
// keeps it busy.
const finishFor = 2 * time.Second

// finish carries out what the client has sent by now, and what it sends meanwhile, until
// there is a moment at which nothing is under way.
//
// A client that repeats at once what was not answered needs none of it. The kernel's nbd
// driver repeats a request that it has sent only when that has timed out, 30 s later,
// but at once one that it could not send any more. So for its connections (ServeConn) the
// moment at which the socket closes makes the difference.
func (c *conn) finish() {
	end := time.Now().Add(finishFor)
	for c.ctx.Err() == nil && time.Now().Before(end) {
		if c.in.buffered() == 0 {
			c.flush()
			c.workers.Wait()
			if n, ok := c.sock.held(); !ok || n == 0 {
				return
			}
		}
		c.passFences(false, false)
		c.sock.resume(end)
		r, err := c.readRequest()
		if err != nil || c.carryOut(r) != nil {
			return // what was half sent is not answered
		}
	}
}
