package tlsfiles

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc/credentials"
)

// fileBytesMax is far more than any bundle of certificates.
const fileBytesMax = 1 << 20

// set is what the three files said at one time, checked. It never changes.
type set struct {
	certificate tls.Certificate
	leaf        *x509.Certificate
	expires     time.Time // of the certificate or, if sooner, of a CA behind it
	caPEM       []byte

	mutual *tls.Config // both ends show certificates
	open   *tls.Config // the server alone does
	grpc   credentials.TransportCredentials
}

// says reports whether both sets mean the same.
func (s *set) says(other *set) bool {
	return s.leaf.Equal(other.leaf) && bytes.Equal(s.caPEM, other.caPEM)
}

func (s *set) stage(now time.Time) lifeStage {
	switch left := s.expires.Sub(now); {
	case left <= 0:
		return stageExpired
	case left < s.expires.Sub(s.leaf.NotBefore)/10:
		return stageSoon
	}
	return stageFresh
}

// readSet reads the files and checks that they fit each other, the time and the
// host.
func readSet(options Options, now time.Time) (*set, error) {
	paths := options.Paths
	var content [3][]byte
	for i, file := range paths.each() {
		var err error
		if content[i], err = readFile(file.path); err != nil {
			return nil, fmt.Errorf("%s %s: %w", file.flag, file.path, err)
		}
	}
	authorities, err := parseCertificates(content[0])
	if err != nil {
		return nil, fmt.Errorf("--tls-ca %s: %w", paths.CA, err)
	}
	chain, err := parseCertificates(content[1])
	if err != nil {
		return nil, fmt.Errorf("--tls-cert %s: %w", paths.Cert, err)
	}
	if err := checkKey(content[2]); err != nil {
		return nil, fmt.Errorf("--tls-key %s: %w", paths.Key, err)
	}
	certificate, err := tls.X509KeyPair(content[1], content[2])
	if err != nil {
		return nil, pairError(paths, err)
	}
	s := &set{certificate: certificate, leaf: chain[0], caPEM: content[0]}
	if err := s.check(options, authorities, chain[1:], now); err != nil {
		return nil, err
	}
	s.configure(poolOf(authorities))
	return s, nil
}

// readFile reads a file that is what it says: a pipe could not be read again,
// and a device might never end.
func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, withoutPath(err)
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("this is no regular file, and it has to be read again when it changes")
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, withoutPath(err)
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, fileBytesMax+1))
	if err != nil {
		return nil, withoutPath(err)
	}
	if len(content) > fileBytesMax {
		return nil, fmt.Errorf("it has more than %d bytes: is it the right file?", fileBytesMax)
	}
	return content, nil
}

// withoutPath takes the path out of an error whose reader has been told it.
func withoutPath(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

// parseCertificates reads all certificates of a PEM file, at least one. One that
// is damaged is an error: a bundle is not to shrink unnoticed.
func parseCertificates(content []byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	isKey := false
	for rest := content; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		isKey = isKey || strings.HasSuffix(block.Type, "PRIVATE KEY")
		if block.Type != "CERTIFICATE" {
			continue
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d in it is damaged: %w", len(all)+1, err)
		}
		all = append(all, certificate)
	}
	if begun := bytes.Count(content, []byte("-----BEGIN CERTIFICATE-----")); begun > len(all) {
		return nil, fmt.Errorf("certificate %d in it is damaged or cut off", len(all)+1)
	}
	switch {
	case len(all) > 0:
		return all, nil
	case isKey:
		return nil, errors.New("it holds a private key and no certificate: were the files swapped?")
	}
	if _, err := x509.ParseCertificate(content); err == nil {
		return nil, errors.New("it is in DER: make it PEM with openssl x509 -inform der")
	}
	return nil, errors.New(`it holds no certificate in PEM ("-----BEGIN CERTIFICATE-----")`)
}

// checkKey looks for what a user may have got wrong about a key file, to name it
// better than the library does.
func checkKey(content []byte) error {
	isCertificate := false
	for rest := content; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if strings.HasSuffix(block.Type, "PRIVATE KEY") {
			if block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "" {
				return errors.New("the key has a passphrase, which nobody could type at a restart: take it off with openssl pkey")
			}
			return nil
		}
		isCertificate = isCertificate || block.Type == "CERTIFICATE"
	}
	if isCertificate {
		return errors.New("it holds a certificate and no private key: were the files swapped?")
	}
	return errors.New(`it holds no private key in PEM ("-----BEGIN PRIVATE KEY-----")`)
}

