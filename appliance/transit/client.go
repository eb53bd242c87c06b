package transit

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// The classes of errors.
var (
	// ErrUnreachable: no answer, or one that a later attempt may change (sealed, standby,
	// overloaded).
	ErrUnreachable = errors.New("key-management service is not reachable")
	// ErrDenied: the token is missing, wrong, expired, or its policy does not allow it.
	ErrDenied = errors.New("key-management service denied it")
	// ErrRefused: the request cannot be right: no such key or engine, a ciphertext of
	// another key, a version that is not allowed any more.
	ErrRefused = errors.New("key-management service refused it")
)

// Error is what the service, or the way to it, said.
type Error struct {
	Op     string // "decrypt with key https://…"
	Status int    // of HTTP; 0 when there was no answer
	Text   string
	Kind   error // one of the classes
	Err    error // of the connection, or nil
}

// Error names the key, and gives the service's words.
func (e *Error) Error() string {
	text := e.Text
	if e.Err != nil {
		text = e.Err.Error()
	}
	if e.Status != 0 {
		text = fmt.Sprintf("%s (HTTP %d)", text, e.Status)
	}
	return fmt.Sprintf("%s: %v: %s", e.Op, e.Kind, text)
}

// Unwrap gives the class and the cause.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// Options of a Client. The zero value is usable, save for Token.
type Options struct {
	// Token is asked for at each request, since whoever renews it may have written
	// another one meanwhile.
	Token func() (string, error)
	// CACert is PEM: who signs the service's certificate. nil: the system's authorities.
	CACert []byte
	// Timeout of one attempt; 0 is 5 s.
	Timeout time.Duration
	// Attempts of one call; 0 is 4.
	Attempts int
	// Backoff before the second attempt, doubled before each further one; 0 is 250 ms.
	Backoff time.Duration
}

// Client uses one key. Its methods may be called from any number of goroutines.
type Client struct {
	key  Key
	o    Options
	http *http.Client
}

const (
	// maxAnswer bounds an answer: a wrapped key takes some hundred bytes.
	maxAnswer = 1 << 20
	// maxRedirects: a standby node points at the active one.
	maxRedirects = 3
)

