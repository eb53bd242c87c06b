// Package client opens an export of any NBD server as a blockdev.Device.
//
//	c, err := client.Dial(ctx, "nbd+unix:///web0?socket=/run/keelblock/nbd.sock")
//
// [Client] has many requests under way on its one connection: each caller sends
// its own and waits for its own reply. There is no goroutine behind it. One of the
// callers that wait reads the socket for all of them, straight into their buffers,
// and hands over when its own reply has come; so a request that is alone costs no
// switch of goroutines.
//
// nbds:// and nbds+unix:// speak TLS and show a client certificate; see [Dial].
//
// It asks for structured replies and base:allocation and does without them where
// the server has neither. Requests are split to the size that the server allows.
// A broken connection fails every request with the same error; there is no
// reconnect.
//
// Client.send guards the writing side of the socket, Client.mu the table of
// requests; mu may be taken while send is held, never the other way round.
package client