func pairError(paths Paths, err error) error {
	if strings.Contains(err.Error(), "does not match") {
		return fmt.Errorf("--tls-key %s does not belong to --tls-cert %s", paths.Key, paths.Cert)
	}
	return fmt.Errorf("--tls-cert %s with --tls-key %s: %w", paths.Cert, paths.Key, err)
}

func poolOf(certificates []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range certificates {
		pool.AddCert(c)
	}
	return pool
}

// check verifies the own certificate as the other ends will, and notes when
// they will stop taking it.
func (s *set) check(options Options, authorities, intermediates []*x509.Certificate, now time.Time) error {
	usages := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if options.Host != "" {
		usages = append(usages, x509.ExtKeyUsageServerAuth)
	}
	for _, usage := range usages {
		chains, err := s.leaf.Verify(x509.VerifyOptions{
			Roots:         poolOf(authorities),
			Intermediates: poolOf(intermediates),
			CurrentTime:   now,
			KeyUsages:     []x509.ExtKeyUsage{usage},
		})
		if err != nil {
			return s.verifyError(options, now, err)
		}
		s.expires = expiry(chains)
	}
	if options.Host == "" {
		return nil
	}
	if ip := net.ParseIP(options.Host); ip != nil && ip.IsUnspecified() {
		return fmt.Errorf("%s is no host that others could call: say with --advertise HOST which name of --tls-cert %s they are to use (%s)",
			options.Host, options.Paths.Cert, namesOf(s.leaf))
	}
	if err := s.leaf.VerifyHostname(options.Host); err != nil {
		return fmt.Errorf("--tls-cert %s names %s, not %s, which others call this node by: give it that subjectAltName, or say --advertise HOST",
			options.Paths.Cert, namesOf(s.leaf), options.Host)
	}
	return nil
}

// expiry is when the last chain breaks; a chain breaks with its first
// certificate.
func expiry(chains [][]*x509.Certificate) (last time.Time) {
	for _, chain := range chains {
		breaks := chain[0].NotAfter
		for _, c := range chain[1:] {
			if c.NotAfter.Before(breaks) {
				breaks = c.NotAfter
			}
		}
		if breaks.After(last) {
			last = breaks
		}
	}
	return last
}

// verifyError says what is wrong with the certificate and what to do.
func (s *set) verifyError(options Options, now time.Time, err error) error {
	cert, ca := options.Paths.Cert, options.Paths.CA
	var invalid x509.CertificateInvalidError
	switch {
	case now.Before(s.leaf.NotBefore):
		return fmt.Errorf("--tls-cert %s is not valid before %s: is the clock right?", cert, s.leaf.NotBefore.UTC().Format(time.RFC3339))
	case now.After(s.leaf.NotAfter):
		return fmt.Errorf("--tls-cert %s expired at %s: make a new one", cert, s.leaf.NotAfter.UTC().Format(time.RFC3339))
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage && options.Host != "":
		return fmt.Errorf("--tls-cert %s: the certificate of a node needs extendedKeyUsage = serverAuth, clientAuth", cert)
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		return fmt.Errorf("--tls-cert %s: the certificate of a client needs extendedKeyUsage = clientAuth", cert)
	}
	return fmt.Errorf("--tls-cert %s is not signed by a CA of --tls-ca %s: %w", cert, ca, err)
}

// namesOf lists what a certificate is for, for people.
func namesOf(c *x509.Certificate) string {
	names := append([]string(nil), c.DNSNames...)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	if len(names) == 0 {
		return "no host"
	}
	const shownMax = 5
	if len(names) > shownMax {
		names = append(names[:shownMax], "...")
	}
	return strings.Join(names, " ")
}

// configure makes the configurations, once for all handshakes with this set.
func (s *set) configure(authorities *x509.CertPool) {
	s.open = &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{s.certificate},
		RootCAs:                authorities,
		SessionTicketsDisabled: true,
	}
	s.mutual = s.open.Clone()
	s.mutual.ClientAuth = tls.RequireAndVerifyClientCert
	s.mutual.ClientCAs = authorities
	// The certificate is shown to whoever asks. Left alone, the library keeps it
	// back from a server that does not name its CA, and all that either end then
	// learns is that there was none.
	s.mutual.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &s.certificate, nil }
	s.grpc = credentials.NewTLS(s.mutual)
}
