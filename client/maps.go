package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Pace of looking for the shard map.
const (
	mapRetryMin     = 20 * time.Millisecond
	mapRetryMax     = time.Second
	mapFirstTimeout = 3 * time.Second        // for a watch to bring its first map
	refreshTimeout  = time.Second            // for one GetMap
	refreshPause    = 100 * time.Millisecond // between two
)

// mapWatch is a MapSource over gRPC: a watch on one node, and, when the map
// proves to be behind, a question to another.
type mapWatch struct {
	servers []string
	dialer  *GRPCDialer
	logger  *slog.Logger
	behind  chan struct{}

	mu      sync.Mutex // guards what follows
	current *shardmap.Map
	changed chan struct{}
	wanted  uint64 // a map after this revision is wanted; with asked
	asked   bool
	watched string // the node watched now
	err     error  // why there is no map yet
}

func newMapWatch(options Options) *mapWatch {
	dialer, ok := options.Dialer.(*GRPCDialer)
	if !ok {
		dialer = &GRPCDialer{Credentials: options.Credentials}
	}
	return &mapWatch{
		servers: slices.Clone(options.Servers),
		dialer:  dialer,
		logger:  options.Logger,
		behind:  make(chan struct{}, 1),
		changed: make(chan struct{}),
	}
}

// Current is the newest map.
func (w *mapWatch) Current() *shardmap.Map {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.current
}

// Changed is closed when Current next changes.
func (w *mapWatch) Changed() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changed
}

// Refresh asks another node than the one watched, unless a newer map is here.
func (w *mapWatch) Refresh(after uint64) {
	w.mu.Lock()
	if w.current != nil && w.current.Revision > after {
		w.mu.Unlock()
		return
	}
	w.wanted, w.asked = after, true
	w.mu.Unlock()
	select {
	case w.behind <- struct{}{}:
	default:
	}
}

// trouble is why there is no map yet.
func (w *mapWatch) trouble() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.current != nil {
		return nil
	}
	return w.err
}

// run watches and refreshes until ctx ends.
func (w *mapWatch) run(ctx context.Context) {
	var refresher sync.WaitGroup
	refresher.Go(func() { w.refreshes(ctx) })
	defer refresher.Wait()
	delay := mapRetryMin
	for turn := 0; ctx.Err() == nil; turn++ {
		addr := pickServer(w.known(), turn)
		got, err := w.watch(ctx, addr)
		if ctx.Err() != nil {
			return
		}
		w.failed(fmt.Errorf("%s: %w", addr, err))
		if got {
			delay = mapRetryMin
			w.logger.Info("shard map watch ended", slog.String("addr", addr), slog.Any("error", err))
		}
		if !pause(ctx, delay) {
			return
		}
		delay = min(delay*2, mapRetryMax)
	}
}

// watch follows the map at one node until that ends; got says that it brought
// one.
func (w *mapWatch) watch(ctx context.Context, addr string) (got bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cc, err := w.dialer.open(addr)
	if err != nil {
		return false, err
	}
	defer cc.Close()
	after := w.revision()
	first := time.AfterFunc(mapFirstTimeout, cancel)
	defer first.Stop()
	if after > 0 {
		first.Stop() // nothing new is no trouble
	}
	stream, err := flotillav1.NewClusterClient(cc).WatchMap(ctx, &flotillav1.WatchMapRequest{AfterRevision: after})
	if err != nil {
		return false, err
	}
	w.setWatched(addr)
	for {
		m, err := stream.Recv()
		if err != nil {
			return got, err
		}
		if err := w.take(m); err != nil {
			return got, err
		}
		got = true
		first.Stop()
	}
}

// refreshes answers Refresh, one question at a time.
func (w *mapWatch) refreshes(ctx context.Context) {
	for turn := 0; ; turn++ {
		select {
		case <-ctx.Done():
			return
		case <-w.behind:
		}
		if w.isWanted() {
			if err := w.get(ctx, pickServer(w.others(), turn)); err != nil {
				w.failed(err)
			}
		}
		if !pause(ctx, refreshPause) {
			return
		}
	}
}

// get asks one node for its map.
func (w *mapWatch) get(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, refreshTimeout)
	defer cancel()
	cc, err := w.dialer.open(addr)
	if err != nil {
		return fmt.Errorf("%s: %w", addr, err)
	}
	defer cc.Close()
	m, err := flotillav1.NewClusterClient(cc).GetMap(ctx, &flotillav1.GetMapRequest{}, grpc.WaitForReady(false))
	if err != nil {
		return fmt.Errorf("%s: %w", addr, err)
	}
	return w.take(m)
}

var errOtherCluster = errors.New("the node belongs to another cluster")

// take keeps a map if it is newer.
func (w *mapWatch) take(wire *flotillav1.ShardMap) error {
	m, err := decodeMap(wire)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.current != nil && m.ClusterID != w.current.ClusterID {
		return errOtherCluster
	}
	if w.current != nil && m.Revision <= w.current.Revision {
		return nil
	}
	w.current, w.err = m, nil
	close(w.changed)
	w.changed = make(chan struct{})
	return nil
}

func (w *mapWatch) failed(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = err
}

func (w *mapWatch) revision() uint64 {
	if m := w.Current(); m != nil {
		return m.Revision
	}
	return 0
}

func (w *mapWatch) isWanted() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	wanted := w.asked && (w.current == nil || w.current.Revision <= w.wanted)
	w.asked = false
	return wanted
}

func (w *mapWatch) setWatched(addr string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.watched = addr
}

// known are the addresses to ask: those given, and the nodes learnt.
func (w *mapWatch) known() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	addrs := slices.Clone(w.servers)
	if w.current == nil {
		return addrs
	}
	for _, n := range w.current.Nodes {
		if n.Addr != "" && n.State != shardmap.NodeRemoved && !slices.Contains(addrs, n.Addr) {
			addrs = append(addrs, n.Addr)
		}
	}
	return addrs
}

// others are those besides the node watched, if there are any.
func (w *mapWatch) others() []string {
	addrs := w.known()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(addrs) == 1 {
		return addrs
	}
	return slices.DeleteFunc(addrs, func(a string) bool { return a == w.watched })
}

func pickServer(addrs []string, turn int) string { return addrs[turn%len(addrs)] }

// pause waits; false if ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
