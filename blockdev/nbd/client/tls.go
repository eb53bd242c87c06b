package client

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/keelblock/keelblock/blockdev/nbd"
)

// security is what an NBD URI says of TLS.
type security struct {
	on           bool
	certificates string // a folder; "" for the authorities of this machine
	hostname     string // what the certificate of the server must be for
}

// LoadTLS reads a folder of certificates for a client, with the names that qemu and
// libnbd have for them: ca-cert.pem, whose authorities must have signed the server's
// certificate, and client-cert.pem with client-key.pem, which show the server who we
// are; these two may be missing. TLS is 1.2 or later.
func LoadTLS(dir string) (*tls.Config, error) {
	c, err := loadTLS(dir)
	if err != nil {
		return nil, fmt.Errorf("load certificates from %q: %w", dir, err)
	}
	return c, nil
}

func loadTLS(dir string) (*tls.Config, error) {
	ca, err := os.ReadFile(filepath.Join(dir, "ca-cert.pem"))
	if err != nil {
		return nil, fmt.Errorf("read ca-cert.pem: %w", reason(err))
	}
	c := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12, DynamicRecordSizingDisabled: true}
	if !c.RootCAs.AppendCertsFromPEM(ca) {
		return nil, errors.New("ca-cert.pem: no certificate in PEM form")
	}
	cert, certErr := os.ReadFile(filepath.Join(dir, "client-cert.pem"))
	key, keyErr := os.ReadFile(filepath.Join(dir, "client-key.pem"))
	switch {
	case errors.Is(certErr, os.ErrNotExist) && errors.Is(keyErr, os.ErrNotExist):
		return c, nil
	case certErr != nil:
		return nil, fmt.Errorf("read client-cert.pem: %w", reason(certErr))
	case keyErr != nil:
		return nil, fmt.Errorf("read client-key.pem: %w", reason(keyErr))
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("client-cert.pem and client-key.pem: %w", err)
	}
	c.Certificates = []tls.Certificate{pair}
	return c, nil
}

// reason is an error of the file system without the path, which LoadTLS names.
func reason(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// config is the configuration for crypto/tls.
func (s security) config() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, DynamicRecordSizingDisabled: true}
	if s.certificates != "" {
		var err error
		if c, err = LoadTLS(s.certificates); err != nil {
			return nil, err
		}
	}
	c.ServerName = s.hostname
	return c, nil
}

// startTLS goes over to TLS, or fails: who asked for it does not go on in plain text.
func (c *Client) startTLS(config *tls.Config) error {
	if err := c.option(nbd.OptStartTLS, nil, func(uint32, []byte) error { return nil }); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	if n := c.read.Buffered(); n > 0 {
		// In plain text, perhaps of somebody in the middle: never to be read as if it
		// had come encrypted.
		return fmt.Errorf("TLS: the server sends %d bytes before the TLS handshake", n)
	}
	tc := tls.Client(c.nc, config)
	if err := tc.Handshake(); err != nil {
		return fmt.Errorf("TLS handshake: %w", noEOF(err))
	}
	c.nc = tc
	c.read.Reset(tc)
	c.encrypted = true
	return nil
}

// recordBytes is the most that one TLS record carries.
const recordBytes = 16 << 10

// writeEncrypted is write over TLS: the head of the request shares a record with the
// beginning of its payload.
func (c *Client) writeEncrypted(payload []byte) error {
	n := min(len(payload), recordBytes-len(c.scratch))
	c.scratch = append(c.scratch, payload[:n]...)
	_, err := c.nc.Write(c.scratch)
	if err == nil && n < len(payload) {
		_, err = c.nc.Write(payload[n:])
	}
	clear(c.scratch) // nothing of the caller's is kept
	return err
}
