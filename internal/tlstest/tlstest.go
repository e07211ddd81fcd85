package tlstest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Life is how long certificates last, and how long ago they began.
const Life = time.Hour

// CA signs certificates.
type CA struct {
	// PEM is its certificate.
	PEM []byte

	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// NewCA makes one that signed itself.
func NewCA(t testing.TB, name string) *CA {
	t.Helper()
	return newCA(t, name, time.Now().Add(Life), nil)
}

// NewExpiredCA makes one that has expired.
func NewExpiredCA(t testing.TB, name string) *CA {
	t.Helper()
	return newCA(t, name, time.Now().Add(-time.Minute), nil)
}

// Intermediate makes one that ca has signed.
func (ca *CA) Intermediate(t testing.TB, name string) *CA {
	t.Helper()
	return newCA(t, name, time.Now().Add(Life), ca)
}

// newCA makes one that parent signs, or itself if that is nil.
func newCA(t testing.TB, name string, notAfter time.Time, parent *CA) *CA {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber:          serial(t),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-Life),
		NotAfter:              notAfter,
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	ca := &CA{certificate: template, key: newKey(t)}
	if parent == nil {
		parent = ca
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent.certificate, ca.key.Public(), parent.key)
	if err != nil {
		t.Fatal(err)
	}
	if ca.certificate, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	ca.PEM = encode("CERTIFICATE", der)
	return ca
}

// Pool trusts this CA alone.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.certificate)
	return pool
}

// Pair is a certificate and its key in PEM.
type Pair struct{ Cert, Key []byte }

// Node issues a certificate for a node that is called by hosts.
func (ca *CA) Node(t testing.TB, hosts ...string) Pair {
	t.Helper()
	return ca.Issue(t, func(c *x509.Certificate) {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		for _, host := range hosts {
			if ip := net.ParseIP(host); ip != nil {
				c.IPAddresses = append(c.IPAddresses, ip)
			} else {
				c.DNSNames = append(c.DNSNames, host)
			}
		}
	})
}

// Client issues a certificate for somebody who only calls.
func (ca *CA) Client(t testing.TB) Pair {
	t.Helper()
	return ca.Issue(t, func(*x509.Certificate) {})
}

// Issue issues a client's certificate that change has made something else of.
func (ca *CA) Issue(t testing.TB, change func(*x509.Certificate)) Pair {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: serial(t),
		Subject:      pkix.Name{CommonName: "test"},
		NotBefore:    time.Now().Add(-Life),
		NotAfter:     time.Now().Add(Life),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	change(template)
	key := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, template, ca.certificate, key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return Pair{Cert: encode("CERTIFICATE", der), Key: encode("PRIVATE KEY", keyDER)}
}

// Expired and NotYetValid are changes for Issue.
func Expired(c *x509.Certificate)     { c.NotAfter = time.Now().Add(-time.Minute) }
func NotYetValid(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }

// TLS is the pair as crypto/tls wants it.
func (p Pair) TLS(t testing.TB) tls.Certificate {
	t.Helper()
	certificate, err := tls.X509KeyPair(p.Cert, p.Key)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

// Serial is the certificate's number.
func (p Pair) Serial(t testing.TB) *big.Int {
	t.Helper()
	return p.TLS(t).Leaf.SerialNumber
}

// Files are the paths of a CA file, a certificate and its key.
type Files struct{ CA, Cert, Key string }

// FilesIn names them in dir.
func FilesIn(dir string) Files {
	return Files{filepath.Join(dir, "ca.crt"), filepath.Join(dir, "node.crt"), filepath.Join(dir, "node.key")}
}

// Write replaces the three files, each at once. The CA file trusts all of cas.
func (f Files) Write(t testing.TB, pair Pair, cas ...*CA) {
	t.Helper()
	var bundle [][]byte
	for _, ca := range cas {
		bundle = append(bundle, ca.PEM)
	}
	Replace(t, f.CA, bytes.Join(bundle, nil))
	Replace(t, f.Cert, pair.Cert)
	Replace(t, f.Key, pair.Key)
}

// Replace puts another file in the place of one, in one step.
func Replace(t testing.TB, path string, content []byte) {
	t.Helper()
	next := path + ".next"
	if err := os.WriteFile(next, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func serial(t testing.TB) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
