package node

import (
	"context"
	"errors"
	"runtime/debug"
	"strings"
	"sync"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/client"
	"github.com/flotilla-kv/flotilla/resp"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// dialer connects the node's own client to nodes: to this one by a function
// call, to all others over gRPC.
type dialer struct {
	node *Node
	far  client.GRPCDialer
}

// Dial connects; see client.Dialer.
func (d *dialer) Dial(ctx context.Context, to client.Target, deliver func([]*flotillav1.Response, error)) (client.Conn, error) {
	if id, known := d.node.ctrl.Identity(); known && to.Node == id.Node {
		return newLocalConn(d.node, deliver), nil
	}
	return d.far.Dial(ctx, to, deliver)
}

// DialWatches connects watches, those of this node too; see client.WatchDialer.
func (d *dialer) DialWatches(to client.Target) (client.WatchConn, error) {
	return d.far.DialWatches(to)
}

// localConn is the connection to the own node. Answers are handed on in
// batches by one goroutine, as a stream would: what arrives while it hands on
// goes together.
type localConn struct {
	node    *Node
	deliver func([]*flotillav1.Response, error)
	ctx     context.Context // ends with Close
	stop    context.CancelFunc
	done    chan struct{} // closed when the goroutine has ended

	mu      sync.Mutex // guards answers
	answers []*flotillav1.Response
	arrived chan struct{} // has an element when there are answers
}

func newLocalConn(n *Node, deliver func([]*flotillav1.Response, error)) *localConn {
	c := &localConn{node: n, deliver: deliver, done: make(chan struct{}), arrived: make(chan struct{}, 1)}
	c.ctx, c.stop = context.WithCancel(context.Background())
	go c.run()
	return c
}

// Send hands the requests to the node's groups. How many may wait for an
// answer is bounded by the client and by the groups.
func (c *localConn) Send(requests []*flotillav1.Request) error {
	if c.ctx.Err() != nil {
		return errLocalClosed
	}
	c.node.kv.Submit(c.ctx, requests, c.answer)
	return nil
}

var errLocalClosed = errors.New("the connection to the own node is closed")

func (c *localConn) answer(r *flotillav1.Response) {
	c.mu.Lock()
	c.answers = append(c.answers, r)
	c.mu.Unlock()
	select {
	case c.arrived <- struct{}{}:
	default:
	}
}

func (c *localConn) run() {
	defer close(c.done)
	var spare []*flotillav1.Response
	for {
		select {
		case <-c.arrived:
		case <-c.ctx.Done():
			c.deliver(nil, errLocalClosed)
			return
		}
		c.mu.Lock()
		batch := c.answers
		c.answers = spare[:0]
		c.mu.Unlock()
		if len(batch) > 0 {
			c.deliver(batch, nil)
		}
		clear(batch)
		spare = batch
	}
}

// Close ends the connection; nothing is delivered after it has returned.
func (c *localConn) Close() error {
	c.stop()
	<-c.done
	return nil
}

// backend is what the RESP door stands before: the node's own client.
type backend struct{ node *Node }

// NewLane makes the lane of a connection; see resp.Backend.
func (b *backend) NewLane() resp.Lane { return b.node.client.NewLane() }

// Map is the shard map that the node routes by.
func (b *backend) Map() *shardmap.Map { return b.node.ctrl.Maps().Current() }

// Info is what INFO tells of the node.
func (b *backend) Info() resp.Info {
	id, _ := b.node.ctrl.Identity()
	return resp.Info{ClusterID: id.ClusterID, NodeID: uint64(id.Node), NodeName: b.node.options.Name, Keys: -1}
}

// version is the binary's, as Go stamped it.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "devel"
	}
	return strings.Trim(info.Main.Version, "()")
}
