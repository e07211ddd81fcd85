package shardkv

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/internal/assert"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/multiraft"
	"github.com/flotilla-kv/flotilla/raft/statestore"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Host is what the server needs of the node's host of groups;
// *multiraft.Host is one.
type Host interface {
	Propose(g raft.GroupID, command []byte, done func(multiraft.Result))
	ProposeUrgent(g raft.GroupID, command []byte, done func(multiraft.Result))
	ReadIndex(g raft.GroupID, opt multiraft.ReadOptions, done func(raft.Index, error))
	Leader(g raft.GroupID) (leader raft.Member, term raft.Term, ok bool)
	GroupClock(g raft.GroupID) int64
}

// Options of a Server.
type Options struct {
	// The functions are called for requests, some from the host's callbacks:
	// they must not block nor ask the host. None may be nil.

	// ClusterID is the cluster's, "" before the node belongs to one.
	ClusterID func() string
	// Self tells who the node is; 0 before it is registered.
	Self func() raft.NodeID
	// Shards is how many the key space has; 0 before it is known.
	Shards func() int
	// Address is a node's gRPC address, "" if it is not known.
	Address func(raft.NodeID) string
	// HasQuorum tells whether a majority of the group is on nodes that are
	// heard of. It is asked when a request fails, and often by watches.
	HasQuorum func(raft.GroupID) bool
	// Pull asks the leader of a group, wherever it is, for its part of a move.
	// done is called once, from any goroutine; nil: nothing was heard. It may be
	// nil: then no shard comes to the groups of this node.
	Pull func(q *flotillav1.PullRequest, done func(*flotillav1.PullResponse))
	// MovePaused hears for how long requests for a shard waited that has come
	// here. It may be nil.
	MovePaused func(time.Duration)
	Logger     *slog.Logger
	// Manual: no goroutines; the caller drives with RunOnce.
	Manual bool
}

// Times and limits of a server.
const (
	timeoutDefault = 10 * time.Second
	timeoutMax     = 5 * time.Minute
	dueCheck       = 100 * time.Millisecond // how late a key's removal may be
	readers        = 4                      // goroutines that carry out reads
)

// Server answers requests for the groups of this node: over gRPC (the KV
// service), and in process through Submit.
type Server struct {
	flotillav1.UnimplementedKVServer
	flotillav1.UnimplementedMigrationServer

	options Options
	logger  *slog.Logger
	wheel   *wheel
	reads   *readQueue
	movers  *movers
	scans   *scans
	watches watches
	history atomic.Int64 // bytes that histories may still take
	stats   stats

	host   atomic.Pointer[Host]
	groups sync.Map // raft.GroupID -> *group

	ctx     context.Context // ends with Close
	stop    context.CancelFunc
	running sync.WaitGroup

	turned, kept time.Time // RunOnce's: how far the wheel has turned, when time was last kept
}

// group is a replica of this node.
type group struct {
	id      raft.GroupID
	machine *Machine
	replica *statestore.Replica
	timing  atomic.Bool // an entry for the sake of time is under way
	counts  counts
	meter   meter
	parking parking
}

// NewServer starts a server without groups; the host adds them through
// NewStateMachine. Until Attach all requests are answered "unavailable".
func NewServer(options Options) *Server {
	assert.That(options.ClusterID != nil && options.Self != nil && options.Shards != nil && options.Address != nil && options.HasQuorum != nil,
		"shardkv.Options has a function that is nil")
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{options: options, logger: options.Logger}
	s.wheel = newWheel(s.expired)
	s.reads = newReadQueue()
	s.movers, s.scans = newMovers(), newScans()
	s.history.Store(historyNodeBytes)
	s.ctx, s.stop = context.WithCancel(context.Background())
	if options.Manual {
		return s
	}
	s.running.Go(func() { s.wheel.run(s.ctx) })
	s.running.Go(func() { s.keepTime(s.ctx) })
	s.running.Go(func() { s.driveMoves(s.ctx) })
	s.running.Go(func() { s.runScans(s.ctx) })
	s.running.Go(func() { s.watchLeaders(s.ctx) })
	for range readers {
		s.running.Go(func() { s.reads.run(s.ctx, s.answerReads) })
	}
	return s
}

