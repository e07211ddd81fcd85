package resp

import (
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flotilla-kv/flotilla/internal/tlstest"
)

// overTLS lets a server speak TLS with a certificate of ca.
func overTLS(t *testing.T, ca *tlstest.CA) func(*Options) {
	pair := ca.Node(t, "127.0.0.1").TLS(t)
	return func(o *Options) {
		o.Listener = tls.NewListener(o.Listener, &tls.Config{Certificates: []tls.Certificate{pair}})
	}
}

func dialTLS(t *testing.T, addr string, ca *tlstest.CA) *rawClient {
	t.Helper()
	c := dial(t, addr)
	nc := tls.Client(c.nc, &tls.Config{RootCAs: ca.Pool(), ServerName: "127.0.0.1"})
	if err := nc.Handshake(); err != nil {
		t.Fatal(err)
	}
	c.nc = nc
	c.r.Reset(nc)
	return c
}

func TestOverTLS(t *testing.T) {
	ca := tlstest.NewCA(t, "ca")
	s, _ := startModel(t, 16, overTLS(t, ca))
	c := dialTLS(t, s.Addr().String(), ca)
	big := strings.Repeat("v", 1<<20)
	c.expect("+OK\r\n", "SET", "big", big)
	c.expect("$1048576\r\n"+big+"\r\n", "GET", "big")
	go io.WriteString(c.nc, strings.Repeat(array("INCR", "n"), 1000))
	for range 1000 {
		c.reply()
	}
	c.expect("$4\r\n1000\r\n", "GET", "n")
	c.send("*1\r\n$-7\r\n")
	if got := c.rest(); got != "-ERR Protocol error: invalid bulk length\r\n" {
		t.Errorf("%q before the end", got)
	}
	client := redis.NewClient(&redis.Options{Addr: s.Addr().String(), MaxRetries: -1, TLSConfig: &tls.Config{RootCAs: ca.Pool()}})
	defer client.Close()
	if value, err := client.Get(t.Context(), "n").Result(); err != nil || value != "1000" {
		t.Errorf("go-redis reads %q, %v", value, err)
	}
}

// A client that speaks without TLS to a port that has it is told so, and one
// that speaks TLS to a port that has none is refused at once.
func TestTLSOnOneSideOnly(t *testing.T) {
	ca := tlstest.NewCA(t, "ca")
	s, _ := startModel(t, 4, overTLS(t, ca))
	c := dial(t, s.Addr().String())
	c.send(array("GET", "k"))
	if got := c.rest(); !strings.HasPrefix(got, "-ERR this port speaks TLS") {
		t.Errorf("%q", got)
	}
	plain, _ := startModel(t, 4, nil)
	c = dial(t, plain.Addr().String())
	err := tls.Client(c.nc, &tls.Config{RootCAs: ca.Pool(), ServerName: "127.0.0.1"}).Handshake()
	if err == nil || !strings.Contains(err.Error(), "does not look like a TLS handshake") {
		t.Errorf("a handshake with a port that has no TLS: %v", err)
	}
}

// Who does not finish a handshake is disconnected in time, however it dawdles,
// keeps nobody else waiting, and does not keep the server from closing.
func TestHandshakeThatStalls(t *testing.T) {
	ca := tlstest.NewCA(t, "ca")
	const limit = 200 * time.Millisecond
	s, _ := startModel(t, 4, func(o *Options) { overTLS(t, ca)(o); o.HandshakeTimeout = limit })
	began := time.Now()
	silent, dawdling := dial(t, s.Addr().String()), dial(t, s.Addr().String())
	stop := make(chan struct{})
	defer close(stop)
	go func() { // the header of a handshake of 2,000 bytes, and then a byte now and then
		io.WriteString(dawdling.nc, "\x16\x03\x01\x07\xd0\x01\x00\x07\xcc")
		for {
			select {
			case <-stop:
				return
			case <-time.After(limit / 20):
				if _, err := dawdling.nc.Write([]byte{0}); err != nil {
					return
				}
			}
		}
	}()
	dialTLS(t, s.Addr().String(), ca).expect("+PONG\r\n", "PING")
	for name, c := range map[string]*rawClient{"silent": silent, "dawdling": dawdling} {
		if _, err := c.nc.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Errorf("%s: %v, want the end of the connection", name, err)
		}
	}
	if took := time.Since(began); took < limit {
		t.Errorf("cut off after %s, before the limit", took)
	}
	dial(t, s.Addr().String()) // and says nothing while the server closes
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}

// A server that is full does not shake hands with who comes on top: that would
// keep all others waiting.
func TestFullOverTLS(t *testing.T) {
	ca := tlstest.NewCA(t, "ca")
	s, _ := startModel(t, 4, func(o *Options) { overTLS(t, ca)(o); o.MaxClients = 1 })
	first := dialTLS(t, s.Addr().String(), ca)
	for range 3 {
		c := dial(t, s.Addr().String()) // says nothing
		if _, err := c.nc.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Errorf("%v, want the end of the connection", err)
		}
	}
	first.expect("+PONG\r\n", "PING")
}
