package client

import "testing"

func TestParseURI(t *testing.T) {
	for uri, want := range map[string]address{
		"nbd://host/web0":                        {"tcp", "host:10809", "web0"},
		"nbd://127.0.0.1:999/":                   {"tcp", "127.0.0.1:999", ""},
		"nbd://[::1]/a/b":                        {"tcp", "[::1]:10809", "a/b"},
		"nbd+unix:///web0?socket=/run/nbd.sock":  {"unix", "/run/nbd.sock", "web0"},
		"nbd+unix:///a%20b?socket=/tmp/a%26b":    {"unix", "/tmp/a&b", "a b"},
		"nbd+unix://?socket=relative":            {"unix", "relative", ""},
		"nbd+unix:///x?socket=/s&tls-unused=yes": {"unix", "/s", "x"},
	} {
		if got, err := parseURI(uri); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", uri, got, err, want)
		}
	}
	for _, uri := range []string{"", "web0", "http://host/", "nbds://host/x", "nbd:///x", "nbd+unix:///x", "nbd://%zz"} {
		if a, err := parseURI(uri); err == nil {
			t.Errorf("%q is taken for %+v", uri, a)
		}
	}
}