// RunOnce does what the goroutines of a server without any would do: it answers
// the reads that may be, ends the calls whose time is up, and commits the time
// of groups where something is due. now is the caller's clock.
func (s *Server) RunOnce(now time.Time) {
	for batch := s.reads.pop(); batch != nil; batch = s.reads.pop() {
		s.answerReads(batch)
	}
	if s.turned.IsZero() {
		s.turned, s.kept = now, now
	}
	for ; now.Sub(s.turned) >= wheelTick; s.turned = s.turned.Add(wheelTick) {
		s.wheel.turn()
	}
	if now.Sub(s.kept) >= dueCheck {
		s.kept = now
		s.keepTimeOnce()
	}
	s.driveOnce(now)
}

// Attach gives the server its host.
func (s *Server) Attach(host Host) { s.host.Store(&host) }

// Close ends what NewServer began, and all streams. Writes under way are still
// answered by the host, everything else is answered "unavailable".
func (s *Server) Close() {
	s.stop()
	s.running.Wait()
	s.watches.close()
	for _, r := range s.reads.close() {
		s.answer(r.call, stopping())
	}
	for _, g := range s.sortedGroups() {
		for _, c := range g.parking.close() {
			s.answer(c.call, stopping())
		}
	}
}

func stopping() *flotillav1.Response {
	return &flotillav1.Response{Code: flotillav1.Code_UNAVAILABLE, Message: "the node is stopping"}
}

// NewStateMachine is what the host calls to run a replica of the group here.
func (s *Server) NewStateMachine(id raft.GroupID) func(*statestore.Replica) multiraft.StateMachine {
	return func(r *statestore.Replica) multiraft.StateMachine {
		g := &group{id: id, machine: NewMachine(id), replica: r}
		g.machine.moved = func() { s.movers.moved(g) }
		g.machine.scan = s.scanBase
		g.machine.clock = s.now
		g.machine.history.budget = &s.history
		if before, there := s.groups.Swap(id, g); there {
			s.forget(before.(*group))
		}
		return g.machine
	}
}

// RemoveGroup forgets a replica that the host has removed. Requests for it are
// answered "unavailable". A replica that was started meanwhile stays.
func (s *Server) RemoveGroup(key raft.ReplicaKey) {
	if g := s.group(key.Group); g != nil && g.replica.ID() == key {
		s.groups.CompareAndDelete(key.Group, g)
		s.forget(g)
	}
}

// forget lets go of what a group has beside its replica.
func (s *Server) forget(g *group) {
	s.movers.forget(g)
	g.machine.history.close()
}

func (s *Server) group(id raft.GroupID) *group {
	g, ok := s.groups.Load(id)
	if !ok {
		return nil
	}
	return g.(*group)
}

// Born tells whether the group is known here to know its shards.
func (s *Server) Born(id raft.GroupID) bool {
	g := s.group(id)
	return g != nil && g.machine.Born()
}

// call is a request that is to be answered, once.
type call struct {
	links // in the wheel; guarded by its lock

	id       uint64
	group    raft.GroupID
	done     func(*flotillav1.Response)
	room     func() bool // whether a large answer can be taken; nil: always
	changes  bool        // it may take effect
	answered atomic.Bool
}

// answer answers a call, unless somebody did before.
func (s *Server) answer(c *call, r *flotillav1.Response) {
	if !c.answered.CompareAndSwap(false, true) {
		return
	}
	s.wheel.remove(c)
	r.Id = c.id
	c.done(r)
}

// expired answers a call whose time is up.
func (s *Server) expired(c *call) {
	reason := "no answer in time"
	quorum := s.options.HasQuorum(c.group)
	if !quorum {
		reason = fmt.Sprintf("group %d has no quorum: most of its replicas cannot be reached", c.group)
	}
	switch {
	case c.changes:
		s.answer(c, &flotillav1.Response{Code: flotillav1.Code_UNKNOWN, Message: reason})
	case !quorum:
		s.answer(c, &flotillav1.Response{Code: flotillav1.Code_NO_QUORUM, Message: reason})
	default:
		s.answer(c, &flotillav1.Response{Code: flotillav1.Code_UNAVAILABLE, Message: reason})
	}
}

