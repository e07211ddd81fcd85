package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/flotilla-kv/flotilla/node"
	"github.com/flotilla-kv/flotilla/shardctrler"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Limits of a development cluster.
const (
	devNodesMax    = 99
	devPortsOfNode = 10
	devCacheBytes  = 128 << 20 // one block cache for all nodes of the process
	devReadyMax    = 60 * time.Second
)

// devShape is what a development cluster's data dir was made with.
type devShape struct {
	Nodes  int `json:"nodes"`
	Groups int `json:"groups"`
	Shards int `json:"shards"`
}

// devOptions are the flags of flotilla dev.
type devOptions struct {
	devShape
	dataDir  string
	basePort int
	pprof    bool
	log      logFlags
}

func newDevCommand() *cobra.Command {
	var o devOptions
	command := &cobra.Command{
		Use:   "dev",
		Short: "Run a whole cluster in one process on loopback",
		Long: `Dev runs a cluster of --nodes nodes in one process, with real gRPC, gossip and
disks on loopback. Node i (from 0) has gRPC at --base-port + 10*i, gossip at +1,
the Redis protocol at +2 and HTTP at +3. It prints "flotilla: ready" when all
nodes serve. Ctrl-C stops it cleanly; with the same --data-dir it starts again
with its data. Without --data-dir a temporary one is used and removed.`,
		Args: onlyFlags,
		RunE: func(c *cobra.Command, _ []string) error {
			logger, err := o.log.logger(c.ErrOrStderr())
			if err != nil {
				return err
			}
			if err := o.check(); err != nil {
				return usageError{err}
			}
			if err := refuseTLSFlags(c.Flags()); err != nil {
				return err
			}
			raiseProcs()
			return runDev(c.Context(), c.OutOrStdout(), logger, o, c.Flags())
		},
	}
	flags := command.Flags()
	flags.IntVar(&o.Nodes, "nodes", 3, "nodes to run")
	flags.IntVar(&o.Groups, "groups", 4, "replica groups")
	flags.IntVar(&o.Shards, "shards", 256, "shards of the key space: a power of two")
	flags.StringVar(&o.dataDir, "data-dir", "", "where to keep the data (default: a temporary one)")
	flags.IntVar(&o.basePort, "base-port", 7000, "the first node's gRPC port")
	flags.BoolVar(&o.pprof, "pprof", false, "serve /debug/pprof on the HTTP ports")
	o.log.add(flags, "warn")
	return command
}

func (o *devOptions) check() error {
	if o.Nodes < 1 || o.Nodes > devNodesMax {
		return fmt.Errorf("--nodes %d: it is 1 to %d", o.Nodes, devNodesMax)
	}
	if err := shardmap.CheckShards(o.Shards); err != nil {
		return fmt.Errorf("--shards: %w", err)
	}
	if o.Groups < 1 || o.Groups > o.Shards {
		return fmt.Errorf("--groups %d: it is 1 to the number of shards (%d)", o.Groups, o.Shards)
	}
	if last := o.basePort + devPortsOfNode*o.Nodes; o.basePort < 1 || last > 65_535 {
		return fmt.Errorf("--base-port %d: ports %d to %d do not all exist", o.basePort, o.basePort, last)
	}
	return nil
}

// runDev runs the cluster until ctx ends or a node fails.
func runDev(ctx context.Context, out io.Writer, logger *slog.Logger, o devOptions, flags *pflag.FlagSet) error {
	dir, remove, err := devDir(o.dataDir)
	if err != nil {
		return err
	}
	defer remove()
	fresh, err := agreeOnShape(dir, &o.devShape, flags)
	if err != nil {
		return err
	}
	nodes, err := startNodes(ctx, logger, dir, o, fresh)
	if err != nil {
		return errors.Join(err, stopNodes(nodes))
	}
	for _, n := range nodes {
		printAddresses(out, n)
	}
	nodes, err = bringUp(ctx, out, nodes)
	if err == nil {
		fmt.Fprintln(out, "flotilla: ready")
		nodes, err = waitForEnd(ctx, out, nodes)
	}
	stopErr := stopNodes(nodes)
	if err != nil && !errors.Is(err, context.Canceled) {
		return err // that a failed store cannot be closed tidily is nothing new
	}
	return stopErr
}

