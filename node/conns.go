package node

import (
	"errors"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/flotilla-kv/flotilla/internal/wire"
	"github.com/flotilla-kv/flotilla/raft/transport"
)

// connsMax bounds the kept connections to controllers; beyond it the whole set
// is closed and begun anew, which costs a handshake each.
const connsMax = 1024

// Times of connecting. gRPC's own let a node that was away for long wait two
// minutes, a handshake that stalls for twenty seconds, and a connection at whose
// other end nobody is any more for a quarter of an hour.
const (
	connTimeout      = 2 * time.Second
	connBackoffMin   = 50 * time.Millisecond
	connBackoffMax   = time.Second
	connAliveEvery   = 10 * time.Second
	connAliveTimeout = 5 * time.Second
)

// conns keeps one connection per address for the calls of controllers to each
// other. They connect in the background.
type conns struct {
	credentials credentials.TransportCredentials
	options     []grpc.DialOption // besides get's own

	closing sync.WaitGroup // of connections that were forgotten

	mu     sync.Mutex // guards what follows; never held across I/O
	byAddr map[string]*grpc.ClientConn
	closed bool
}

func newConns(c credentials.TransportCredentials, options []grpc.DialOption) *conns {
	return &conns{credentials: c, options: options, byAddr: make(map[string]*grpc.ClientConn)}
}

// get is the connection to an address.
func (c *conns) get(addr string) (grpc.ClientConnInterface, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errors.New("the node is stopping")
	}
	if conn, kept := c.byAddr[addr]; kept {
		return conn, nil
	}
	if len(c.byAddr) >= connsMax {
		c.drop()
	}
	options := append(wire.DialOptions(),
		grpc.WithTransportCredentials(c.credentials),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: connBackoffMin, Multiplier: 1.6, Jitter: 0.2, MaxDelay: connBackoffMax},
			MinConnectTimeout: connTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: connAliveEvery, Timeout: connAliveTimeout, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(transport.ReceiveBytesMax)))
	conn, err := grpc.NewClient("passthrough:///"+addr, append(options, c.options...)...)
	if err != nil {
		return nil, err
	}
	c.byAddr[addr] = conn
	return conn, nil
}

// forget ends the connection to an address: who is called there next is
// connected anew. It does not wait.
func (c *conns) forget(addr string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if conn := c.byAddr[addr]; conn != nil && !c.closed {
		delete(c.byAddr, addr)
		c.closing.Go(func() { conn.Close() })
	}
}

// drop closes all connections; calls under way fail.
func (c *conns) drop() {
	for addr, conn := range c.byAddr {
		conn.Close()
		delete(c.byAddr, addr)
	}
}

func (c *conns) close() {
	c.mu.Lock()
	c.closed = true
	c.drop()
	c.mu.Unlock()
	c.closing.Wait()
}