// Submit carries out requests and calls done for each, once, from any
// goroutine, perhaps before Submit returns. done must not block. A request
// that was not answered when ctx ends is answered all the same.
func (s *Server) Submit(_ context.Context, requests []*flotillav1.Request, done func(*flotillav1.Response)) {
	for _, q := range requests {
		s.submit(q, done, nil)
	}
}

// submit carries out one request. room, if not nil, says whether there is room
// for the answer of a read.
func (s *Server) submit(q *flotillav1.Request, done func(*flotillav1.Response), room func() bool) {
	c := &call{id: q.GetId(), done: done, room: room}
	shards := s.options.Shards()
	host := s.host.Load()
	switch {
	case s.ctx.Err() != nil:
		s.answer(c, stopping())
		return
	case host == nil || shards == 0:
		s.answer(c, &flotillav1.Response{Code: flotillav1.Code_UNAVAILABLE, Message: "the node does not belong to a cluster yet"})
		return
	}
	r, err := fromWire(q, shards)
	if err != nil {
		s.answer(c, &flotillav1.Response{Code: flotillav1.Code_INVALID, Message: err.Error()})
		return
	}
	g := s.group(raft.GroupID(q.GetGroup()))
	if g == nil {
		s.answer(c, &flotillav1.Response{Code: flotillav1.Code_UNAVAILABLE, Message: fmt.Sprintf("group %d is not on this node", q.GetGroup())})
		return
	}
	c.group, c.changes = g.id, r.ask != nil || r.write != nil
	g.meter.count(&r, shards)
	s.wheel.add(c, serverTimeout(q.GetTimeoutMs()))
	if len(g.machine.movesNow().imports) == 0 && !g.parking.slows.Load() || !s.park(g, c, r.shard, r.bytes, func() func() { return s.parked(*host, g, c, q, shards) }) {
		s.carryOut(*host, g, c, r, q)
	}
}

// parked carries a request out later. It keeps a copy: the message that the
// request came in may hold much else.
func (s *Server) parked(host Host, g *group, c *call, q *flotillav1.Request, shards int) func() {
	q = proto.CloneOf(q)
	return func() {
		if r, err := fromWire(q, shards); err == nil { // it was understood before
			s.carryOut(host, g, c, r, q)
		}
	}
}

func (s *Server) carryOut(host Host, g *group, c *call, r request, q *flotillav1.Request) {
	switch {
	case r.ask != nil:
		s.propose(host, g, c, r.ask)
	case r.write != nil:
		s.propose(host, g, c, r.write)
	default:
		s.read(host, g, c, r.read.own(), r.shard, q)
	}
}

// serverTimeout is a little less than the caller waits, so that the answer
// still says why.
func serverTimeout(ms uint32) time.Duration {
	timeout := time.Duration(ms) * time.Millisecond
	if ms == 0 {
		timeout = timeoutDefault
	}
	timeout = min(timeout, timeoutMax)
	return timeout - min(timeout/10, 250*time.Millisecond)
}

func (s *Server) propose(host Host, g *group, c *call, cmd command) {
	host.Propose(g.id, encodeCommand(cmd), func(res multiraft.Result) {
		if res.Err != nil {
			s.answer(c, s.failure(host, g.id, res.Err))
			return
		}
		s.answer(c, res.Value.(*answer).toWire(c.id))
	})
}

