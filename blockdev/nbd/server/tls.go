package server

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/keelblock/keelblock/blockdev/nbd"
)

// Names of the files in a folder of certificates, those of qemu-nbd and nbdkit.
const (
	caCertFile     = "ca-cert.pem"
	caCRLFile      = "ca-crl.pem"
	serverCertFile = "server-cert.pem"
	serverKeyFile  = "server-key.pem"
)

// LoadTLS reads a folder of certificates for Options.TLS. server-cert.pem, with the
// chain up to the authority if there are others between, and server-key.pem must be
// there. With ca-cert.pem clients must show a certificate that one of its authorities
// has signed for the use by clients, and that ca-crl.pem, if it is there, does not
// revoke; without it anybody may connect, encrypted but unknown. So unlike qemu-nbd
// and nbdkit no switch beside the folder decides whether clients are verified.
//
// TLS is 1.2 or later. Sessions are not resumed: connections live long, and a ticket
// would outlive a revocation.
func LoadTLS(dir string) (*tls.Config, error) {
	c, err := loadTLS(dir)
	if err != nil {
		return nil, fmt.Errorf("load certificates from %q: %w", dir, err)
	}
	return c, nil
}

func loadTLS(dir string) (*tls.Config, error) {
	cert, err := os.ReadFile(filepath.Join(dir, serverCertFile))
	if err != nil {
		return nil, readError(serverCertFile, err)
	}
	key, err := os.ReadFile(filepath.Join(dir, serverKeyFile))
	if err != nil {
		return nil, readError(serverKeyFile, err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w", serverCertFile, serverKeyFile, err)
	}
	c := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, SessionTicketsDisabled: true}
	crl, crlErr := os.ReadFile(filepath.Join(dir, caCRLFile))
	if crlErr != nil && !errors.Is(crlErr, os.ErrNotExist) {
		return nil, readError(caCRLFile, crlErr)
	}
	ca, err := os.ReadFile(filepath.Join(dir, caCertFile))
	if errors.Is(err, os.ErrNotExist) {
		if crlErr == nil {
			return nil, fmt.Errorf("%s is there without %s, so no client would be verified", caCRLFile, caCertFile)
		}
		return c, nil
	}
	if err != nil {
		return nil, readError(caCertFile, err)
	}
	authorities, err := parseCertificates(ca)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", caCertFile, err)
	}
	c.ClientCAs, c.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
	for _, a := range authorities {
		c.ClientCAs.AddCert(a)
	}
	if crlErr == nil {
		r, err := parseRevocations(crl, authorities)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", caCRLFile, err)
		}
		c.VerifyConnection = r.check
	}
	return c, nil
}

// readError names the file without its folder, which LoadTLS names.
func readError(name string, err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return fmt.Errorf("read %s: %w", name, err)
}

func parseCertificates(data []byte) (list []*x509.Certificate, err error) {
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		data = rest
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		list = append(list, cert)
	}
	if len(list) == 0 {
		return nil, errors.New("no certificate in PEM form")
	}
	return list, nil
}

// revocations are serial numbers by the raw name of their issuer.
type revocations map[string]map[string]bool

func parseRevocations(data []byte, authorities []*x509.Certificate) (revocations, error) {
	r := revocations{}
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		data = rest
		if block.Type != "X509 CRL" {
			continue
		}
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return nil, err
		}
		signed := false
		for _, a := range authorities {
			signed = signed || bytes.Equal(a.RawSubject, list.RawIssuer) && list.CheckSignatureFrom(a) == nil
		}
		if !signed {
			return nil, fmt.Errorf("the list of %s is signed by no authority in %s", list.Issuer, caCertFile)
		}
		serials := r[string(list.RawIssuer)]
		if serials == nil {
			serials = map[string]bool{}
			r[string(list.RawIssuer)] = serials
		}
		for _, x := range list.RevokedCertificateEntries {
			serials[x.SerialNumber.String()] = true
		}
	}
	if len(r) == 0 {
		return nil, errors.New("no revocation list in PEM form")
	}
	return r, nil
}

// check refuses a client of whose chains none is without a revoked certificate.
func (r revocations) check(s tls.ConnectionState) error {
	for _, chain := range s.VerifiedChains {
		revoked := false
		for _, cert := range chain {
			revoked = revoked || r[string(cert.RawIssuer)][cert.SerialNumber.String()]
		}
		if !revoked {
			return nil
		}
	}
	return errors.New("the certificate of the client is revoked")
}

// demandTLS refuses an option before TLS where TLS is required.
func (h *handshake) demandTLS(option uint32, length int64) error {
	if option == nbd.OptExportName {
		return errors.New("the client chooses an export without TLS, which is required")
	}
	if err := h.discard(length); err != nil {
		return err
	}
	return h.refuse(option, &optionError{nbd.RepErrTLSRequired, "TLS is required: NBD_OPT_STARTTLS must come first"})
}

// startTLS answers NBD_OPT_STARTTLS and goes over to TLS. All that was negotiated
// before is forgotten, as somebody between client and server may have said it.
func (h *handshake) startTLS(data []byte) error {
	c := h.c
	switch {
	case len(data) > 0:
		return &optionError{nbd.RepErrInvalid, "NBD_OPT_STARTTLS takes no data"}
	case c.peer.TLS:
		return &optionError{nbd.RepErrInvalid, "the connection is encrypted already"}
	case c.srv.o.TLS == nil:
		return &optionError{nbd.RepErrUnsup, "the server has no certificate"}
	case !h.fixed:
		return &optionError{nbd.RepErrPolicy, "TLS needs the fixed newstyle handshake"}
	case c.in.buffered() > 0:
		// Read as if it had come encrypted, it would let a third party put options
		// before those of the client.
		return fmt.Errorf("the client sends %d bytes behind NBD_OPT_STARTTLS without waiting for its reply", c.in.buffered())
	}
	h.reply(nbd.OptStartTLS, nbd.RepAck, nil)
	if err := h.flush(); err != nil {
		return err
	}
	c.in.drop()
	state, err := c.sock.secure(c.srv.o.TLS, &c.srv.buffers)
	if err != nil {
		return fmt.Errorf("TLS handshake: %w", err)
	}
	c.structured, c.extended = false, false
	c.contexts.close()
	c.peer.TLS = true
	if len(state.VerifiedChains) > 0 {
		c.peer.CommonName = state.VerifiedChains[0][0].Subject.CommonName
	}
	return nil
}
