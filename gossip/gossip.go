package gossip

import (
	"cmp"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/flotilla-kv/flotilla/raft"
)

// Options of a Gossip. RandomID, Listen and Meta.Boot are required.
type Options struct {
	RandomID  string // of the node's data dir
	Listen    string // HOST:PORT, TCP and UDP; port 0 takes a free one
	Advertise string // host that others are told; empty: Listen's
	Join      []string
	Key       []byte // encrypts: 16, 24 or 32 bytes; nil: plain
	Meta      Meta
	Logger    *slog.Logger

	// OnChange is told that Members has changed, OnHint of hints and
	// OnHighWater of revisions newer than any heard of before. They may be nil
	// and must not block.
	OnChange    func()
	OnHint      func(Hint)
	OnHighWater func(revision uint64)

	network func(memberlist.NodeAwareTransport) memberlist.Transport // what tests put around it
}

// Member is a node that is heard of and not taken for dead.
type Member struct {
	Meta
	GossipAddr string
}

// Limits and times.
const (
	retransmitMult   = 4
	pushPullInterval = 5 * time.Second
	tcpTimeout       = 2 * time.Second
	leaveTimeout     = 500 * time.Millisecond
	updateTimeout    = time.Second
	joinPauseMin     = 200 * time.Millisecond // after a join that found nobody
	joinPauseMax     = 5 * time.Second        // and while all is well
	hintsMax         = 4096                   // groups whose hint may wait to be sent
)

// Gossip is one process's part.
type Gossip struct {
	options Options
	logger  *slog.Logger
	list    *memberlist.Memberlist
	queue   *memberlist.TransmitLimitedQueue

	stop    chan struct{}
	running sync.WaitGroup

	name string // this process's
	addr string // likewise; set by Start

	mu        sync.Mutex        // guards what follows
	seen      map[string]Member // by memberlist's name, this process aside
	meta      Meta
	encoded   []byte
	highWater uint64
}

// Start opens the ports and joins the addresses given, for ever, in the
// background. It does not wait for anybody.
func Start(options Options) (*Gossip, error) {
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	if n := len(options.Key); n != 0 && n != 16 && n != 24 && n != 32 {
		return nil, fmt.Errorf("gossip: a key has 16, 24 or 32 bytes, not %d", n)
	}
	encoded, err := options.Meta.encode()
	if err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	g := &Gossip{
		options: options,
		logger:  options.Logger,
		stop:    make(chan struct{}),
		meta:    options.Meta,
		encoded: encoded,
		name:    options.RandomID + "." + strconv.FormatUint(options.Meta.Boot, 36),
		seen:    make(map[string]Member),
	}
	config, err := g.config()
	if err != nil {
		return nil, fmt.Errorf("gossip: %w", err)
	}
	g.queue = &memberlist.TransmitLimitedQueue{NumNodes: func() int { return g.size() }, RetransmitMult: retransmitMult}
	list, err := memberlist.Create(config)
	if err != nil {
		return nil, fmt.Errorf("gossip port %s: %w", options.Listen, err)
	}
	g.mu.Lock()
	g.list = list
	g.mu.Unlock()
	g.addr = list.LocalNode().Address() // before anybody could write to the node
	g.running.Go(g.joinForever)
	return g, nil
}

func (g *Gossip) config() (*memberlist.Config, error) {
	host, text, err := net.SplitHostPort(g.options.Listen)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", g.options.Listen, err)
	}
	port, err := strconv.Atoi(text)
	if err != nil || port < 0 || port > 65535 {
		return nil, fmt.Errorf("address %q: no such port", g.options.Listen)
	}
	c := memberlist.DefaultLANConfig()
	c.Name = g.name
	c.BindAddr, c.BindPort = host, port
	c.AdvertisePort = port
	if g.options.Advertise != "" {
		if c.AdvertiseAddr, err = resolve(g.options.Advertise); err != nil {
			return nil, err
		}
	}
	c.RetransmitMult = retransmitMult
	c.PushPullInterval = pushPullInterval
	c.TCPTimeout = tcpTimeout
	c.DisableTcpPings = false
	c.SecretKey = g.options.Key
	c.Logger = log.New(&logWriter{logger: g.logger}, "", 0)
	d := &delegate{gossip: g}
	c.Delegate, c.Events, c.Alive, c.Merge, c.Conflict = d, d, d, d, d
	if g.options.network != nil {
		t, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{BindAddrs: []string{host}, BindPort: port, Logger: c.Logger})
		if err != nil {
			return nil, err
		}
		c.BindPort, c.AdvertisePort = t.GetAutoBindPort(), t.GetAutoBindPort()
		c.Transport = g.options.network(t)
	}
	return c, nil
}

