package node

import (
	"context"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/flotilla-kv/flotilla/raft/transport"
)

// deafProxy carries connections to a server until it is told to carry those that
// are there no further, and leaves them open.
type deafProxy struct {
	net.Listener
	deaf atomic.Bool
}

func newDeafProxy(t *testing.T, to string) *deafProxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	p := &deafProxy{Listener: l}
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				near.Close()
				continue
			}
			t.Cleanup(func() { near.Close(); far.Close() })
			born := p.deaf.Load()
			carry := func(to, from net.Conn) {
				buffer := make([]byte, 4096)
				for {
					n, err := from.Read(buffer)
					if err != nil || p.deaf.Load() != born {
						return // and nobody is told
					}
					to.Write(buffer[:n])
				}
			}
			go carry(far, near)
			go carry(near, far)
		}
	}()
	return p
}

// A connection at whose other end nobody is any more is noticed, by the calls
// that wait for something on it too; and at once if somebody knows.
func TestHalfOpenConnectionsOfControllers(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(transport.ServerOptions()...)
	healthv1.RegisterHealthServer(server, health.NewServer())
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	for _, told := range []bool{true, false} {
		if !told && testing.Short() {
			continue // it takes a while
		}
		p := newDeafProxy(t, listener.Addr().String())
		c := newConns(insecure.NewCredentials(), nil)
		t.Cleanup(c.close)
		addr := p.Addr().String()
		conn, err := c.get(addr)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), connAliveEvery+connAliveTimeout+5*time.Second)
		defer cancel()
		watch, err := healthv1.NewHealthClient(conn).Watch(ctx, &healthv1.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := watch.Recv(); err != nil {
			t.Fatal(err)
		}
		p.deaf.Store(true)
		if told {
			c.forget(addr)
		}
		if _, err := watch.Recv(); err == nil || err == io.EOF || ctx.Err() != nil {
			t.Fatalf("told %t: what waited goes on to wait: %v, %v", told, err, ctx.Err())
		}
		if conn, err = c.get(addr); err != nil {
			t.Fatal(err)
		}
		if _, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{}, grpc.WaitForReady(true)); err != nil {
			t.Errorf("told %t: a new call fails: %v", told, err)
		}
	}
}