// failure is the response of a request that the host did not carry out.
func (s *Server) failure(host Host, id raft.GroupID, err error) *flotillav1.Response {
	var notLeader *multiraft.NotLeaderError
	switch {
	case errors.As(err, &notLeader):
		return s.notLeader(id, notLeader.Leader)
	case errors.Is(err, multiraft.ErrNotLeader):
		leader, _, _ := host.Leader(id)
		return s.notLeader(id, leader)
	case errors.Is(err, multiraft.ErrBusy):
		return &flotillav1.Response{Code: flotillav1.Code_BUSY, Message: err.Error()}
	case errors.Is(err, multiraft.ErrUnknown):
		return &flotillav1.Response{Code: flotillav1.Code_UNKNOWN, Message: err.Error()}
	case errors.Is(err, multiraft.ErrNoQuorum):
		return &flotillav1.Response{Code: flotillav1.Code_NO_QUORUM, Message: fmt.Sprintf("group %d has no quorum: %v", id, err)}
	case errors.Is(err, multiraft.ErrTooLarge):
		return &flotillav1.Response{Code: flotillav1.Code_INVALID, Message: err.Error()}
	case errors.Is(err, multiraft.ErrNoGroup), errors.Is(err, multiraft.ErrStopped):
		return &flotillav1.Response{Code: flotillav1.Code_UNAVAILABLE, Message: err.Error()}
	}
	return &flotillav1.Response{Code: flotillav1.Code_INTERNAL, Message: err.Error()}
}

// notLeader says who leads, or that nobody can.
func (s *Server) notLeader(id raft.GroupID, leader raft.Member) *flotillav1.Response {
	if leader.Node == s.options.Self() {
		leader = raft.Member{} // it was, a moment ago
	}
	if leader.Node == 0 && !s.options.HasQuorum(id) {
		return &flotillav1.Response{Code: flotillav1.Code_NO_QUORUM, Message: fmt.Sprintf("group %d has no quorum: most of its replicas cannot be reached", id)}
	}
	r := &flotillav1.Response{Code: flotillav1.Code_NOT_LEADER, LeaderNode: uint64(leader.Node)}
	if leader.Node != 0 {
		r.LeaderAddr = s.options.Address(leader.Node)
	}
	return r
}

// Birth gives the group that this node leads its first shards; one that was
// born takes it for done. done is called once, as Submit's is.
func (s *Server) Birth(id raft.GroupID, shards []shardmap.ShardID, generation shardmap.Generation, done func(error)) {
	host := s.host.Load()
	if host == nil {
		done(multiraft.ErrNoGroup)
		return
	}
	(*host).ProposeUrgent(id, encodeCommand(&birth{generation: uint64(generation), shards: shards}), func(r multiraft.Result) { done(r.Err) })
}

// keepTime commits the time of groups in which something falls due: a key's
// expiry or a session's end. A group where nothing does is left alone.
func (s *Server) keepTime(ctx context.Context) {
	tick := time.NewTicker(dueCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.keepTimeOnce()
		}
	}
}

func (s *Server) keepTimeOnce() {
	host := s.host.Load()
	if host == nil {
		return
	}
	var due []*group // in an order that does not depend on the map
	s.groups.Range(func(_, v any) bool {
		if g := v.(*group); g.machine.NextDue() != math.MaxInt64 {
			due = append(due, g)
		}
		return true
	})
	slices.SortFunc(due, func(a, b *group) int { return cmp.Compare(a.id, b.id) })
	for _, g := range due {
		s.keepGroupTime(*host, g)
	}
}

// keepGroupTime commits the group's time if something is due, and again until
// nothing is: one entry removes a bounded number of keys and sessions.
func (s *Server) keepGroupTime(host Host, g *group) {
	due := g.machine.NextDue()
	if due == math.MaxInt64 || !s.leads(host, g.id) || due > host.GroupClock(g.id) || !g.timing.CompareAndSwap(false, true) {
		return
	}
	host.ProposeUrgent(g.id, encodeCommand(timeOnly{}), func(r multiraft.Result) {
		g.timing.Store(false)
		if r.Err == nil && s.ctx.Err() == nil {
			s.keepGroupTime(host, g)
		}
	})
}

func (s *Server) leads(host Host, id raft.GroupID) bool {
	leader, _, ok := host.Leader(id)
	return ok && leader.Node != 0 && leader.Node == s.options.Self()
}