// New makes the client of a key. Nothing is sent.
func New(key Key, o Options) (*Client, error) {
	if o.Timeout == 0 {
		o.Timeout = 5 * time.Second
	}
	if o.Attempts == 0 {
		o.Attempts = 4
	}
	if o.Backoff == 0 {
		o.Backoff = 250 * time.Millisecond
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	t.DisableKeepAlives = true // there is one request in months
	if o.CACert != nil {
		t.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(o.CACert) {
			return nil, errors.New("the authority of the key-management service: no PEM block CERTIFICATE")
		}
	}
	return &Client{key: key, o: o, http: &http.Client{Transport: t, Timeout: o.Timeout, CheckRedirect: checkRedirect}}, nil
}

// checkRedirect follows a standby node's pointer, but never out of TLS: the token goes
// along.
func checkRedirect(r *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects || via[0].URL.Scheme == "https" && r.URL.Scheme != "https" {
		return fmt.Errorf("it points at %s, which is not followed", r.URL.Redacted())
	}
	return nil
}

type request struct {
	Plaintext  string `json:"plaintext,omitempty"`
	Ciphertext string `json:"ciphertext,omitempty"`
}

type answer struct {
	Data struct {
		Plaintext  string `json:"plaintext"`
		Ciphertext string `json:"ciphertext"`
	} `json:"data"`
	Errors []string `json:"errors"`
}

// Encrypt gives the ciphertext of a small secret, made with the newest version of the key.
func (c *Client) Encrypt(ctx context.Context, secret []byte) (ciphertext string, err error) {
	a, err := c.call(ctx, "encrypt", request{Plaintext: base64.StdEncoding.EncodeToString(secret)})
	if err != nil {
		return "", err
	}
	return c.ciphertext("encrypt", a)
}

// Decrypt gives the secret back.
func (c *Client) Decrypt(ctx context.Context, ciphertext string) (secret []byte, err error) {
	a, err := c.call(ctx, "decrypt", request{Ciphertext: ciphertext})
	if err != nil {
		return nil, err
	}
	secret, err = base64.StdEncoding.DecodeString(a.Data.Plaintext)
	if err == nil && len(secret) == 0 {
		err = errors.New("it is empty")
	}
	if err != nil {
		return nil, c.failed("decrypt", &Error{Text: "the plaintext in its answer cannot be read: " + err.Error(), Kind: ErrRefused})
	}
	return secret, nil
}

// Rewrap turns a ciphertext into one of the newest version of the key. The secret does
// not leave the service.
func (c *Client) Rewrap(ctx context.Context, ciphertext string) (string, error) {
	a, err := c.call(ctx, "rewrap", request{Ciphertext: ciphertext})
	if err != nil {
		return "", err
	}
	return c.ciphertext("rewrap", a)
}

func (c *Client) ciphertext(verb string, a *answer) (string, error) {
	if _, err := Version(a.Data.Ciphertext); err != nil {
		return "", c.failed(verb, &Error{Text: "its answer has no ciphertext: " + err.Error(), Kind: ErrRefused})
	}
	return a.Data.Ciphertext, nil
}

func (c *Client) failed(verb string, e *Error) *Error {
	e.Op = verb + " with key " + c.key.String()
	return e
}

// call makes a request until it is answered, refused, or the attempts are used up.
func (c *Client) call(ctx context.Context, verb string, q request) (*answer, error) {
	body, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	wait := c.o.Backoff
	for attempt := 1; ; attempt++ {
		a, e := c.once(ctx, verb, body)
		if e == nil {
			return a, nil
		}
		if e.Kind != ErrUnreachable || attempt == c.o.Attempts || ctx.Err() != nil {
			return nil, c.failed(verb, e)
		}
		select {
		case <-time.After(wait + rand.N(wait/2+1)): // spread what many daemons ask after an outage
		case <-ctx.Done():
			return nil, c.failed(verb, e)
		}
		wait *= 2
	}
}

// once is one attempt.
func (c *Client) once(ctx context.Context, verb string, body []byte) (*answer, *Error) {
	token, err := c.o.Token()
	if err != nil {
		return nil, &Error{Kind: ErrDenied, Err: err}
	}
	path := fmt.Sprintf("%s/v1/%s/%s/%s", c.key.Address, c.key.Mount, verb, url.PathEscape(c.key.Name))
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, path, bytes.NewReader(body))
	if err != nil {
		return nil, &Error{Kind: ErrRefused, Err: err}
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-Vault-Request", "true") // the service may ask for it, against forged requests of browsers
	r.Header.Set("X-Vault-Token", token)
	if c.key.Namespace != "" {
		r.Header.Set("X-Vault-Namespace", c.key.Namespace)
	}
	res, err := c.http.Do(r)
	if err != nil {
		kind := ErrUnreachable
		var cert *tls.CertificateVerificationError
		if errors.As(err, &cert) {
			kind = ErrDenied
		}
		return nil, &Error{Kind: kind, Err: err}
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return nil, &Error{Status: res.StatusCode, Kind: ErrUnreachable, Err: err}
	}
	var a answer
	err = json.Unmarshal(data, &a)
	if res.StatusCode != http.StatusOK {
		return nil, &Error{Status: res.StatusCode, Text: words(a.Errors, res.Status), Kind: kindOf(res.StatusCode)}
	}
	if err != nil {
		return nil, &Error{Status: res.StatusCode, Kind: ErrRefused, Err: fmt.Errorf("its answer cannot be read: %w", err)}
	}
	return &a, nil
}

// kindOf sorts the service's statuses. 412, 472 and 473 are those of nodes that lag
// behind or stand by, 503 that of a sealed one.
func kindOf(status int) error {
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return ErrDenied
	case http.StatusPreconditionFailed, http.StatusTooManyRequests, http.StatusRequestTimeout, 472, 473:
		return ErrUnreachable
	}
	if status >= 500 {
		return ErrUnreachable
	}
	return ErrRefused
}

// words are the service's errors in one line.
func words(errs []string, status string) string {
	if len(errs) == 0 {
		return status
	}
	return strings.Join(strings.Fields(strings.Join(errs, "; ")), " ")
}
