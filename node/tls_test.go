package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/flotilla-kv/flotilla/client"
	"github.com/flotilla-kv/flotilla/internal/tlsfiles"
	"github.com/flotilla-kv/flotilla/internal/tlstest"
)

const loopback = "127.0.0.1"

// tlsNode is the options of a node whose files are in dir.
func tlsNode(t *testing.T, dir, name string, ca *tlstest.CA) Options {
	t.Helper()
	files := tlstest.FilesIn(t.TempDir())
	files.Write(t, ca.Node(t, loopback), ca)
	return Options{Name: name, DataDir: filepath.Join(dir, name), TLS: tlsfiles.Paths(files)}
}

// door is one of a node's ports, with what a caller says to it first and a word
// of the answer.
type door struct {
	name, addr  string
	protos      []string
	hello, word string
	certified   bool // it demands a certificate
}

// doorsOf are those of a node that is Certified-only at its RESP door, and the
// RESP door of one that has a password.
func doorsOf(n, withPassword *Node) []door {
	a, p := n.Addresses(), withPassword.Addresses()
	const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	return []door{
		{"gRPC", a.GRPC, []string{"h2"}, preface, "\x04\x00\x00\x00\x00\x00", true}, // a frame of settings
		{"RESP", a.RESP, nil, "PING\r\n", "+PONG\r\n", true},
		{"RESP with a password", p.RESP, nil, "PING\r\n", "-NOAUTH", false},
		{"HTTP", a.HTTP, nil, "GET /healthz HTTP/1.0\r\n\r\n", " 200 OK", false},
	}
}

// knock says hello and returns what is answered; config nil: without TLS.
func (d door) knock(config *tls.Config) (string, error) {
	raw, err := net.DialTimeout("tcp", d.addr, 10*time.Second)
	if err != nil {
		return "", err
	}
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(10 * time.Second))
	conn := raw
	if config != nil {
		config = config.Clone()
		config.NextProtos = d.protos
		conn = tls.Client(raw, config)
	}
	if _, err := io.WriteString(conn, d.hello); err != nil {
		return "", err
	}
	answer := make([]byte, 64)
	n, err := io.ReadAtLeast(conn, answer, len(d.word))
	return string(answer[:n]), err
}

// Each door lets in whom it should, and nobody else.
func TestTLSDoors(t *testing.T) {
	ca, other := tlstest.NewCA(t, "ca"), tlstest.NewCA(t, "other")
	n := startWith(t, tlsNode(t, t.TempDir(), "n1", ca))
	o := tlsNode(t, t.TempDir(), "n2", ca)
	o.RespPassword = "secret"
	withPassword := startWith(t, o)
	client := func(pair tlstest.Pair) *tls.Config {
		return &tls.Config{RootCAs: ca.Pool(), ServerName: loopback, Certificates: []tls.Certificate{pair.TLS(t)}}
	}
	upTo := func(version uint16) *tls.Config {
		config := client(ca.Client(t))
		config.MinVersion, config.MaxVersion = tls.VersionTLS10, version
		return config
	}
	for _, caller := range []struct {
		name   string
		config *tls.Config
		in     bool // at the doors that demand a certificate
		asked  bool // refused only by those
	}{
		{"good", client(ca.Client(t)), true, true},
		{"a node", client(ca.Node(t, loopback)), true, true},
		{"expired", client(ca.Issue(t, tlstest.Expired)), false, true},
		{"not yet valid", client(ca.Issue(t, tlstest.NotYetValid)), false, true},
		{"of another CA", client(other.Client(t)), false, true},
		{"for servers only", client(ca.Issue(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })), false, true},
		{"without certificate", &tls.Config{RootCAs: ca.Pool(), ServerName: loopback}, false, true},
		{"TLS 1.0", upTo(tls.VersionTLS10), false, false},
		{"TLS 1.2", upTo(tls.VersionTLS12), false, false},
		{"plain text", nil, false, false},
	} {
		for _, d := range doorsOf(n, withPassword) {
			answer, err := d.knock(caller.config)
			in := err == nil && strings.Contains(answer, d.word)
			if want := caller.in || caller.asked && !d.certified; in != want {
				t.Errorf("%s at %s: let in %v, want %v (%q, %v)", caller.name, d.name, in, want, answer, err)
			}
			if e, ok := err.(net.Error); ok && e.Timeout() {
				t.Errorf("%s at %s: neither let in nor refused", caller.name, d.name)
			}
		}
	}
	if got := n.security.files.Expires(); got.After(time.Now().Add(tlstest.Life)) || got.Before(time.Now()) {
		t.Errorf("the certificate expires at %s", got)
	}
}

