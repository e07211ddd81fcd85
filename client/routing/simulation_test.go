package routing

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "run only this seed of the simulation")
	seedsFlag = flag.Int("seeds", 150, "how many seeds of the simulation to run")
)

// TestSimulation drives a router through a hostile cluster: leaders change,
// shards move, connections break with requests on them that arrive all the
// same, answers get lost, proposals commit late, sessions expire. What the
// package promises is checked on every seed.
func TestSimulation(t *testing.T) {
	if *seedFlag != 0 {
		simulate(t, *seedFlag)
		return
	}
	for seed := uint64(1); seed <= uint64(*seedsFlag); seed++ {
		if !t.Run(fmt.Sprint(seed), func(t *testing.T) { simulate(t, seed) }) {
			t.Fatalf("replay: go test ./client/routing -run 'TestSimulation$' -seed %d", seed)
		}
	}
}

// simCall is what the simulation knows of a call.
type simCall struct {
	call     *Call
	tag      string // the value it writes
	write    bool
	lane     int // -1: none
	order    int // within its lane and shard
	ended    bool
	delivery Delivery
}

// simShard is a shard's truth, wherever it is served: the log of values that
// took effect, and the table of answers (RIFL).
type simShard struct {
	log     []string
	answers map[uint64]map[uint64]int // by client and number: the version
	lowest  map[uint64]uint64
	expired map[uint64]bool
	owner   raft.GroupID
	moves   shardmap.Generation
}

type simEvent struct {
	at  time.Time
	seq int
	do  func()
}

type simulation struct {
	t       *testing.T
	random  *rand.Rand
	router  *Router
	now     time.Time
	events  []simEvent
	seq     int
	shards  []*simShard
	leaders map[raft.GroupID]raft.NodeID
	links   map[string]int // incarnation; negative: down
	pending map[string][]uint64
	refused map[uint64]bool // ids that were reported unsent
	epoch   int
	mapAt   uint64
	calls   []*simCall
	lanes   []*Lane
	orders  map[[2]int]int
	hostile bool
}

const simGroups = 2

func simulate(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 77))
	s := &simulation{
		t:       t,
		random:  random,
		router:  New(Options{Rand: random.Uint64, RenewAfter: 3 * time.Second}),
		now:     time.UnixMilli(1_700_000_000_000),
		leaders: map[raft.GroupID]raft.NodeID{2: 1, 3: 2},
		links:   make(map[string]int),
		pending: make(map[string][]uint64),
		refused: make(map[uint64]bool),
		lanes:   []*Lane{{}, {}, {}},
		orders:  make(map[[2]int]int),
		hostile: true,
	}
	for i := range 4 {
		s.shards = append(s.shards, &simShard{
			answers: make(map[uint64]map[uint64]int),
			lowest:  make(map[uint64]uint64),
			expired: make(map[uint64]bool),
			owner:   raft.GroupID(2 + i%simGroups),
			moves:   1,
		})
	}
	s.after(time.Millisecond, s.publishMap)
	for i := range 300 {
		s.after(time.Duration(random.IntN(8000))*time.Millisecond, func() { s.submit(i) })
	}
	for range 60 {
		s.after(time.Duration(random.IntN(8000))*time.Millisecond, s.trouble)
	}
	s.after(9*time.Second, func() { s.hostile = false })
	s.run()
	s.check()
}

func (s *simulation) after(d time.Duration, do func()) {
	s.seq++
	e := simEvent{at: s.now.Add(d), seq: s.seq, do: do}
	at, _ := slices.BinarySearchFunc(s.events, e, func(a, b simEvent) int {
		if c := a.at.Compare(b.at); c != 0 {
			return c
		}
		return a.seq - b.seq
	})
	s.events = slices.Insert(s.events, at, e)
}

func (s *simulation) soon() time.Duration {
	return time.Duration(s.random.IntN(3000)) * time.Microsecond
}
func (s *simulation) chance(percent int) bool {
	return s.hostile && s.random.IntN(100) < percent
}

// run lets everything happen until nothing is left to happen.
func (s *simulation) run() {
	for steps := 0; ; steps++ {
		if steps > 500_000 {
			s.t.Fatal("no end")
		}
		s.take()
		wake := s.router.timers.next()
		switch {
		case len(s.events) > 0 && (wake.IsZero() || !s.events[0].at.After(wake)):
			e := s.events[0]
			s.events = s.events[1:]
			s.now = e.at
			e.do()
		case !wake.IsZero():
			s.now = wake
			s.router.Tick(s.now)
		default:
			return
		}
		s.checkNumbers()
	}
}

