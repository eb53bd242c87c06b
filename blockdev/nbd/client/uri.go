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
	tls           security
}

// parseURI reads the URIs of doc/uri.md of the NBD project:
// nbd://HOST[:PORT]/NAME and nbd+unix:///NAME?socket=PATH, with nbds in place of nbd
// for TLS; see Dial.
func parseURI(uri string) (address, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return address{}, err
	}
	query := u.Query()
	a := address{export: strings.TrimPrefix(u.Path, "/")}
	scheme, encrypted := u.Scheme, false
	if rest, ok := strings.CutPrefix(scheme, "nbds"); ok {
		scheme, encrypted = "nbd"+rest, true
	}
	switch scheme {
	case "nbd":
		host, port := u.Hostname(), u.Port()
		if host == "" {
			return address{}, fmt.Errorf("no host in %q", uri)
		}
		if port == "" {
			port = "10809" // the port that IANA has given to NBD
		}
		a.network, a.addr = "tcp", net.JoinHostPort(host, port)
		a.tls.hostname = host
	case "nbd+unix":
		path := query.Get("socket")
		if path == "" {
			return address{}, fmt.Errorf("no socket in %q: write %s:///NAME?socket=PATH", uri, u.Scheme)
		}
		a.network, a.addr = "unix", path
		a.tls.hostname = "localhost"
	default:
		return address{}, fmt.Errorf("%q is neither nbd://HOST:PORT/NAME nor nbd+unix:///NAME?socket=PATH, nor the same with nbds", uri)
	}
	if !encrypted {
		a.tls = security{}
		return a, nil
	}
	a.tls.on, a.tls.certificates = true, query.Get("tls-certificates")
	if name := query.Get("tls-hostname"); name != "" {
		a.tls.hostname = name
	}
	return a, nil
}
