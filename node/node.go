package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/client"
	"github.com/flotilla-kv/flotilla/gossip"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/logstore"
	"github.com/flotilla-kv/flotilla/raft/multiraft"
	"github.com/flotilla-kv/flotilla/raft/statestore"
	"github.com/flotilla-kv/flotilla/raft/transport"
	"github.com/flotilla-kv/flotilla/resp"
	"github.com/flotilla-kv/flotilla/shardctrler"
	"github.com/flotilla-kv/flotilla/shardkv"
)

// Node is one running node.
type Node struct {
	options   Options
	logger    *slog.Logger
	metrics   *metrics
	listeners *listeners
	addresses Addresses
	security  security
	around    surroundings

	cache     *pebble.Cache
	log       *logstore.Store
	states    *statestore.Store
	transport *transport.Transport
	kv        *shardkv.Server
	conns     *conns
	ctrl      *shardctrler.Controller
	ctrlRef   atomic.Pointer[shardctrler.Controller] // ctrl, for gossip, which is opened before it
	gossip    *gossip.Gossip
	client    *client.Client
	grpc      *grpc.Server
	health    *health.Server
	resp      *resp.Server
	http      *httpDoor

	host   atomic.Pointer[multiraft.Host] // nil before the node has an identity
	hostMu sync.Mutex                     // held while the host is opened: Found and Adopt come once at a time

	identityMu sync.Mutex // held while the durable identity is changed

	removedMu sync.Mutex        // guards removed
	removed   []raft.ReplicaKey // by their own logs, still to be deleted

	replays replays

	startErrors map[raft.ReplicaKey]string // followMap's: why a replica could not be started

	failing sync.Once     // the first fatal error counts
	failed  chan error    // has it
	changed chan struct{} // has an element when leaders or replicas have changed

	ended   chan struct{}      // closed when Stop is called
	ctx     context.Context    // of the node's own goroutines
	stop    context.CancelFunc // ends them
	running sync.WaitGroup     // of them
}

// Start opens the node's ports and stores and begins to serve what it can. It
// returns before the node is ready; see WaitReady. An error leaves nothing
// behind.
func Start(options Options) (*Node, error) {
	if err := options.check(); err != nil {
		return nil, err
	}
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	n := &Node{
		options: options,
		logger:  options.Logger,
		failed:  make(chan error, 1),
		changed: make(chan struct{}, 1),
		ended:   make(chan struct{}),

		replays:     replays{end: make(map[raft.ReplicaKey]raft.Index)},
		startErrors: make(map[raft.ReplicaKey]string),
	}
	n.ctx, n.stop = context.WithCancel(context.Background())
	if err := n.open(); err != nil {
		closeErr := n.closeAll(context.Background())
		if n.states != nil && pebble.IsCorruptionError(err) {
			return nil, n.explain(err) // and closing says so again
		}
		return nil, errors.Join(err, closeErr)
	}
	return n, nil
}

// explain says where data lies that was found damaged once the stores were
// open; Pebble names a file by its number.
func (n *Node) explain(err error) error {
	if pebble.IsCorruptionError(err) {
		return fmt.Errorf("data dir %s is damaged: %w", n.options.DataDir, err)
	}
	return err
}

