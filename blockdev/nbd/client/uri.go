package client

import (
	"fmt"
	"net"
	"net/url"
	"strings"
)

// address is what an NBD URI names.
type address struct {
	network, addr string
	export        string
}

// parseURI reads the URIs of doc/uri.md of the NBD project, without TLS:
// nbd://HOST[:PORT]/NAME and nbd+unix:///NAME?socket=PATH.
func parseURI(uri string) (address, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return address{}, err
	}
	export := strings.TrimPrefix(u.Path, "/")
	switch u.Scheme {
	case "nbd":
		host, port := u.Hostname(), u.Port()
		if host == "" {
			return address{}, fmt.Errorf("no host in %q", uri)
		}
		if port == "" {
			port = "10809" // the port that IANA has given to NBD
		}
		return address{"tcp", net.JoinHostPort(host, port), export}, nil
	case "nbd+unix":
		path := u.Query().Get("socket")
		if path == "" {
			return address{}, fmt.Errorf("no socket in %q: write nbd+unix:///NAME?socket=PATH", uri)
		}
		return address{"unix", path, export}, nil
	}
	return address{}, fmt.Errorf("%q is neither nbd://HOST:PORT/NAME nor nbd+unix:///NAME?socket=PATH", uri)
}
