package transit_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/keelblock/keelblock/appliance/transit"
	"github.com/keelblock/keelblock/appliance/transit/transittest"
)

var secret = []byte("thirty-two bytes of a secret key")

// client of the fake's key, with short waits.
func client(t *testing.T, s *transittest.Server, path string) *transit.Client {
	t.Helper()
	key, err := transit.ParseURL(s.URL + path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := transit.New(key, transit.Options{Token: func() (string, error) { return "hvs.test", nil }, CACert: s.CACert,
		Backoff: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestSecretsComeBackThroughEveryVersion(t *testing.T) {
	s := transittest.Start(t, true)
	c := client(t, s, "/transit/keelblock")
	ctx := context.Background()
	v1, err := c.Encrypt(ctx, secret)
	if err != nil {
		t.Fatal(err)
	}
	s.Rotate("keelblock")
	v2, err := c.Rewrap(ctx, v1)
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{v1: "v1", v2: "v2"} {
		if got, err := transit.Version(text); err != nil || got != want {
			t.Errorf("version of %s: %q, %v", text, got, err)
		}
		if got, err := c.Decrypt(ctx, text); err != nil || !bytes.Equal(got, secret) {
			t.Errorf("decrypt %s: %q, %v", want, got, err)
		}
	}
	s.Change(func(st *transittest.State) { st.MinDecryption = 2 })
	if _, err := c.Decrypt(ctx, v1); !errors.Is(err, transit.ErrRefused) || !strings.Contains(err.Error(), "too old") {
		t.Errorf("a version that is not allowed any more: %v", err)
	}
}

func TestErrorsOfTheService(t *testing.T) {
	cases := []struct {
		name     string
		path     string
		change   func(*transittest.State)
		want     error
		text     string
		requests int // how often the service is asked
	}{
		{"sealed", "/transit/keelblock", func(s *transittest.State) { s.Sealed = true }, transit.ErrUnreachable, "Vault is sealed (HTTP 503)", 4},
		{"a wrong token", "/transit/keelblock", func(s *transittest.State) { s.Token = "other" }, transit.ErrDenied, "permission denied (HTTP 403)", 1},
		{"another namespace", "/transit/keelblock?namespace=team", func(*transittest.State) {}, transit.ErrDenied, "permission denied", 1},
		{"a policy", "/transit/keelblock", func(s *transittest.State) { s.Denied["encrypt"] = true }, transit.ErrDenied, "permission denied", 1},
		{"no such key", "/transit/other", func(*transittest.State) {}, transit.ErrRefused, "encryption key not found (HTTP 400)", 1},
		{"no such engine", "/nothing/keelblock", func(*transittest.State) {}, transit.ErrRefused, "no handler for route", 0},
		{"trouble that stays", "/transit/keelblock", func(s *transittest.State) { s.Failures = 100 }, transit.ErrUnreachable, "internal error (HTTP 500)", 4},
	}
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			s := transittest.Start(t, true)
			s.Change(tt.change)
			c := client(t, s, tt.path)
			_, err := c.Encrypt(context.Background(), secret)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) || !strings.Contains(err.Error(), s.URL) {
				t.Errorf("%v", err)
			}
			if strings.Contains(err.Error(), "hvs.test") {
				t.Errorf("the token is in the error: %v", err)
			}
			s.Change(func(st *transittest.State) {
				n := 0
				for _, k := range st.Requests {
					n += k
				}
				if n != tt.requests {
					t.Errorf("%d requests: %v", n, st.Requests)
				}
			})
		})
	}
}

func TestTroubleThatPassesIsOvercome(t *testing.T) {
	s := transittest.Start(t, true)
	s.Change(func(st *transittest.State) { st.Failures = 3 })
	c := client(t, s, "/transit/keelblock")
	text, err := c.Encrypt(context.Background(), secret)
	if err != nil {
		t.Fatal(err)
	}
	s.Change(func(st *transittest.State) { st.Failures = 2; st.Namespace = "team" })
	c = client(t, s, "/transit/keelblock?namespace=team")
	if got, err := c.Decrypt(context.Background(), text); err != nil || !bytes.Equal(got, secret) {
		t.Fatal(got, err)
	}
}