func (s *simulation) take() {
	var out Output
	s.router.Take(&out)
	for _, to := range out.Connect {
		s.connect(to.Addr)
	}
	for _, addr := range out.Disconnect {
		s.after(s.soon(), func() { s.breakLink(addr) })
	}
	for _, send := range out.Sends {
		s.send(send)
	}
	for _, d := range out.Deliveries {
		c := d.Call.Owner.(*simCall)
		if c.ended {
			s.t.Fatalf("%s was delivered twice", c.tag)
		}
		if s.now.After(c.call.Deadline) {
			s.t.Fatalf("%s was delivered %v after its deadline", c.tag, s.now.Sub(c.call.Deadline))
		}
		c.ended, c.delivery = true, d
	}
	if out.Refresh {
		s.after(s.soon(), s.publishMap)
	}
}

func (s *simulation) publishMap() {
	s.mapAt++
	m := testMap(s.mapAt)
	for i, shard := range s.shards {
		if s.chance(30) {
			continue // the controller has not heard of it yet
		}
		m.Shards[i] = shardmap.Assignment{Group: shard.owner, Generation: shard.moves}
	}
	s.router.MapChanged(s.now, m)
}

func (s *simulation) submit(i int) {
	shard := s.random.IntN(len(s.shards))
	c := &simCall{tag: fmt.Sprintf("w%d", i), write: s.random.IntN(3) > 0, lane: s.random.IntN(len(s.lanes)+1) - 1}
	q := get(shardmap.ShardID(shard))
	if c.write {
		q = put(shardmap.ShardID(shard))
		q.Ops[0].GetPut().Value = []byte(c.tag)
	} else if c.lane < 0 {
		q.Follower = s.random.IntN(2) == 0
	}
	c.call = &Call{Request: q, Deadline: s.now.Add(time.Duration(200+s.random.IntN(6000)) * time.Millisecond), Owner: c}
	if c.lane >= 0 {
		c.call.Lane = s.lanes[c.lane]
		s.orders[[2]int{c.lane, shard}]++
		c.order = s.orders[[2]int{c.lane, shard}]
	}
	s.calls = append(s.calls, c)
	s.router.Submit(s.now, c.call)
	if s.random.IntN(20) == 0 {
		s.after(s.soon(), func() { s.router.Cancel(s.now, c.call, ReasonCancelled) })
	}
}

// trouble does one of the bad things.
func (s *simulation) trouble() {
	switch s.random.IntN(4) {
	case 0:
		s.leaders[raft.GroupID(2+s.random.IntN(simGroups))] = raft.NodeID(s.random.IntN(4)) // 0: nobody
	case 1:
		shard := s.shards[s.random.IntN(len(s.shards))]
		shard.owner = raft.GroupID(2 + s.random.IntN(simGroups))
		shard.moves++
	case 2:
		s.breakLink(addrOf(raft.NodeID(1 + s.random.IntN(3))))
	case 3:
		s.expireSession()
	}
	for g, leader := range s.leaders {
		if leader == 0 {
			s.after(300*time.Millisecond, func() {
				if s.leaders[g] == 0 {
					s.leaders[g] = raft.NodeID(1 + s.random.IntN(3))
				}
			})
		}
	}
}

func (s *simulation) expireSession() {
	shard := s.shards[s.random.IntN(len(s.shards))]
	for _, client := range slices.Sorted(keys(shard.answers)) {
		if s.random.IntN(4) == 0 {
			shard.expired[client] = true
		}
	}
}

