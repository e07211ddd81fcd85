package client

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/client/routing"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Options say how to reach a cluster. Servers, or both Dialer and Maps, must be
// set; all else has a default.
type Options struct {
	// Servers are the gRPC addresses of some nodes, host:port. The others are
	// learnt from them.
	Servers []string
	// Credentials protect the connections to all nodes. Default: none.
	Credentials credentials.TransportCredentials
	// Timeout bounds a call whose context has no deadline; one that has is
	// tried until then, however long that is. Default 10 s.
	Timeout time.Duration
	// CallsMax bounds the calls under way; at it methods wait and Submit
	// answers ErrBusy. Raise it for more concurrent callers than that.
	// Default 16,384.
	CallsMax int
	// BytesMax bounds the bytes of requests under way likewise. Default
	// 256 MiB.
	BytesMax int
	// PreferNode is the node that follower and stale reads ask first, one close
	// by for instance. Default: all replicas in turn.
	PreferNode raft.NodeID
	// Logger gets a line for each connection made or lost. Default: none.
	Logger *slog.Logger

	// Dialer connects to nodes. Default: GRPCDialer with Credentials.
	Dialer Dialer
	// Maps is where the shard map comes from. Default: a watch on Servers.
	Maps MapSource
	// Clock is the wall clock. Default: time.Now.
	Clock func() time.Time
	// ClusterClock is what the cluster's clocks show, in unix milliseconds, when
	// Clock shows now; it must not block. Sessions are born by it, so that the
	// clock of a node that is wrong by itself does not stop its own client.
	// Default: the same as Clock.
	ClusterClock func(now time.Time) int64
	// Rand is the source of session ids, which must never meet those of another
	// client, and of jitter. Default: crypto/rand.
	Rand func() uint64
}

// Defaults of Options.
const (
	timeoutDefault  = 10 * time.Second
	callsMaxDefault = 16_384
	bytesMaxDefault = 256 << 20
)

// MapSource is where the client learns the shard map.
type MapSource interface {
	// Current is the newest map known, nil if there is none yet.
	Current() *shardmap.Map
	// Changed is closed when Current next changes. Take it before Current.
	Changed() <-chan struct{}
	// Refresh says that the map of the given revision proved to be behind. It
	// must not block.
	Refresh(after uint64)
}

// Client talks to one cluster.
type Client struct {
	options Options
	maps    MapSource
	watch   *mapWatch // maps, if it is the client's own
	gate    *gate
	alarm   *alarm

	watchConns watchConns

	ctx  context.Context // ends with Close
	stop context.CancelFunc
	wait sync.WaitGroup

	mu     sync.Mutex // guards what follows; never held across I/O or callbacks
	router *routing.Router
	closed bool

	linksMu sync.Mutex // guards links
	links   map[string]*link
}

// New makes a client. It connects in the background: a cluster that cannot be
// reached shows as ErrUnavailable when a call's time is up.
func New(options Options) (*Client, error) {
	if err := options.complete(); err != nil {
		return nil, err
	}
	c := &Client{
		options: options,
		maps:    options.Maps,
		gate:    newGate(options.CallsMax, options.BytesMax),
		alarm:   newAlarm(),
		links:   make(map[string]*link),
		router:  routing.New(routing.Options{Rand: options.Rand, Births: options.ClusterClock, PreferNode: options.PreferNode}),
	}
	c.ctx, c.stop = context.WithCancel(context.Background())
	if c.maps == nil {
		c.watch = newMapWatch(options)
		c.maps = c.watch
		c.wait.Go(func() { c.watch.run(c.ctx) })
	}
	c.wait.Go(c.followMap)
	c.wait.Go(func() { c.alarm.run(c.ctx, c.options.Clock, c.tick) })
	return c, nil
}

