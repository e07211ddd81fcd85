package resp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Defaults of Options.
const (
	maxClientsDefault     = 10_000
	writeTimeoutDefault   = time.Minute
	requestTimeoutDefault = 5 * time.Second

	handshakeTimeoutDefault = 5 * time.Second
)

// Options say how a Server serves.
type Options struct {
	// Listener is closed by the server. Its connections may be those of TLS:
	// what has a method HandshakeContext shakes hands before it is used.
	Listener net.Listener
	Backend  Backend
	// Password, if set, is what AUTH and HELLO must give.
	Password string
	// MaxClients connections are served at once; further ones get an error as
	// Redis gives it. 0: 10,000.
	MaxClients int
	// IdleTimeout closes a connection that sends nothing and is owed nothing
	// for so long. 0: never.
	IdleTimeout time.Duration
	// WriteTimeout closes a connection that does not take its replies for so
	// long. 0: a minute.
	WriteTimeout time.Duration
	// RequestTimeout is how long a command waits for its group before it is
	// answered with an error. 0: five seconds.
	RequestTimeout time.Duration
	// HandshakeTimeout is how long the handshake of a TLS connection may take.
	// 0: five seconds.
	HandshakeTimeout time.Duration
	// Version is the product's; INFO tells it.
	Version string
	Logger  *slog.Logger // nil: none
}

// Server speaks the Redis protocol on one listener.
type Server struct {
	listener         net.Listener
	backend          Backend
	password         string
	maxClients       int
	idleTimeout      time.Duration
	writeTimeout     time.Duration
	requestTimeout   time.Duration
	handshakeTimeout time.Duration
	version          string
	logger           *slog.Logger

	commands *commandTable
	cursors  *cursors
	stats    stats
	shardsN  atomic.Int64 // of the cluster; it never changes
	buffers  sync.Pool    // of *[]byte, for the writers

	closing atomic.Bool
	closed  chan struct{} // closed when Close begins
	conns   connTable
	running sync.WaitGroup // the connections' goroutines
}

// connTable holds the connections that are open.
type connTable struct {
	mu   sync.Mutex
	byID map[uint64]*conn
	last uint64
}

// New makes a server; Serve runs it.
func New(o Options) (*Server, error) {
	if o.Listener == nil || o.Backend == nil {
		return nil, errors.New("resp: a listener and a backend are needed")
	}
	if o.MaxClients < 0 || o.IdleTimeout < 0 || o.WriteTimeout < 0 || o.RequestTimeout < 0 || o.HandshakeTimeout < 0 {
		return nil, errors.New("resp: limits must not be negative")
	}
	s := &Server{
		listener:         o.Listener,
		backend:          o.Backend,
		password:         o.Password,
		maxClients:       orDefault(o.MaxClients, maxClientsDefault),
		idleTimeout:      o.IdleTimeout,
		writeTimeout:     orDefault(o.WriteTimeout, writeTimeoutDefault),
		requestTimeout:   orDefault(o.RequestTimeout, requestTimeoutDefault),
		handshakeTimeout: orDefault(o.HandshakeTimeout, handshakeTimeoutDefault),
		version:          orElse(o.Version, "unknown"),
		logger:           o.Logger,
		commands:         newCommandTable(),
		cursors:          newCursors(time.Now),
		closed:           make(chan struct{}),
	}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	s.stats.begin()
	s.conns.byID = make(map[uint64]*conn)
	s.buffers.New = func() any { return new([]byte) }
	return s, nil
}

func orDefault[T int | time.Duration](v, other T) T {
	if v == 0 {
		return other
	}
	return v
}

// Addr is where the server listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Serve accepts connections until Close, which makes it return nil. Another
// end of the listener is an error.
func (s *Server) Serve() error {
	var pause time.Duration
	for {
		nc, err := s.listener.Accept()
		if err == nil {
			pause = 0
			s.accept(nc)
			continue
		}
		if s.closing.Load() {
			return nil
		}
		if !isTemporary(err) {
			return fmt.Errorf("resp: accept on %s: %w", s.listener.Addr(), err)
		}
		pause = min(max(2*pause, acceptPauseMin), acceptPauseMax)
		s.logger.Warn("resp: cannot accept a connection now", "error", err, "retry_in", pause)
		select {
		case <-time.After(pause):
		case <-s.closed:
			return nil
		}
	}
}

// The pauses after an accept that failed, for want of descriptors mostly.
const (
	acceptPauseMin = 5 * time.Millisecond
	acceptPauseMax = time.Second
)

// isTemporary says whether accepting may work again later.
func isTemporary(err error) bool {
	var t interface{ Temporary() bool }
	return !errors.Is(err, net.ErrClosed) && errors.As(err, &t) && t.Temporary()
}

// refusalTime bounds the write of a refusal; a new connection's send buffer is
// empty, so it never takes that long.
const refusalTime = 100 * time.Millisecond

// accept starts a connection, or refuses it when there are too many.
func (s *Server) accept(nc net.Conn) {
	c := s.add(nc)
	if c == nil {
		s.stats.rejected.Add(1)
		if _, ok := nc.(handshaker); !ok { // a handshake would keep others waiting
			nc.SetWriteDeadline(time.Now().Add(refusalTime))
			nc.Write([]byte("-ERR max number of clients reached\r\n"))
		}
		nc.Close()
		return
	}
	s.stats.connections.Add(1)
	go func() {
		defer s.running.Done()
		defer s.remove(c)
		c.serve()
	}()
}

// add makes a connection's record, nil if there is no place for it.
func (s *Server) add(nc net.Conn) *conn {
	s.conns.mu.Lock()
	defer s.conns.mu.Unlock()
	if s.closing.Load() || len(s.conns.byID) >= s.maxClients {
		return nil
	}
	s.conns.last++
	c := newConn(s, nc, s.conns.last)
	s.conns.byID[c.id] = c
	s.running.Add(1)
	return c
}

func (s *Server) remove(c *conn) {
	s.conns.mu.Lock()
	defer s.conns.mu.Unlock()
	delete(s.conns.byID, c.id)
}

// open is the connections there are, in no order.
func (s *Server) open() []*conn {
	s.conns.mu.Lock()
	defer s.conns.mu.Unlock()
	all := make([]*conn, 0, len(s.conns.byID))
	for _, c := range s.conns.byID {
		all = append(all, c)
	}
	return all
}

// Close stops accepting and reading, lets the commands already read finish and
// their replies go out, and then closes the connections. When ctx ends first
// it closes them at once and returns the context's error. Either way no
// goroutine of the server is left.
func (s *Server) Close(ctx context.Context) error {
	if !s.closing.CompareAndSwap(false, true) {
		return nil
	}
	close(s.closed)
	s.listener.Close()
	for _, c := range s.open() {
		c.stopReading()
	}
	done := make(chan struct{})
	go func() {
		s.running.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	for _, c := range s.open() {
		c.giveUp()
	}
	<-done
	return fmt.Errorf("resp: closed with commands under way: %w", ctx.Err())
}

// shards is the cluster's number of shards, 0 while it is not known.
func (s *Server) shards() int {
	if n := s.shardsN.Load(); n > 0 {
		return int(n)
	}
	m := s.backend.Map()
	if m == nil {
		return 0
	}
	s.shardsN.Store(int64(len(m.Shards)))
	return len(m.Shards)
}
