// Package relay passes one NBD connection on to an export of another server.
//
//	nbdcopy → keelblock nbd web0 --stdio → relay → nbd.sock of the daemon
//
// The client sees a server with one export, whatever else the other server has: the
// names "" and the export's own both mean it, others do not exist, and a list holds it
// alone. A [Relay] reads the options of the handshake one by one, names the export in
// each, passes it on and waits for the replies. When the client has chosen the export
// the relay only moves bytes, so everything that both sides have agreed on holds:
// structured replies, extended headers, metadata contexts, FLUSH and FUA, the reconnect
// barrier. STARTTLS is refused, as the relay could not read on.
//
// An option may have 64 KiB of data. A Relay keeps no state between connections.
package relay