func TestCertificateOfAnotherAuthorityIsDenied(t *testing.T) {
	s := transittest.Start(t, true)
	s.CACert = nil
	if _, err := client(t, s, "/transit/keelblock").Encrypt(context.Background(), secret); !errors.Is(err, transit.ErrDenied) {
		t.Errorf("%v", err)
	}
	s.Change(func(st *transittest.State) {
		if len(st.Requests) > 0 {
			t.Error("a request was sent")
		}
	})
	if _, err := transit.New(transit.Key{}, transit.Options{CACert: []byte("nothing")}); err == nil {
		t.Error("an authority without a certificate is taken")
	}
}

func TestServiceThatIsNotThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	c := client(t, &transittest.Server{URL: "http://" + l.Addr().String()}, "/transit/keelblock")
	if _, err := c.Decrypt(context.Background(), "vault:v1:AA"); !errors.Is(err, transit.ErrUnreachable) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := c.Decrypt(ctx, "vault:v1:AA"); !errors.Is(err, context.Canceled) {
		t.Errorf("a call that was ended: %v", err)
	}
}

// A service that answers with anything is not believed.
func TestAnswersThatMakeNoSense(t *testing.T) {
	var body string
	status := 200
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if status == 307 {
			w.Header().Set("Location", body)
		}
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}))
	defer h.Close()
	c := client(t, &transittest.Server{URL: h.URL}, "/transit/keelblock")
	for _, body = range []string{"", "null", "[]", "<html>", `{"data":{}}`, `{"data":{"plaintext":"","ciphertext":"v1"}}`, `{"data":{"plaintext":"%","ciphertext":"vault:x:y"}}`} {
		if _, err := c.Decrypt(context.Background(), "vault:v1:AA"); !errors.Is(err, transit.ErrRefused) {
			t.Errorf("decrypt, answered with %q: %v", body, err)
		}
		if _, err := c.Encrypt(context.Background(), secret); !errors.Is(err, transit.ErrRefused) {
			t.Errorf("encrypt, answered with %q: %v", body, err)
		}
	}
	status, body = 307, h.URL+"/v1/transit/encrypt/keelblock"
	if _, err := c.Encrypt(context.Background(), secret); err == nil || !strings.Contains(err.Error(), "is not followed") {
		t.Errorf("pointed at itself for ever: %v", err)
	}
}

func TestAddresses(t *testing.T) {
	good := map[string]transit.Key{
		"https://kms.example:8200/transit/k":                    {Address: "https://kms.example:8200", Mount: "transit", Name: "k"},
		"https://kms.example/v1/transit/keys/k":                 {Address: "https://kms.example", Mount: "transit", Name: "k"},
		"https://kms.example/v1/team/transit/k?namespace=a%2Fb": {Address: "https://kms.example", Mount: "team/transit", Name: "k", Namespace: "a/b"},
		"http://127.0.0.1:8200/transit/k":                       {Address: "http://127.0.0.1:8200", Mount: "transit", Name: "k"},
	}
	for s, want := range good {
		got, err := transit.ParseURL(s)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", s, got, err)
		}
		if again, err := transit.ParseURL(got.String()); err != nil || again != got {
			t.Errorf("%s: printed as %s: %+v, %v", s, got, again, err)
		}
	}
	for _, s := range []string{"", "kms.example", "ftp://kms.example/transit/k", "http://kms.example/transit/k", "https://kms.example/k",
		"https://kms.example/transit/", "https://tok:en@kms.example/transit/k", "https://kms.example/transit/../k", "https://kms.example/transit/k?x=1", "https://kms.example/transit/k#x", "https://:x/\x7f"} {
		if k, err := transit.ParseURL(s); err == nil {
			t.Errorf("%q is taken for %+v", s, k)
		} else if strings.Contains(err.Error(), "tok:en") {
			t.Errorf("a secret is in the error: %v", err)
		}
	}
	for _, s := range []string{"", "vault:", "vault:v1:", "vault:1:x", "vault:v:x", "vault:v1x:x", "other:v1:x"} {
		if v, err := transit.Version(s); err == nil {
			t.Errorf("version of %q: %q", s, v)
		}
	}
}