// open builds the node from the bottom up. What it has opened when it fails is
// closed by closeAll.
func (n *Node) open() error {
	var err error
	if n.around, err = lookAround(); err != nil {
		return err
	}
	if n.listeners, err = listen(n.options); err != nil {
		return err
	}
	n.addresses = Addresses{
		Name: n.options.Name,
		GRPC: advertised(n.options.Advertise, n.listeners.grpc.Addr()),
		RESP: advertised(n.options.Advertise, n.listeners.resp.Addr()),
		HTTP: advertised(n.options.Advertise, n.listeners.http.Addr()),
	}
	n.metrics = newMetrics(n)
	if err := n.openSecurity(); err != nil {
		return err
	}
	if err := n.openStores(); err != nil {
		return err
	}
	identity, err := n.ownIdentity()
	if err != nil {
		return err
	}
	n.transport, err = transport.New(transport.Options{
		Logger:      n.logger,
		Credentials: n.security.credentials(),
		Clock:       n.around.clock,
		Dial:        n.around.dial,
	})
	if err != nil {
		return err
	}
	if err := n.openGossip(identity); err != nil {
		return err
	}
	n.conns = newConns(n.security.credentials(), n.around.dialOptions())
	n.kv = shardkv.NewServer(n.kvOptions())
	n.ctrl = shardctrler.New(n.controllerOptions(identity))
	n.ctrlRef.Store(n.ctrl)
	if identity.Node != 0 {
		host, err := n.openHost(shardctrler.Identity{ClusterID: identity.ClusterID, Node: identity.Node})
		if err != nil {
			return err
		}
		n.ctrl.Attach(shardctrler.Identity{ClusterID: identity.ClusterID, Node: identity.Node}, host)
	}
	return n.openDoors()
}

// openStores opens the log and the state machines' data.
func (n *Node) openStores() error {
	n.cache = n.options.Cache
	if n.cache == nil {
		n.cache = NewCache(CacheBytesDefault, 1)
	} else {
		n.cache.Ref()
	}
	var err error
	n.log, err = logstore.Open(logstore.Options{
		Dir:     filepath.Join(n.options.DataDir, "log"),
		FS:      n.around.fs,
		Logger:  n.logger,
		OnFatal: n.fail,
		Metrics: n.metrics,
	})
	if err != nil {
		return fmt.Errorf("data dir %s: %w", n.options.DataDir, err)
	}
	n.states, err = statestore.Open(statestore.Options{
		Dir:     filepath.Join(n.options.DataDir, "state"),
		FS:      n.around.fs,
		Cache:   n.cache,
		Logger:  n.logger,
		OnFatal: n.fail,
		OnFlushed: func() {
			if host := n.host.Load(); host != nil {
				host.Flushed()
			}
		},
	})
	if err != nil {
		return fmt.Errorf("data dir %s: %w", n.options.DataDir, err)
	}
	return nil
}

// Bounds of what the RESP door may have under way, all connections together;
// past them it answers TRYAGAIN. Each connection is bounded by the door.
const (
	callsMax     = 1 << 18
	callBytesMax = 256 << 20
)

// openDoors begins to serve: gRPC, the controller's loops, the client, RESP
// and HTTP.
func (n *Node) openDoors() error {
	n.grpc = grpc.NewServer(append(transport.ServerOptions(), n.security.serverOptions()...)...)
	n.health = health.NewServer()
	n.transport.Register(n.grpc)
	flotillav1.RegisterKVServer(n.grpc, n.kv)
	flotillav1.RegisterClusterServer(n.grpc, n.ctrl)
	flotillav1.RegisterMigrationServer(n.grpc, n.kv)
	healthv1.RegisterHealthServer(n.grpc, n.health)
	n.health.SetServingStatus("", healthv1.HealthCheckResponse_NOT_SERVING)
	reflection.Register(n.grpc)

	var err error
	n.client, err = client.New(client.Options{
		Dialer:   &dialer{node: n, far: client.GRPCDialer{Credentials: n.security.credentials(), Options: n.around.dialOptions()}},
		Maps:     n.ctrl.Maps(),
		CallsMax: callsMax,
		BytesMax: callBytesMax,
		Logger:   n.logger,

		Clock:        n.around.clock,
		ClusterClock: (&clusterTime{clock: n.clusterClock}).at,
	})
	if err != nil {
		return err
	}
	n.resp, err = resp.New(resp.Options{
		Listener:         n.security.respListener(n.listeners.resp, n.options.RespPassword),
		Backend:          &backend{node: n},
		Password:         n.options.RespPassword,
		HandshakeTimeout: handshakeTimeout,
		Version:          version(),
		Logger:           n.logger,
	})
	if err != nil {
		return err
	}
	n.http = serveHTTP(n.security.httpListener(n.listeners.http), n.metrics.registry, n, n.options.Pprof, n.logger)

	ctx := n.ctx
	n.running.Go(func() {
		if err := n.grpc.Serve(n.listeners.grpc); err != nil && ctx.Err() == nil {
			n.fail(fmt.Errorf("the gRPC door has closed: %w", err))
		}
	})
	n.running.Go(func() {
		if err := n.resp.Serve(); err != nil && ctx.Err() == nil {
			n.fail(fmt.Errorf("the RESP door has closed: %w", err))
		}
	})
	if n.security.files != nil {
		n.running.Go(func() { n.security.files.Watch(ctx) })
	}
	n.running.Go(func() { n.followMap(ctx) })
	n.running.Go(func() { n.followHealth(ctx) })
	n.ctrl.Start()
	return nil
}

