package client

import "testing"

func TestParseURI(t *testing.T) {
	for uri, want := range map[string]address{
		"nbd://host/web0":                         {"tcp", "host:10809", "web0", security{}},
		"nbd://127.0.0.1:999/":                    {"tcp", "127.0.0.1:999", "", security{}},
		"nbd://[::1]/a/b":                         {"tcp", "[::1]:10809", "a/b", security{}},
		"nbd+unix:///web0?socket=/run/nbd.sock":   {"unix", "/run/nbd.sock", "web0", security{}},
		"nbd+unix:///a%20b?socket=/tmp/a%26b":     {"unix", "/tmp/a&b", "a b", security{}},
		"nbd+unix://?socket=relative":             {"unix", "relative", "", security{}},
		"nbd+unix:///x?socket=/s&tls-hostname=no": {"unix", "/s", "x", security{}},
		"nbds://host/x":                           {"tcp", "host:10809", "x", security{true, "", "host"}},
		"nbds://[::1]:9/x?tls-certificates=%2Fa":  {"tcp", "[::1]:9", "x", security{true, "/a", "::1"}},
		"nbds+unix:///x?socket=/s":                {"unix", "/s", "x", security{true, "", "localhost"}},
		"nbds+unix:///x?socket=/s&tls-hostname=h": {"unix", "/s", "x", security{true, "", "h"}},
	} {
		if got, err := parseURI(uri); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", uri, got, err, want)
		}
	}
	for _, uri := range []string{"", "web0", "http://host/", "nbdss://host/x", "nbds:///x", "nbd:///x", "nbd+unix:///x", "nbd://%zz"} {
		if a, err := parseURI(uri); err == nil {
			t.Errorf("%q is taken for %+v", uri, a)
		}
	}
}