// devDir makes the data dir; remove deletes a temporary one.
func devDir(dir string) (path string, remove func(), err error) {
	if dir == "" {
		dir, err = os.MkdirTemp("", "flotilla-dev-")
		return dir, func() { os.RemoveAll(dir) }, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", nil, fmt.Errorf("--data-dir: %w", err)
	}
	return dir, func() {}, nil
}

// shapeFile remembers, in the data dir, what the cluster was made with. It is
// written once init has succeeded.
const shapeFile = "dev.json"

// agreeOnShape takes the shape that the data dir was made with; a flag that
// says otherwise is refused. fresh: there is no cluster in it yet.
func agreeOnShape(dir string, shape *devShape, flags *pflag.FlagSet) (fresh bool, err error) {
	content, err := os.ReadFile(filepath.Join(dir, shapeFile))
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	var made devShape
	if err := json.Unmarshal(content, &made); err != nil {
		return false, fmt.Errorf("%s: %w", filepath.Join(dir, shapeFile), err)
	}
	for _, c := range []struct {
		flag        string
		given, made int
	}{{"nodes", shape.Nodes, made.Nodes}, {"groups", shape.Groups, made.Groups}, {"shards", shape.Shards, made.Shards}} {
		if flags.Changed(c.flag) && c.given != c.made {
			return false, fmt.Errorf("--%s %d: the cluster in %s was made with %d; leave the flag out or use another --data-dir", c.flag, c.given, dir, c.made)
		}
	}
	*shape = made
	return false, nil
}

func writeShape(dir string, shape devShape) error {
	content, err := json.Marshal(shape)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, shapeFile), append(content, '\n'), 0o644)
}

// startNodes starts all nodes: at once, as each has a log to read; those of a
// fresh cluster one after the other, so that node1 is node 1, and the cluster is
// made at the first. What has started is returned with an error too.
func startNodes(ctx context.Context, logger *slog.Logger, dir string, o devOptions, fresh bool) ([]*node.Node, error) {
	ctx, cancel := withReadyLimit(ctx)
	defer cancel()
	cache := node.NewCache(devCacheBytes, o.Nodes)
	defer cache.Unref()
	nodes := make([]*node.Node, o.Nodes)
	errs := make([]error, o.Nodes)
	start := func(i int) { nodes[i], errs[i] = node.Start(o.nodeOptions(i, dir, cache, logger)) }
	if fresh {
		for i := range o.Nodes {
			if start(i); errs[i] == nil {
				errs[i] = joinFresh(ctx, nodes[i], i, o, dir)
			}
			if errs[i] != nil {
				break
			}
		}
	} else {
		var starts sync.WaitGroup
		for i := range o.Nodes {
			starts.Go(func() { start(i) })
		}
		starts.Wait()
	}
	failed := slices.IndexFunc(errs, func(err error) bool { return err != nil })
	nodes = slices.DeleteFunc(nodes, func(n *node.Node) bool { return n == nil })
	if failed >= 0 {
		return nodes, fmt.Errorf("%s: %w", devNodeName(failed), errs[failed]) // the others mostly say the same
	}
	return nodes, nil
}

func devNodeName(i int) string { return "node" + strconv.Itoa(i+1) }

// nodeOptions are those of node i, from 0.
func (o devOptions) nodeOptions(i int, dir string, cache *pebble.Cache, logger *slog.Logger) node.Options {
	at := func(i, offset int) string {
		return "127.0.0.1:" + strconv.Itoa(o.basePort+devPortsOfNode*i+offset)
	}
	var join []string
	for other := range o.Nodes {
		if other != i {
			join = append(join, at(other, 1))
		}
	}
	name := devNodeName(i)
	return node.Options{
		Name:         name,
		DataDir:      filepath.Join(dir, name),
		Listen:       at(i, 0),
		GossipListen: at(i, 1),
		RespListen:   at(i, 2),
		HTTPListen:   at(i, 3),
		Join:         join,
		Cache:        cache,
		Pprof:        o.pprof,
		Logger:       logger.With("node", name),
	}
}

// withReadyLimit bounds a bring-up.
func withReadyLimit(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, devReadyMax, fmt.Errorf("the cluster was not ready within %s", devReadyMax))
}