// fail records the first fatal error; see Failed.
func (n *Node) fail(err error) {
	n.failing.Do(func() {
		err = n.explain(err)
		n.logger.Error("the node must stop", "error", err)
		n.failed <- err
	})
}

// Failed delivers the error that ends the node, if one does: a failed disk, or
// a replica that met what it must not skip. The owner then stops the process.
func (n *Node) Failed() <-chan error { return n.failed }

// Addresses are where the node can be reached.
func (n *Node) Addresses() Addresses { return n.addresses }

// HandOver gives the leaderships of this node's replicas to other nodes, as
// far as there are any, within ctx. A node that stops then costs no request.
func (n *Node) HandOver(ctx context.Context) {
	host := n.host.Load()
	if host == nil {
		return
	}
	n.health.Shutdown()
	n.ctrl.BeginStop()
	ctx, cancel := context.WithTimeout(ctx, handOverMax)
	defer cancel()
	if err := host.Drain(ctx); err != nil {
		n.logger.Warn("not every leadership was handed over", "error", err)
	}
}

// handOverMax bounds HandOver: with no other node up there is nobody to take
// over, and no use in waiting for long.
const handOverMax = 5 * time.Second

// Stop ends the node: it answers what is under way, flushes and closes. It may
// be called once.
func (n *Node) Stop(ctx context.Context) error {
	close(n.ended)
	closed := make(chan error, 1)
	go func() { closed <- n.closeAll(ctx) }()
	select {
	case err := <-closed:
		return err
	case <-ctx.Done():
		return fmt.Errorf("the node did not stop in time: %w", ctx.Err())
	}
}

// closeAll closes what is open, the other way round than it was opened.
func (n *Node) closeAll(ctx context.Context) error {
	var errs []error
	n.stop()
	if n.resp != nil {
		errs = append(errs, n.resp.Close(ctx))
	}
	if n.http != nil {
		n.http.stop()
	}
	if n.client != nil {
		errs = append(errs, n.client.Close())
	}
	if n.gossip != nil {
		errs = append(errs, n.gossip.Stop())
	}
	if n.ctrl != nil {
		n.ctrl.Close()
	}
	if n.kv != nil {
		n.kv.Close()
	}
	if n.grpc != nil {
		n.grpc.Stop()
	}
	if n.transport != nil {
		n.transport.Close()
	}
	n.running.Wait()
	if n.conns != nil {
		n.conns.close()
	}
	if host := n.host.Load(); host != nil {
		host.Close()
	}
	if n.states != nil {
		errs = append(errs, n.states.Close())
	}
	if n.log != nil {
		errs = append(errs, n.log.Close())
	}
	if n.cache != nil {
		n.cache.Unref()
	}
	if n.listeners != nil {
		errs = append(errs, n.listeners.close())
	}
	return errors.Join(errs...)
}

// note says that leaders or replicas have changed.
func (n *Node) note() {
	select {
	case n.changed <- struct{}{}:
	default:
	}
}
