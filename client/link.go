package client

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"sync"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/client/routing"
	"github.com/flotilla-kv/flotilla/raft"
)

// Target is the node that a Dialer is to connect to.
type Target struct {
	Node raft.NodeID // 0: not known
	Addr string
	// ClusterID is what the node must belong to; empty: not known.
	ClusterID string
}

// Dialer connects to nodes. There are two: GRPCDialer, and the one of a node,
// which answers itself what it can.
type Dialer interface {
	// Dial connects within ctx. The connection calls deliver with the responses
	// it receives, from one goroutine at a time, and with an error, once and
	// last, when it broke. deliver does not block for long.
	Dial(ctx context.Context, to Target, deliver func([]*flotillav1.Response, error)) (Conn, error)
}

// Conn is a connection to one node.
type Conn interface {
	// Send hands over requests, in order. It may block while the node is slow,
	// until Close. After an error the connection is of no use.
	Send(requests []*flotillav1.Request) error
	// Close ends it, with Sends that are under way, and returns when deliver
	// is not called any more. It may be called more than once.
	Close() error
}

// dialTimeout bounds the making of a connection; calls go elsewhere after it.
const dialTimeout = time.Second

// Limits of one message. What is over goes in the next.
const (
	messageRequestsMax = 1024
	messageBytesMax    = 1 << 20
)

// link is one connection from its first attempt to its end, and the goroutine
// that sends over it. What is queued while it sends goes out together.
type link struct {
	client *Client
	target Target
	broken chan error // the connection's own end; the first counts
	poke   chan struct{}

	mu     sync.Mutex // guards queue
	queue  []*flotillav1.Request
	cancel context.CancelFunc
}

// connect starts a link; the router hears how it went.
func (c *Client) connect(to routing.Target) {
	target := Target{Node: to.Node, Addr: to.Addr}
	if m := c.Map(); m != nil {
		target.ClusterID = m.ClusterID
	}
	ctx, cancel := context.WithCancel(c.ctx)
	l := &link{
		client: c,
		target: target,
		broken: make(chan error, 1),
		poke:   make(chan struct{}, 1),
		cancel: cancel,
	}
	c.linksMu.Lock()
	defer c.linksMu.Unlock()
	if c.ctx.Err() != nil {
		cancel()
		return
	}
	c.links[to.Addr] = l
	c.wait.Go(func() { l.run(ctx) })
}

// disconnect ends a link whose node has left the map, or does not answer over it.
func (c *Client) disconnect(addr string) {
	c.linksMu.Lock()
	l := c.links[addr]
	c.linksMu.Unlock()
	if l != nil {
		l.cancel()
	}
}

// send queues requests on their links. One whose link has just ended is left
// to the router, which takes it for lost.
func (c *Client) send(sends []routing.Send) {
	for len(sends) > 0 {
		n := 1
		for n < len(sends) && sends[n].To.Addr == sends[0].To.Addr {
			n++
		}
		c.linksMu.Lock()
		l := c.links[sends[0].To.Addr]
		c.linksMu.Unlock()
		if l != nil {
			l.push(sends[:n])
		}
		sends = sends[n:]
	}
}

// push queues requests. The queue is bounded by the client's gate: it holds
// only what is under way.
func (l *link) push(sends []routing.Send) {
	l.mu.Lock()
	for _, s := range sends {
		l.queue = append(l.queue, s.Request)
	}
	l.mu.Unlock()
	select {
	case l.poke <- struct{}{}:
	default:
	}
}

// run is the link's life.
func (l *link) run(ctx context.Context) {
	defer l.cancel()
	conn, err := l.dial(ctx)
	if err != nil {
		l.down(err, nil)
		return
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	l.client.options.Logger.Debug("connected", slog.String("addr", l.target.Addr))
	l.client.step(func(r *routing.Router, now time.Time) { r.LinkUp(now, l.target.Addr) })
	unsent, cause := l.pump(ctx, conn)
	conn.Close()
	if ctx.Err() == nil {
		l.client.options.Logger.Info("connection lost", slog.String("addr", l.target.Addr), slog.Any("error", cause))
	}
	l.down(cause, unsent)
}

func (l *link) dial(ctx context.Context) (Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return l.client.options.Dialer.Dial(ctx, l.target, l.received)
}

// received is the connection's deliver.
func (l *link) received(ps []*flotillav1.Response, err error) {
	if err == nil {
		l.client.responses(l.target.Addr, ps)
		return
	}
	select {
	case l.broken <- err:
	default:
	}
}

var errDisconnected = errors.New("disconnected")

// pump sends what is queued until the connection ends; unsent is what never
// left.
func (l *link) pump(ctx context.Context, conn Conn) (unsent []*flotillav1.Request, cause error) {
	for {
		runtime.Gosched() // who is about to call shares the message
		batch := l.takeAll()
		for len(batch) > 0 {
			n := messageLength(batch)
			if err := conn.Send(batch[:n]); err != nil {
				return batch[n:], l.cause(err)
			}
			batch = batch[n:]
		}
		select {
		case <-l.poke:
		case err := <-l.broken:
			return nil, err
		case <-ctx.Done():
			return nil, errDisconnected
		}
	}
}

// cause prefers what the connection says of its end to what Send says.
func (l *link) cause(sendErr error) error {
	select {
	case err := <-l.broken:
		return err
	default:
		return sendErr
	}
}

func (l *link) takeAll() []*flotillav1.Request {
	l.mu.Lock()
	defer l.mu.Unlock()
	batch := l.queue
	l.queue = nil
	return batch
}

// messageLength is how many of the requests go into one message: at least one.
func messageLength(batch []*flotillav1.Request) int {
	bytes := 0
	for i, q := range batch {
		bytes += requestBytes(q)
		if i > 0 && (bytes > messageBytesMax || i >= messageRequestsMax) {
			return i
		}
	}
	return len(batch)
}

// down takes the link out and tells the router what never left.
func (l *link) down(cause error, unsent []*flotillav1.Request) {
	c := l.client
	c.linksMu.Lock()
	if c.links[l.target.Addr] == l {
		delete(c.links, l.target.Addr)
	}
	c.linksMu.Unlock()
	unsent = append(unsent, l.takeAll()...)
	ids := make([]uint64, len(unsent))
	for i, q := range unsent {
		ids[i] = q.GetId()
	}
	c.step(func(r *routing.Router, now time.Time) { r.LinkDown(now, l.target.Addr, cause, ids) })
}
