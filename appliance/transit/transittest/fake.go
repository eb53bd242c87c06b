// Package transittest is a key-management service for tests: a server that answers the
// requests of the transit secrets engine as HashiCorp Vault 1.x documents them, with real
// keys of several versions, tokens, namespaces, a seal, and its errors.
package transittest

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// Server is a fake service. The fields may be changed between requests with Change.
type Server struct {
	// URL of the service, without a path.
	URL string
	// CACert is PEM, of a server with TLS.
	CACert []byte

	mu sync.Mutex
	State
}

// State is what a test may change.
type State struct {
	Token     string // the only one that is known
	Namespace string
	Sealed    bool
	Denied    map[string]bool // "decrypt" …: the token's policy forbids it
	Failures  int             // so many requests are answered with 500 first
	// MinDecryption is the oldest version that decrypt takes.
	MinDecryption int
	// Requests counts "VERB NAME".
	Requests map[string]int

	keys map[string][][]byte // name → versions, the first is v1
}

// Start runs a server until the test ends. With tls it has a certificate of its own,
// signed by CACert.
func Start(t testing.TB, tls bool) *Server {
	t.Helper()
	s := &Server{State: State{Token: "hvs.test", MinDecryption: 1, Denied: map[string]bool{},
		Requests: map[string]int{}, keys: map[string][][]byte{}}}
	h := httptest.NewUnstartedServer(s)
	if tls {
		h.StartTLS()
		s.CACert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.Certificate().Raw})
	} else {
		h.Start()
	}
	s.URL = h.URL
	t.Cleanup(h.Close)
	s.Rotate("keelblock")
	return s
}

// Change calls fn while no request is being answered.
func (s *Server) Change(fn func(*State)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn(&s.State)
}

// Rotate makes a new version of a key, the first one too.
func (s *Server) Rotate(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := make([]byte, 32)
	rand.Read(key)
	s.keys[name] = append(s.keys[name], key)
}

// ServeHTTP answers POST /v1/transit/VERB/NAME.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fail := func(status int, text string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string][]string{"errors": {text}})
	}
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/v1/transit/"), "/")
	if len(parts) != 2 || !strings.HasPrefix(r.URL.Path, "/v1/transit/") {
		fail(404, fmt.Sprintf("no handler for route %q. route entry not found.", strings.TrimPrefix(r.URL.Path, "/v1/")))
		return
	}
	verb, name := parts[0], parts[1]
	s.Requests[verb+" "+name]++
	switch {
	case s.Failures > 0:
		s.Failures--
		fail(500, "internal error")
	case s.Sealed:
		fail(503, "Vault is sealed")
	case r.Method != http.MethodPost:
		fail(405, "unsupported operation")
	case r.Header.Get("X-Vault-Token") != s.Token || r.Header.Get("X-Vault-Namespace") != s.Namespace || s.Denied[verb]:
		fail(403, "1 error occurred:\n\t* permission denied\n\n")
	case s.keys[name] == nil:
		fail(400, "encryption key not found")
	default:
		s.answer(w, r, verb, s.keys[name], fail)
	}
}

func (s *Server) answer(w http.ResponseWriter, r *http.Request, verb string, versions [][]byte, fail func(int, string)) {
	var q struct{ Plaintext, Ciphertext string }
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		fail(400, "failed to parse JSON input: "+err.Error())
		return
	}
	data := map[string]any{}
	var secret []byte
	var err error
	switch verb {
	case "encrypt":
		secret, err = base64.StdEncoding.DecodeString(q.Plaintext)
		if err != nil {
			fail(400, "failed to base64-decode plaintext")
			return
		}
	case "decrypt", "rewrap":
		if secret, err = s.decrypt(q.Ciphertext, versions); err != nil {
			fail(400, err.Error())
			return
		}
	default:
		fail(404, "unsupported path")
		return
	}
	if verb == "decrypt" {
		data["plaintext"] = base64.StdEncoding.EncodeToString(secret)
	} else {
		gcm := aead(versions[len(versions)-1])
		data["ciphertext"] = fmt.Sprintf("vault:v%d:%s", len(versions), base64.StdEncoding.EncodeToString(gcm.Seal(nil, nil, secret, nil)))
		data["key_version"] = len(versions)
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"request_id": "test", "lease_id": "", "renewable": false, "data": data})
}

func (s *Server) decrypt(ciphertext string, versions [][]byte) ([]byte, error) {
	rest, ok := strings.CutPrefix(ciphertext, "vault:v")
	v, text, ok2 := strings.Cut(rest, ":")
	n, err := strconv.Atoi(v)
	if !ok || !ok2 || err != nil {
		return nil, fmt.Errorf("invalid ciphertext: no prefix")
	}
	switch {
	case n > len(versions) || n < 1:
		return nil, fmt.Errorf("invalid ciphertext: version is too new")
	case n < s.MinDecryption:
		return nil, fmt.Errorf("ciphertext or signature version is disallowed by policy (too old)")
	}
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("invalid ciphertext: could not decode base64")
	}
	secret, err := aead(versions[n-1]).Open(nil, nil, b, nil)
	if err != nil {
		return nil, fmt.Errorf("cipher: message authentication failed")
	}
	return secret, nil
}

// aead is AES-256-GCM whose nonce is part of the ciphertext.
func aead(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	gcm, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	return gcm
}
