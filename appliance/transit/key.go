package transit

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
)

// Key is a key of a transit engine: where it is, and nothing secret.
type Key struct {
	// Address of the service: scheme and host.
	Address string
	// Mount is the path of the engine, usually "transit".
	Mount string
	// Name of the key in the engine.
	Name string
	// Namespace of the engine, or "".
	Namespace string
}

// ParseURL reads "https://HOST:PORT/MOUNT/NAME", with "?namespace=NS" if there is one. The
// forms that the service's own pages use, /v1/MOUNT/keys/NAME among them, mean the same.
// Without TLS only this machine is spoken to: a token on the wire is as good as the key.
func ParseURL(s string) (Key, error) {
	u, err := url.Parse(s)
	if err != nil {
		return Key{}, fmt.Errorf("address %q of a key: %w", s, err)
	}
	bad := func(why string) (Key, error) {
		return Key{}, fmt.Errorf("address %q of a key: %s; write https://HOST:PORT/MOUNT/NAME", u.Redacted(), why)
	}
	query := u.Query()
	namespace := query.Get("namespace")
	query.Del("namespace")
	switch {
	case u.User != nil:
		return bad("a token does not belong into it")
	case u.Host == "":
		return bad("it has no host")
	case u.Scheme != "https" && u.Scheme != "http":
		return bad("it is neither https nor http")
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return bad("without TLS only this machine may be spoken to")
	case len(query) > 0 || u.Fragment != "":
		return bad("it may have ?namespace= and nothing else behind the name")
	}
	parts := strings.Split(strings.Trim(u.Path, "/"), "/")
	if len(parts) > 2 && parts[0] == "v1" {
		parts = parts[1:]
	}
	if n := len(parts); n > 2 && parts[n-2] == "keys" {
		parts = append(parts[:n-2:n-2], parts[n-1])
	}
	for _, p := range parts {
		if p == "" || p == "." || p == ".." {
			return bad("a part of its path is empty")
		}
	}
	if len(parts) < 2 {
		return bad("it has no name of a key")
	}
	n := len(parts)
	return Key{Address: u.Scheme + "://" + u.Host, Mount: strings.Join(parts[:n-1], "/"), Name: parts[n-1], Namespace: namespace}, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// String is the address that ParseURL reads.
func (k Key) String() string {
	s := k.Address + "/" + k.Mount + "/" + k.Name
	if k.Namespace != "" {
		s += "?namespace=" + url.QueryEscape(k.Namespace)
	}
	return s
}

// Version is the version of the key that made a ciphertext, "v3", or an error when it is
// none.
func Version(ciphertext string) (string, error) {
	f := strings.SplitN(ciphertext, ":", 3)
	if len(f) != 3 || f[0] != "vault" || len(f[1]) < 2 || f[1][0] != 'v' || strings.Trim(f[1][1:], "0123456789") != "" || f[2] == "" {
		return "", errors.New("a ciphertext of the transit engine begins with vault:v1:")
	}
	return f[1], nil
}