func keys[K comparable, V any](m map[K]V) func(func(K) bool) {
	return func(yield func(K) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func (s *simulation) connect(addr string) {
	s.epoch++
	epoch := s.epoch
	s.after(s.soon(), func() {
		if s.chance(20) {
			s.router.LinkDown(s.now, addr, errors.New("refused"), nil)
			return
		}
		s.links[addr] = epoch
		s.router.LinkUp(s.now, addr)
	})
}

// breakLink ends a connection. Some of what was on it is reported as never
// sent; of the rest each may still arrive.
func (s *simulation) breakLink(addr string) {
	if s.links[addr] <= 0 {
		return
	}
	s.links[addr] = 0
	var unsent []uint64
	for _, id := range s.pending[addr] {
		if s.random.IntN(3) == 0 {
			unsent = append(unsent, id)
			s.refused[id] = true
		}
	}
	s.pending[addr] = nil
	s.router.LinkDown(s.now, addr, errors.New("reset"), unsent)
}

func (s *simulation) send(send Send) {
	addr, epoch := send.To.Addr, s.links[send.To.Addr]
	s.pending[addr] = append(s.pending[addr], send.Request.GetId())
	delay := s.soon()
	if s.chance(3) {
		delay += time.Duration(s.random.IntN(4000)) * time.Millisecond
	}
	s.after(delay, func() {
		id := send.Request.GetId()
		s.pending[addr] = slices.DeleteFunc(s.pending[addr], func(other uint64) bool { return other == id })
		if s.refused[id] || s.links[addr] != epoch && s.random.IntN(2) == 0 {
			return
		}
		p := s.serve(send.To.Node, send.Request)
		if p == nil || s.chance(4) {
			return // the answer is lost
		}
		p.Id = id
		s.after(s.soon(), func() {
			if s.links[addr] == epoch {
				s.router.Heard(s.now, addr)
				s.router.Response(s.now, p)
			}
		})
	})
}

// serve is a node.
func (s *simulation) serve(node raft.NodeID, q *flotillav1.Request) *flotillav1.Response {
	group, shard := raft.GroupID(q.GetGroup()), s.shards[q.GetShard()]
	leader := s.leaders[group]
	switch {
	case s.chance(5):
		return &flotillav1.Response{Code: flotillav1.Code_BUSY}
	case s.chance(2):
		return &flotillav1.Response{Code: flotillav1.Code_UNAVAILABLE}
	case leader != node && !q.GetFollower():
		p := &flotillav1.Response{Code: flotillav1.Code_NOT_LEADER}
		if leader != 0 && !s.chance(30) {
			p.LeaderNode, p.LeaderAddr = uint64(leader), addrOf(leader)
		}
		return p
	case shard.owner != group:
		p := &flotillav1.Response{Code: flotillav1.Code_MOVED}
		if !s.chance(30) {
			p.Group = uint64(shard.owner)
		}
		return p
	case q.GetOutcome() != nil:
		return shard.close(q.GetOutcome())
	case q.GetSession() == nil:
		p := &flotillav1.Response{Code: flotillav1.Code_OK, Compared: true}
		for range q.GetOps() {
			p.Results = append(p.Results, &flotillav1.Result{Count: uint64(len(shard.log))})
		}
		return p
	case s.chance(5):
		s.after(time.Duration(s.random.IntN(500))*time.Millisecond, func() {
			if shard.owner == group {
				shard.apply(q)
			}
		})
		return &flotillav1.Response{Code: flotillav1.Code_UNKNOWN}
	}
	return shard.apply(q)
}

// apply is the shard's state machine.
func (h *simShard) apply(q *flotillav1.Request) *flotillav1.Response {
	session := q.GetSession()
	client, seq := session.GetClientId(), session.GetSeq()
	if h.expired[client] {
		return &flotillav1.Response{Code: flotillav1.Code_SESSION_EXPIRED}
	}
	if seq < h.lowest[client] {
		return &flotillav1.Response{Code: flotillav1.Code_INVALID, Message: "forgotten"}
	}
	if h.answers[client] == nil {
		h.answers[client] = make(map[uint64]int)
	}
	h.lowest[client] = max(h.lowest[client], session.GetLowest())
	first, done := h.answers[client][seq]
	if first == simClosed {
		return &flotillav1.Response{Code: flotillav1.Code_INVALID, Message: "closed"}
	}
	if !done {
		first = len(h.log) + 1
		for _, op := range q.GetOps() {
			h.log = append(h.log, string(op.GetPut().GetValue()))
		}
		h.answers[client][seq] = first
	}
	for old := range h.answers[client] {
		if old < h.lowest[client] {
			delete(h.answers[client], old)
		}
	}
	p := &flotillav1.Response{Code: flotillav1.Code_OK, Compared: true, Replayed: done}
	for i := range q.GetOps() {
		p.Results = append(p.Results, &flotillav1.Result{Version: uint64(first + i)})
	}
	return p
}

// close answers Outcome.
func (h *simShard) close(o *flotillav1.Outcome) *flotillav1.Response {
	client, seq := o.GetClientId(), o.GetSeq()
	p := &flotillav1.Response{Code: flotillav1.Code_OK, Outcome: flotillav1.OutcomeState_APPLIED}
	if h.expired[client] || seq < h.lowest[client] {
		p.Outcome = flotillav1.OutcomeState_EXPIRED
		return p
	}
	if h.answers[client] == nil {
		h.answers[client] = make(map[uint64]int)
	}
	if version, done := h.answers[client][seq]; !done || version == simClosed {
		h.answers[client][seq] = simClosed
		p.Outcome = flotillav1.OutcomeState_NOT_APPLIED
	}
	return p
}

// simClosed stands for a number that was closed by Outcome.
const simClosed = -1

// checkNumbers: lowest never passes a number whose call is waited for.
func (s *simulation) checkNumbers() {
	for _, c := range s.router.inFlight {
		if c.numbered && c.number.wire().GetLowest() > c.number.seq {
			s.t.Fatalf("number %d is in flight, lowest is %d", c.number.seq, c.number.wire().GetLowest())
		}
	}
}

func (s *simulation) check() {
	applied := make(map[string]int)
	position := make(map[string]int)
	for _, shard := range s.shards {
		for i, tag := range shard.log {
			applied[tag]++
			position[tag] = i + 1
		}
	}
	outcomes := make(map[string]int)
	for _, c := range s.calls {
		if !c.ended {
			s.t.Fatalf("%s was never delivered", c.tag)
		}
		f := c.delivery.Failure
		switch {
		case f == nil:
			outcomes["ok"]++
		case f.Possible:
			outcomes["unknown"]++
		default:
			outcomes["failed"]++
		}
		if !c.write {
			continue
		}
		switch {
		case applied[c.tag] > 1:
			s.t.Errorf("%s took effect %d times", c.tag, applied[c.tag])
		case f == nil && applied[c.tag] != 1:
			s.t.Errorf("%s was answered and took effect %d times", c.tag, applied[c.tag])
		case f == nil && c.delivery.Response.GetResults()[0].GetVersion() != uint64(position[c.tag]):
			s.t.Errorf("%s was told version %d, took effect at %d", c.tag, c.delivery.Response.GetResults()[0].GetVersion(), position[c.tag])
		case f != nil && !f.Possible && applied[c.tag] != 0:
			s.t.Errorf("%s failed definitely (reason %d, last %v) and took effect", c.tag, f.Reason, f.Last)
		}
	}
	s.checkLanes(position)
	if outcomes["ok"] < len(s.calls)/2 {
		s.t.Errorf("only %v of %d calls: the simulation tests nothing", outcomes, len(s.calls))
	}
	if s.router.Calls() != 0 || len(s.router.inFlight) != 0 {
		s.t.Errorf("%d calls and %d attempts are left", s.router.Calls(), len(s.router.inFlight))
	}
}

// checkLanes: what a lane wrote to a shard stands there in the lane's order,
// and a read sees what was written before it and nothing written after it.
func (s *simulation) checkLanes(position map[string]int) {
	type queue struct {
		lane  int
		shard shardmap.ShardID
	}
	highest := make(map[queue]int) // position of the last write that took effect
	for _, c := range s.calls {
		if c.lane < 0 {
			continue
		}
		q := queue{c.lane, shardmap.Shard(mustKey(c.call.Request), len(s.shards))}
		if c.write {
			if at := position[c.tag]; at != 0 {
				if at < highest[q] {
					s.t.Errorf("%s of lane %d took effect before its predecessor", c.tag, c.lane)
				}
				highest[q] = at
			}
			continue
		}
		if c.delivery.Failure == nil && int(c.delivery.Response.GetResults()[0].GetCount()) < s.answeredBefore(c, position) {
			s.t.Errorf("read %s of lane %d missed a write before it", c.tag, c.lane)
		}
	}
	s.checkLaneReads(position)
}

// answeredBefore is the highest position of the writes of c's lane and shard
// that stand before it and were answered.
func (s *simulation) answeredBefore(c *simCall, position map[string]int) int {
	highest := 0
	for _, other := range s.calls {
		if s.sameQueue(other, c) && other.order < c.order && other.write && other.delivery.Failure == nil {
			highest = max(highest, position[other.tag])
		}
	}
	return highest
}

func (s *simulation) checkLaneReads(position map[string]int) {
	for _, c := range s.calls {
		if c.write || c.lane < 0 || c.delivery.Failure != nil {
			continue
		}
		for _, other := range s.calls {
			if s.sameQueue(other, c) && other.write && other.order > c.order && position[other.tag] != 0 &&
				position[other.tag] <= int(c.delivery.Response.GetResults()[0].GetCount()) {
				s.t.Errorf("read %s of lane %d saw %s, which stands behind it", c.tag, c.lane, other.tag)
			}
		}
	}
}

func (s *simulation) sameQueue(a, b *simCall) bool {
	return a.lane == b.lane && a.call.shard == b.call.shard
}

func mustKey(q *flotillav1.Request) []byte {
	key, _ := opKey(q.GetOps()[0])
	return key
}
