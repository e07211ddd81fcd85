package shardctrler

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Options of a Controller. All are needed unless said otherwise.
type Options struct {
	Registration Registration // what the node says of itself; RandomID is durable already
	Home         Home
	Shards       Shards
	Peers        Peers
	Dial         Dialer
	// Alive tells whether a node is heard of. It is asked on the config group's
	// leader only.
	Alive func(raft.NodeID) bool
	// Ready tells whether the node serves all it should, and else what it waits
	// for. It is asked for each node report.
	Ready func() (ready bool, waitingFor []string)
	// LastMap is what SaveMap was last given, nil for nothing.
	LastMap []byte
	// SaveMap remembers a map over a restart. nil: it is not remembered.
	SaveMap func([]byte) error
	Logger  *slog.Logger
}

// Controller is a node's part of the config group: the Cluster service, the
// one watch on the map, the node's registration, and, while the node leads the
// config group, the reconciler. All methods may be called by anybody.
type Controller struct {
	flotillav1.UnimplementedClusterServer

	options   Options
	logger    *slog.Logger
	maps      *MapSource
	changed   signal        // something outside the maps has changed: peers, leaders, identity
	founding  chan struct{} // has an element while somebody may change the identity
	proposals chan struct{} // has an element for each proposal under way

	stop     context.CancelFunc
	ctx      context.Context // ends with Close
	running  sync.WaitGroup
	stopping atomic.Bool // BeginStop was called

	mu      sync.Mutex // guards all below
	id      Identity
	host    Host     // nil before there is an identity
	machine *Machine // of the latest local replica of the config group
	refusal string   // why registration is refused, "" if it is not
	waits   []string // what the reconciler's operations wait for
	hints   map[raft.GroupID]raft.NodeID
}

// hintsMax bounds the leader hints kept; past it hints are dropped, which only
// costs attempts.
const hintsMax = 16_384

// proposalsMax bounds what is proposed to the config group at once from here;
// callers past it wait.
const proposalsMax = 256

// New makes a controller that does nothing before Attach or Start.
func New(options Options) *Controller {
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Controller{options: options, logger: options.Logger, founding: make(chan struct{}, 1),
		proposals: make(chan struct{}, proposalsMax), hints: make(map[raft.GroupID]raft.NodeID)}
	c.ctx, c.stop = context.WithCancel(context.Background())
	c.maps = newMapSource(c, options.SaveMap, options.Logger)
	return c
}

// Attach tells who the node is and what runs its replicas. A node that starts
// with an identity calls it before Start; for one that gets its identity later
// the controller does so itself with what Home returned.
func (c *Controller) Attach(id Identity, host Host) {
	c.mu.Lock()
	c.id, c.host = id, host
	c.mu.Unlock()
	c.maps.belong(id.ClusterID)
	if last, err := DecodeMap(c.options.LastMap); err == nil {
		c.maps.offer(last)
	} else if len(c.options.LastMap) > 0 {
		c.logger.Warn("the remembered map cannot be read and is ignored", "error", err)
	}
	c.changed.fire()
}

// Start begins to register, to follow the map and to reconcile.
func (c *Controller) Start() {
	c.running.Add(3)
	go func() { defer c.running.Done(); c.register(c.ctx) }()
	go func() { defer c.running.Done(); c.maps.run(c.ctx) }()
	go func() { defer c.running.Done(); c.reconcile(c.ctx) }()
}

// BeginStop is to be called before the node hands over its leaderships: from
// then on its reports say that it stops, so that nothing is handed back, and
// it reconciles no more.
func (c *Controller) BeginStop() {
	c.stopping.Store(true)
	c.changed.fire()
}

// Close stops what Start began, ends the watches and waits.
func (c *Controller) Close() {
	c.stop()
	c.running.Wait()
}

// Maps is the node's one watch on the config.
func (c *Controller) Maps() *MapSource { return c.maps }

// Identity is who the node is; false: it is not registered yet.
func (c *Controller) Identity() (Identity, bool) {
	id := c.identity()
	return id, id.Node != 0
}

func (c *Controller) identity() Identity {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.id
}

// WaitingFor says what the node still needs before it has an identity and a
// map; empty if nothing.
func (c *Controller) WaitingFor() []string {
	c.mu.Lock()
	id, refusal := c.id, c.refusal
	c.mu.Unlock()
	switch {
	case refusal != "":
		return []string{"registration, which is refused: " + refusal}
	case id.Node == 0 && len(c.peerAddrs()) == 0:
		return []string{"init"}
	case id.Node == 0:
		return []string{"registration"}
	case c.maps.Current() == nil:
		return []string{"the shard map"}
	}
	return nil
}