// joinFresh makes the cluster at the first node; the others wait until they
// are registered in it.
func joinFresh(ctx context.Context, n *node.Node, i int, o devOptions, dir string) error {
	if i == 0 {
		return makeCluster(ctx, n, o, dir)
	}
	return n.WaitRegistered(ctx)
}

// bringUp waits until the cluster serves: every node ready, and the config
// group at min(nodes, 3) replicas. Nodes that the cluster has removed are left
// out; those that run are returned.
func bringUp(ctx context.Context, out io.Writer, nodes []*node.Node) (run []*node.Node, err error) {
	ctx, cancel := withReadyLimit(ctx)
	defer cancel()
	var waiting sync.Map
	for i, n := range nodes {
		removed, err := waitReady(ctx, n, func(what string) { waiting.Store(i, what) })
		switch {
		case removed:
			leaveOut(out, n)
		case err != nil:
			return append(run, nodes[i:]...), readyError(ctx, n, &waiting, i, err)
		default:
			run = append(run, n)
		}
	}
	if len(run) == 0 {
		return nil, errors.New("all nodes of the data dir were removed from the cluster: use another --data-dir")
	}
	return run, run[0].WaitConfigReplicas(ctx, min(len(run), 3))
}

// waitReady waits until a node is ready, or hears that it was removed.
func waitReady(ctx context.Context, n *node.Node, report func(string)) (removed bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ready := make(chan error, 1)
	go func() { ready <- n.WaitReady(ctx, report) }()
	select {
	case err = <-ready:
	case err = <-n.Failed():
		cancel(err)
		<-ready
	}
	return errors.Is(err, shardctrler.ErrNodeRemoved), err
}

// leaveOut stops a node that the cluster has removed.
func leaveOut(out io.Writer, n *node.Node) {
	a := n.Addresses()
	fmt.Fprintf(out, "flotilla: %s was removed from the cluster: it is stopped, and the others go on\n", a.Name)
	if err := stopNode(n, stopTimeout, false); err != nil && !errors.Is(err, shardctrler.ErrNodeRemoved) {
		fmt.Fprintf(out, "flotilla: %s: %v\n", a.Name, err)
	}
}

// makeCluster runs init at the first node. A crash between init and the shape
// file leaves a cluster that is there already, which is just as good.
func makeCluster(ctx context.Context, first *node.Node, o devOptions, dir string) error {
	if !first.Initialized() {
		if err := first.Init(ctx, o.Shards, min(3, o.Nodes), o.Groups); err != nil {
			return fmt.Errorf("init: %w", err)
		}
	}
	return writeShape(dir, o.devShape)
}

func readyError(ctx context.Context, n *node.Node, waiting *sync.Map, i int, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		what, _ := waiting.Load(i)
		return fmt.Errorf("%w: %s waits for %v", cause, n.Addresses().Name, what)
	}
	return err
}

// waitForEnd returns when ctx ends (nil) or a node fails. One that is removed
// only leaves; those that are left are returned.
func waitForEnd(ctx context.Context, out io.Writer, nodes []*node.Node) (left []*node.Node, err error) {
	type failure struct {
		node *node.Node
		err  error
	}
	failed := make(chan failure, len(nodes))
	done := make(chan struct{})
	var watchers sync.WaitGroup
	for _, n := range nodes {
		watchers.Go(func() {
			select {
			case err := <-n.Failed():
				failed <- failure{n, err}
			case <-done:
			}
		})
	}
	defer watchers.Wait()
	defer close(done)
	for len(nodes) > 0 {
		select {
		case <-ctx.Done():
			return nodes, nil
		case f := <-failed:
			if !errors.Is(f.err, shardctrler.ErrNodeRemoved) {
				return nodes, fmt.Errorf("%s: %w", f.node.Addresses().Name, f.err)
			}
			leaveOut(out, f.node)
			nodes = slices.DeleteFunc(nodes, func(n *node.Node) bool { return n == f.node })
		}
	}
	return nil, nil
}

// stopNodes stops all nodes at once; there is nobody to hand leaderships to.
func stopNodes(nodes []*node.Node) error {
	errs := make([]error, len(nodes))
	var stops sync.WaitGroup
	for i, n := range nodes {
		stops.Go(func() { errs[i] = stopNode(n, stopTimeout, false) })
	}
	stops.Wait()
	return errors.Join(errs...)
}