func (o *Options) complete() error {
	if len(o.Servers) == 0 && (o.Maps == nil || o.Dialer == nil) {
		return errors.New("client: no servers given")
	}
	for _, s := range o.Servers {
		if s == "" {
			return errors.New("client: a server address is empty")
		}
	}
	if o.Timeout < 0 || o.CallsMax < 0 || o.BytesMax < 0 {
		return fmt.Errorf("client: negative limits: timeout %v, calls %d, bytes %d", o.Timeout, o.CallsMax, o.BytesMax)
	}
	if o.Timeout == 0 {
		o.Timeout = timeoutDefault
	}
	if o.CallsMax == 0 {
		o.CallsMax = callsMaxDefault
	}
	if o.BytesMax == 0 {
		o.BytesMax = bytesMaxDefault
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Rand == nil {
		o.Rand = randomUint64
	}
	if o.Dialer == nil {
		o.Dialer = &GRPCDialer{Credentials: o.Credentials}
	}
	return nil
}

// randomUint64 never fails: crypto/rand.Read ends the process rather than
// return less than random bytes.
func randomUint64() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return binary.LittleEndian.Uint64(b[:])
}

// Close ends all calls with ErrClosed (writes that were sent with
// ErrUnknownOutcome), closes the connections and waits for the client's
// goroutines. It must not be called from a callback of Submit.
func (c *Client) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	var out routing.Output
	c.router.CancelAll(c.options.Clock(), routing.ReasonClosed)
	c.router.Take(&out)
	c.mu.Unlock()

	for _, d := range out.Deliveries {
		c.deliver(d)
	}
	c.gate.close()
	c.linksMu.Lock() // no link starts after this
	c.stop()
	c.linksMu.Unlock()
	c.wait.Wait()
	return nil
}

// Map is the newest shard map known, nil if there is none yet. It must not be
// changed.
func (c *Client) Map() *shardmap.Map { return c.maps.Current() }

// WaitMap returns the shard map as soon as there is one.
func (c *Client) WaitMap(ctx context.Context) (*shardmap.Map, error) {
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	for {
		changed := c.maps.Changed()
		if m := c.maps.Current(); m != nil {
			return m, nil
		}
		select {
		case <-changed:
		case <-c.ctx.Done():
			return nil, ErrClosed
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w: no shard map yet%s", ctx.Err(), ErrUnavailable, c.mapTrouble())
		}
	}
}

// bounded gives a context without deadline the default one.
func (c *Client) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, c.options.Timeout)
}

// mapTrouble says why there is no map, if that is known.
func (c *Client) mapTrouble() string {
	if c.watch != nil {
		if err := c.watch.trouble(); err != nil {
			return ": " + err.Error()
		}
	}
	return ""
}

// step lets the router decide and then does what came of it.
func (c *Client) step(decide func(r *routing.Router, now time.Time)) {
	out := outputs.Get().(*routing.Output)
	c.mu.Lock()
	if !c.closed {
		decide(c.router, c.options.Clock())
	}
	c.router.Take(out)
	c.mu.Unlock()
	c.perform(out)
	outputs.Put(out)
}

// outputs are reused: a step at full load is one of many.
var outputs = sync.Pool{New: func() any { return new(routing.Output) }}

// perform carries out what the router decided.
func (c *Client) perform(out *routing.Output) {
	for _, to := range out.Connect {
		c.connect(to)
	}
	c.send(out.Sends)
	for _, addr := range out.Disconnect {
		c.disconnect(addr)
	}
	if out.Refresh {
		c.maps.Refresh(out.RefreshAfter)
	}
	c.alarm.set(out.Wake)
	for _, d := range out.Deliveries {
		c.deliver(d)
	}
}

func (c *Client) tick() {
	c.step((*routing.Router).Tick)
}

// responses takes in what the connection to a node received.
func (c *Client) responses(addr string, ps []*flotillav1.Response) {
	c.step(func(r *routing.Router, now time.Time) {
		r.Heard(now, addr)
		for _, p := range ps {
			r.Response(now, p)
		}
	})
}

// followMap hands each new map to the router.
func (c *Client) followMap() {
	for {
		changed := c.maps.Changed()
		if m := c.maps.Current(); m != nil {
			c.step(func(r *routing.Router, now time.Time) { r.MapChanged(now, m) })
		}
		select {
		case <-changed:
		case <-c.ctx.Done():
			return
		}
	}
}
