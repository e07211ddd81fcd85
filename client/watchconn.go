package client

import (
	"context"
	"sync"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

// WatchDialer is a Dialer that connects watches too.
type WatchDialer interface {
	// DialWatches makes a connection for watches of a node. It need not connect
	// before there is one.
	DialWatches(to Target) (WatchConn, error)
}

// WatchConn is a connection for any number of watches.
type WatchConn interface {
	// Watch begins one; it ends with ctx.
	Watch(ctx context.Context, q *flotillav1.WatchRequest) (WatchStream, error)
	Close() error
}

// WatchStream is what a node says to a watch.
type WatchStream interface {
	Recv() (*flotillav1.WatchResponse, error)
}

var _ WatchDialer = (*GRPCDialer)(nil)

// watchConns are the connections that watches share, one for each node.
type watchConns struct {
	mu     sync.Mutex // guards all below
	byAddr map[string]*watchConn
}

type watchConn struct {
	WatchConn
	addr  string
	users int
}

func (s *watchConns) take(d WatchDialer, to Target) (*watchConn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	conn := s.byAddr[to.Addr]
	if conn == nil {
		made, err := d.DialWatches(to)
		if err != nil {
			return nil, err
		}
		if s.byAddr == nil {
			s.byAddr = make(map[string]*watchConn)
		}
		conn = &watchConn{WatchConn: made, addr: to.Addr}
		s.byAddr[to.Addr] = conn
	}
	conn.users++
	return conn, nil
}

// give gives a connection back. One over which nothing was heard is not used
// again.
func (s *watchConns) give(conn *watchConn, silent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	conn.users--
	if (silent || conn.users == 0) && s.byAddr[conn.addr] == conn {
		delete(s.byAddr, conn.addr)
	}
	if conn.users == 0 {
		conn.Close()
	}
}
