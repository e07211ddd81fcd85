package tlsfiles

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/flotilla-kv/flotilla/internal/tlstest"
)

// serve answers gRPC health checks with credentials until the test ends.
func serve(t *testing.T, creds credentials.TransportCredentials) (addr string) {
	t.Helper()
	listener, err := net.Listen("tcp", host+":0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(creds))
	healthv1.RegisterHealthServer(server, health.NewServer())
	served := make(chan struct{})
	go func() {
		defer close(served)
		server.Serve(listener)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-served
	})
	return listener.Addr().String()
}

// call makes a connection and one call over it.
func call(t *testing.T, addr string, creds credentials.TransportCredentials) error {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err = healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{})
	return err
}

func TestNodesCallEachOther(t *testing.T) {
	w := newWorld(t)
	addr := serve(t, w.Credentials())
	if err := call(t, addr, w.Credentials()); err != nil {
		t.Error(err)
	}
	if err := call(t, addr, w.Credentials().Clone()); err != nil {
		t.Errorf("with a clone: %v", err)
	}
}

// Our end refuses a server that is not what it should be: nothing is said to
// it.
func TestCallerRefuses(t *testing.T) {
	w := newWorld(t)
	other := tlstest.NewCA(t, "other")
	server := func(pair tlstest.Pair, change func(*tls.Config)) *tls.Config {
		config := &tls.Config{Certificates: []tls.Certificate{pair.TLS(t)}, NextProtos: []string{"h2"}}
		change(config)
		return config
	}
	none := func(*tls.Config) {}
	for name, test := range map[string]struct {
		server *tls.Config // nil: it answers without TLS
		want   string
	}{
		"good":          {server(w.ca.Node(t, host), none), ""},
		"expired":       {server(node(t, w.ca, tlstest.Expired), none), "expired"},
		"not yet valid": {server(node(t, w.ca, tlstest.NotYetValid), none), "not yet valid"},
		"wrong CA":      {server(other.Node(t, host), none), "unknown authority"},
		"wrong SAN":     {server(w.ca.Node(t, "10.0.0.1", "n2.example"), none), "valid for 10.0.0.1"},
		"no SAN":        {server(w.ca.Node(t), none), host},
		"no server":     {server(node(t, w.ca, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), none), "usage"},
		"TLS 1.0":       {server(w.ca.Node(t, host), func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS10 }), "version"},
		"TLS 1.2":       {server(w.ca.Node(t, host), func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }), "version"},
		"plain text":    {nil, "does not look like a TLS handshake"},
	} {
		t.Run(name, func(t *testing.T) {
			listener, err := net.Listen("tcp", host+":0")
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			got := make(chan error, 1)
			go func() {
				raw, err := listener.Accept()
				if err != nil {
					got <- err
					return
				}
				defer raw.Close()
				raw.SetDeadline(time.Now().Add(10 * time.Second))
				if test.server == nil {
					_, err = raw.Write([]byte("-ERR what is this?\r\n"))
				} else {
					err = tls.Server(raw, test.server).Handshake()
				}
				got <- err
				raw.Read(make([]byte, 1)) // the caller hangs up first
			}()
			raw, err := net.Dial("tcp", listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			_, _, err = w.Credentials().ClientHandshake(t.Context(), listener.Addr().String(), raw)
			switch {
			case test.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("%v, want a refusal about %q", err, test.want)
			}
			raw.Close()
			<-got
		})
	}
}

// A server that accepts and says nothing holds its caller no longer than the
// caller's deadline.
func TestCallerLeavesAServerThatStalls(t *testing.T) {
	w := newWorld(t)
	listener, err := net.Listen("tcp", host+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	raw, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := w.Credentials().ClientHandshake(ctx, listener.Addr().String(), raw); err == nil || ctx.Err() == nil {
		t.Errorf("%v before the deadline", err)
	}
}

// After a rotation through a bundle of both CAs the new certificate is shown
// and demanded at both ends, and the old CA counts for nothing. Connections
// that stand go on.
func TestRotation(t *testing.T) {
	server, caller := newWorld(t), newWorld(t)
	both := []*tlstest.CA{server.ca, caller.ca}
	// They trust each other's CA first, as in the middle of a rotation.
	serverPair, callerPair := server.ca.Node(t, host), caller.ca.Client(t)
	server.paths.Write(t, serverPair, both...)
	caller.paths.Write(t, caller.ca.Node(t, host), both...)
	server.advance(lookInterval)
	caller.advance(lookInterval)
	addr := serve(t, server.Credentials())
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(caller.Credentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	check := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{})
		return err
	}
	if err := check(); err != nil {
		t.Fatalf("in the middle of a rotation: %v", err)
	}

	next := tlstest.NewCA(t, "next")
	server.paths.Write(t, next.Node(t, host), next)
	server.advance(lookInterval)
	if err := call(t, addr, caller.Credentials()); err == nil {
		t.Error("the server still takes a certificate of the CA that is gone, or the caller takes a server of a CA it does not know")
	}
	trusting := credentials.NewTLS(&tls.Config{RootCAs: next.Pool(), Certificates: []tls.Certificate{callerPair.TLS(t)}})
	if err := call(t, addr, trusting); err == nil {
		t.Error("the server still takes a certificate of the CA that is gone")
	}
	if err := check(); err != nil {
		t.Errorf("a connection that stands: %v", err)
	}
	caller.paths.Write(t, next.Node(t, host), next)
	caller.advance(lookInterval)
	if err := call(t, addr, caller.Credentials()); err != nil {
		t.Errorf("with new files at both ends: %v", err)
	}
}

// A caller whose certificate is refused learns why, also if its own words reach
// a connection that has been closed.
func TestRefusedCallerLearnsWhy(t *testing.T) {
	w, stranger := newWorld(t), newWorld(t)
	stranger.ca = tlstest.NewCA(t, "strange") // of another name: it is shown all the same
	stranger.paths.Write(t, stranger.ca.Client(t), w.ca, stranger.ca)
	stranger.options.Host = ""
	stranger.advance(lookInterval)
	listener, err := net.Listen("tcp", host+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	refused := make(chan error, 1)
	go func() {
		raw, err := listener.Accept()
		if err == nil {
			_, _, err = w.Credentials().ServerHandshake(raw)
			raw.Close()
		}
		refused <- err
	}()
	raw, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	conn, _, err := stranger.Credentials().ClientHandshake(t.Context(), listener.Addr().String(), raw)
	if err != nil {
		t.Fatalf("the caller's side of the handshake: %v", err)
	}
	if err := <-refused; err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Fatalf("the server's side: %v", err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for err == nil && time.Now().Before(deadline) {
		_, err = conn.Write([]byte("PRI * HTTP/2.0"))
	}
	if err == nil || !strings.Contains(err.Error(), "unknown certificate authority") {
		t.Errorf("what the caller learns: %v", err)
	}
}