// A handshake that stalls ends by its deadline and keeps nobody else waiting.
func TestTLSHandshakeThatStalls(t *testing.T) {
	ca := tlstest.NewCA(t, "ca")
	n := startWith(t, tlsNode(t, t.TempDir(), "n1", ca))
	good := &tls.Config{RootCAs: ca.Pool(), ServerName: loopback, Certificates: []tls.Certificate{ca.Client(t).TLS(t)}}
	doors := doorsOf(n, n)
	doors = append(doors[:2], doors[3])
	type stalled struct {
		what string
		conn net.Conn
	}
	var all []stalled
	for _, d := range doors {
		for what, hello := range map[string]string{"nothing": "", "half a hello": "\x16\x03\x01\x07\xd0\x01\x00\x07\xcc"} {
			conn, err := net.Dial("tcp", d.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			io.WriteString(conn, hello)
			all = append(all, stalled{d.name + ", " + what, conn})
		}
	}
	for _, d := range doors {
		if answer, err := d.knock(good); err != nil || !strings.Contains(answer, d.word) {
			t.Errorf("%s, while others stall: %q, %v", d.name, answer, err)
		}
	}
	for _, s := range all {
		s.conn.SetReadDeadline(time.Now().Add(handshakeTimeout + 10*time.Second))
		// The HTTP door may say good-bye before it hangs up.
		if _, err := io.Copy(io.Discard, s.conn); err != nil {
			if e, ok := err.(net.Error); ok && e.Timeout() {
				t.Errorf("%s: not disconnected", s.what)
			}
		}
	}
}

// Three nodes over TLS make a cluster and serve. All files are replaced, by
// those of another CA in the end, with no restart; a node that is started again
// after that is let in by the others, one that has the old files is not.
func TestTLSCluster(t *testing.T) {
	dir := t.TempDir()
	old, next := tlstest.NewCA(t, "old"), tlstest.NewCA(t, "next")
	var options []Options
	var nodes []*Node
	var join []string
	for i := range 3 {
		o := tlsNode(t, dir, fmt.Sprintf("n%d", i+1), old)
		o.Join = join
		n := startWith(t, o)
		options, nodes, join = append(options, o), append(nodes, n), append(join, n.Addresses().Gossip)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := nodes[0].Init(ctx, 16, 3, 4); err != nil {
		t.Fatal(err)
	}
	waitReady(t, nodes)
	clientOf := func(n *Node, ca *tlstest.CA) *client.Client {
		c, err := client.New(client.Options{
			Servers:     []string{n.Addresses().GRPC},
			Credentials: credentials.NewTLS(&tls.Config{RootCAs: ca.Pool(), Certificates: []tls.Certificate{ca.Client(t).TLS(t)}}),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	before := clientOf(nodes[1], old)
	if _, err := before.Put(t.Context(), "k", []byte("1")); err != nil {
		t.Fatal(err)
	}
	// Through the own clients of the nodes, as their RESP doors do it: to every
	// leader there is.
	for i, n := range nodes {
		for j := range 16 {
			if _, err := n.client.Put(t.Context(), fmt.Sprint("own-", j), nil); err != nil {
				t.Fatalf("own-%d through n%d: %v", j, i+1, err)
			}
		}
	}

	anyCA := old.Pool()
	anyCA.AppendCertsFromPEM(next.PEM)
	watcher := &tls.Config{RootCAs: anyCA, ServerName: loopback}
	for i, step := range []struct {
		signer  *tlstest.CA
		trusted []*tlstest.CA
	}{{old, []*tlstest.CA{old, next}}, {next, []*tlstest.CA{old, next}}, {next, []*tlstest.CA{next}}} {
		for j, o := range options {
			pair := step.signer.Node(t, loopback)
			tlstest.Files(o.TLS).Write(t, pair, step.trusted...)
			awaitCertificate(t, nodes[j], watcher, pair.Serial(t))
		}
		if _, err := before.Put(t.Context(), "k", fmt.Append(nil, i)); err != nil {
			t.Fatalf("a client from before, at step %d: %v", i, err)
		}
	}
	after := clientOf(nodes[0], next)
	if item, err := after.Get(t.Context(), "k"); err != nil || string(item.Value) != "2" {
		t.Fatalf("with the new CA: %q, %v", item.Value, err)
	}
	short, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := clientOf(nodes[0], old).Get(short, "k"); err == nil {
		t.Error("a client of the old CA is let in")
	}

	stop(t, nodes[2])
	options[2].Join = join[:2]
	nodes[2] = startWith(t, options[2])
	waitReady(t, nodes)
	if _, err := clientOf(nodes[2], next).Put(t.Context(), "k", []byte("3")); err != nil {
		t.Errorf("through the node that was started again: %v", err)
	}

	stranger := tlsNode(t, dir, "n4", old)
	stranger.Join = join[:2]
	n := startWith(t, stranger)
	second, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := n.WaitRegistered(second); err == nil {
		t.Error("a node with a certificate of the old CA was registered")
	}
}

// awaitCertificate waits until a node shows the certificate with this number.
func awaitCertificate(t *testing.T, n *Node, caller *tls.Config, serial *big.Int) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for {
		conn, err := tls.Dial("tcp", n.Addresses().GRPC, caller)
		if err == nil {
			shown := conn.ConnectionState().PeerCertificates[0].SerialNumber
			conn.Close()
			if shown.Cmp(serial) == 0 {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("the new certificate is not in use (%v)", err)
		}
		time.Sleep(readyCheck)
	}
}
