package node

import (
	"errors"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/flotilla-kv/flotilla/raft/transport"
)

// connsMax bounds the kept connections to controllers; beyond it the whole set
// is closed and begun anew, which costs a handshake each.
const connsMax = 1024

// conns keeps one connection per address for the calls of controllers to each
// other. They connect in the background.
type conns struct {
	mu     sync.Mutex // guards what follows; never held across I/O
	byAddr map[string]*grpc.ClientConn
	closed bool
}

func newConns() *conns { return &conns{byAddr: make(map[string]*grpc.ClientConn)} }

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
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(transport.ReceiveBytesMax)))
	if err != nil {
		return nil, err
	}
	c.byAddr[addr] = conn
	return conn, nil
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
	defer c.mu.Unlock()
	c.closed = true
	c.drop()
}