// resolve turns a host into the address that memberlist wants.
func resolve(host string) (string, error) {
	if net.ParseIP(host) != nil {
		return host, nil
	}
	addrs, err := net.LookupHost(host)
	if err != nil {
		return "", fmt.Errorf("advertised host %s: %w", host, err)
	}
	return addrs[0], nil
}

// members is memberlist's list, nil before it is made.
func (g *Gossip) members() *memberlist.Memberlist {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.list
}

func (g *Gossip) size() int {
	if list := g.members(); list != nil {
		return list.NumMembers()
	}
	return 1
}

// Addr is where this process listens, as others are told.
func (g *Gossip) Addr() string { return g.addr }

// Members are the nodes heard of, this one aside, ascending by address; of a
// node that has had several lives the latest.
func (g *Gossip) Members() []Member {
	g.mu.Lock()
	members := slices.Collect(maps.Values(g.seen))
	g.mu.Unlock()
	return latestLives(members)
}

// see notes a member. memberlist calls it while it holds the lock that guards
// its nodes: what Members of memberlist returns is not safe to read.
func (g *Gossip) see(node *memberlist.Node) {
	meta, err := decodeMeta(node.Meta)
	if err != nil || node.Name == g.name {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.seen[node.Name] = Member{Meta: meta, GossipAddr: node.Address()}
}

// lose drops a member.
func (g *Gossip) lose(name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.seen, name)
}

// latestLives leaves one member for each node id and address.
func latestLives(members []Member) []Member {
	slices.SortFunc(members, func(a, b Member) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Addr, b.Addr), cmp.Compare(b.Boot, a.Boot))
	})
	var latest []Member
	boots := make(map[raft.NodeID]int) // node -> place in latest
	for _, m := range members {
		if place, seen := boots[m.Node]; seen && m.Node != 0 {
			if latest[place].Boot < m.Boot {
				latest[place] = m
			}
			continue
		}
		boots[m.Node] = len(latest)
		latest = append(latest, m)
	}
	slices.SortFunc(latest, func(a, b Member) int { return cmp.Compare(a.Addr, b.Addr) })
	return slices.CompactFunc(latest, func(a, b Member) bool { return a.Addr == b.Addr && a.Node == b.Node })
}

// UpdateMeta changes what this node says of itself.
func (g *Gossip) UpdateMeta(m Meta) error {
	m.Boot = g.options.Meta.Boot
	encoded, err := m.encode()
	if err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	g.mu.Lock()
	g.meta, g.encoded = m, encoded
	g.mu.Unlock()
	if err := g.list.UpdateNode(updateTimeout); err != nil {
		g.logger.Debug("the new meta data spreads later", "error", err)
	}
	return nil
}

// BroadcastHint tells others who leads a group. A newer hint of the group
// replaces one that still waits.
func (g *Gossip) BroadcastHint(h Hint) {
	if g.queue.NumQueued() >= hintsMax {
		return // a hint more or less
	}
	g.queue.QueueBroadcast(&broadcast{subject: "leader " + strconv.FormatUint(uint64(h.Group), 10), message: encodeHint(h)})
}

// SetHighWater tells others that a shard map of this revision exists.
func (g *Gossip) SetHighWater(revision uint64) {
	if g.raise(revision) {
		g.queue.QueueBroadcast(&broadcast{subject: "revision", message: encodeHighWater(revision)})
	}
}

// HighWater is the newest revision heard of.
func (g *Gossip) HighWater() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.highWater
}

func (g *Gossip) raise(revision uint64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if revision <= g.highWater {
		return false
	}
	g.highWater = revision
	return true
}

// Stop says good-bye, closes the ports and waits for what it started.
func (g *Gossip) Stop() error {
	close(g.stop)
	var errs []error
	if g.list.NumMembers() > 1 {
		if err := g.list.Leave(leaveTimeout); err != nil {
			g.logger.Debug("gossip left without a good-bye", "error", err)
		}
	}
	errs = append(errs, g.list.Shutdown())
	g.running.Wait()
	return errors.Join(errs...)
}

// joinForever keeps joining the addresses given that are not members: often
// while nobody is there, seldom when all is well. A partition that healed is
// joined again that way.
func (g *Gossip) joinForever() {
	pause := joinPauseMin
	for {
		if missing := g.missing(); len(missing) > 0 {
			found, err := g.list.Join(missing)
			if err != nil && found == 0 {
				g.logger.Debug("no gossip from these addresses", "addresses", missing, "error", err)
			}
		}
		if g.list.NumMembers() > 1 {
			pause = joinPauseMax
		} else {
			pause = min(2*pause, joinPauseMax)
		}
		select {
		case <-time.After(pause):
		case <-g.stop:
			return
		}
	}
}

// missing are the addresses to join that no member has.
func (g *Gossip) missing() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	present := make(map[string]bool)
	for _, m := range g.seen {
		present[m.GossipAddr] = true
	}
	return slices.DeleteFunc(slices.Clone(g.options.Join), func(addr string) bool { return present[addr] })
}