// News returns a channel that is closed when the identity, the peers or a
// leader may have changed.
func (c *Controller) News() <-chan struct{} { return c.changed.wait() }

// PeersChanged is to be called when Peers would answer something else.
func (c *Controller) PeersChanged() { c.changed.fire() }

// LeaderChanged is to be called when this node learns who leads a group: from
// its own replica or from a hint. Node 0, for nobody, is welcome too.
func (c *Controller) LeaderChanged(group raft.GroupID, node raft.NodeID) {
	c.mu.Lock()
	if _, known := c.hints[group]; known || len(c.hints) < hintsMax {
		c.hints[group] = node
	}
	c.mu.Unlock()
	c.changed.fire()
}

// setRefusal notes why registration is refused and tells whether that is news.
func (c *Controller) setRefusal(refusal string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	news := c.refusal != refusal
	c.refusal = refusal
	return news
}

// parts is what most calls need.
func (c *Controller) parts() (Identity, Host, *Machine) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.id, c.host, c.machine
}

// newMachine makes the state machine of this node's replica of the config
// group and reads from it from then on.
func (c *Controller) newMachine() *Machine {
	m := NewMachine()
	c.mu.Lock()
	c.machine = m
	c.mu.Unlock()
	c.changed.fire()
	return m
}

// leads tells whether this node leads the config group.
func (c *Controller) leads() (leading, bool) {
	id, host, machine := c.parts()
	if host == nil || machine == nil {
		return leading{}, false
	}
	leader, term, known := host.Leader(raft.ConfigGroup)
	return leading{host, machine, term}, known && leader.Node == id.Node
}

// leading is what a node leads the config group with. A later value that is
// equal means that it has led all the time.
type leading struct {
	host    Host
	machine *Machine
	term    raft.Term
}

// local implements view.
func (c *Controller) local() (*Machine, bool) {
	_, host, machine := c.parts()
	if host == nil || machine == nil || !machine.State().Initialised() {
		return machine, false
	}
	st, ok := host.Status(raft.ConfigGroup)
	return machine, ok && st.Leader.Node != 0 && st.CaughtUp
}

// addrs implements view: what gossip says of a node, then what the map says.
func (c *Controller) addrs(node raft.NodeID) []string {
	id := c.identity()
	var addrs []string
	for _, p := range c.options.Peers.Peers() {
		if p.Node == node && p.ClusterID == id.ClusterID && p.Addr != "" && !slices.Contains(addrs, p.Addr) {
			addrs = append(addrs, p.Addr)
		}
	}
	if m := c.maps.Current(); m != nil {
		if n, ok := m.Node(node); ok && !slices.Contains(addrs, n.Addr) {
			addrs = append(addrs, n.Addr)
		}
	}
	return addrs
}

// peerAddrs implements view. Before there is an identity, any cluster's nodes
// count; after, only those of the own one.
func (c *Controller) peerAddrs() []string {
	id := c.identity()
	var addrs []string
	for _, p := range c.options.Peers.Peers() {
		wrong := p.ClusterID == "" || (id.ClusterID != "" && p.ClusterID != id.ClusterID) || (id.Node != 0 && p.Node == id.Node)
		if !wrong && p.Addr != "" && p.Addr != c.options.Registration.Addr && !slices.Contains(addrs, p.Addr) {
			addrs = append(addrs, p.Addr)
		}
	}
	return addrs
}

func (c *Controller) self() raft.NodeID                                  { return c.identity().Node }
func (c *Controller) dial(addr string) (grpc.ClientConnInterface, error) { return c.options.Dial(addr) }
func (c *Controller) news() <-chan struct{}                              { return c.changed.wait() }

// clients are connections to a node under each of its addresses.
func (c *Controller) clients(node raft.NodeID) []flotillav1.ClusterClient {
	var clients []flotillav1.ClusterClient
	for _, addr := range c.addrs(node) {
		if conn, err := c.options.Dial(addr); err == nil {
			clients = append(clients, flotillav1.NewClusterClient(conn))
		}
	}
	return clients
}

// config is the cluster's map, or the error that there is none yet.
func (c *Controller) currentMap() (*shardmap.Map, error) {
	if m := c.maps.Current(); m != nil {
		return m, nil
	}
	if c.identity().Node == 0 {
		return nil, ErrNotInitialised
	}
	return nil, errNoMap
}

// sleep waits for d, for news, or for ctx.
func (c *Controller) sleep(ctx context.Context, d time.Duration, news <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-news:
	}
}
