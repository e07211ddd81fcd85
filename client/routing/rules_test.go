package routing

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// bench is a router on the workbench: the test says what happens and looks at
// what comes out.
type bench struct {
	t      *testing.T
	r      *Router
	now    time.Time
	sends  []Send
	ended  []Delivery
	wanted int // refreshes asked for
	closed []string
}

// testMap has four shards; the even ones belong to group 2, the odd ones to
// group 3, and each group has a replica on each of three nodes.
func testMap(revision uint64) *shardmap.Map {
	m := &shardmap.Map{ClusterID: "c", Revision: revision}
	for id := raft.NodeID(1); id <= 3; id++ {
		m.Nodes = append(m.Nodes, shardmap.Node{ID: id, Addr: addrOf(id)})
	}
	for id := raft.GroupID(2); id <= 3; id++ {
		g := shardmap.Group{ID: id, Preferred: raft.NodeID(id) - 1}
		for n := raft.NodeID(1); n <= 3; n++ {
			g.Members = append(g.Members, shardmap.Member{Replica: raft.ReplicaID(n), Node: n})
		}
		m.Groups = append(m.Groups, g)
	}
	for s := range 4 {
		m.Shards = append(m.Shards, shardmap.Assignment{Group: raft.GroupID(2 + s%2), Generation: 1})
	}
	return m
}

func addrOf(id raft.NodeID) string { return fmt.Sprintf("node%d", id) }

// keyIn finds a key of a shard.
func keyIn(shard shardmap.ShardID) []byte {
	for i := 0; ; i++ {
		if key := fmt.Appendf(nil, "key-%d", i); shardmap.Shard(key, 4) == shard {
			return key
		}
	}
}

func newBench(t *testing.T) *bench {
	b := emptyBench(t)
	b.do(func() { b.r.MapChanged(b.now, testMap(10)) })
	return b
}

func emptyBench(t *testing.T) *bench {
	random := rand.New(rand.NewPCG(1, 2))
	return &bench{t: t, r: New(Options{Rand: random.Uint64}), now: time.UnixMilli(1_700_000_000_000)}
}

// do takes a step and collects what comes of it; connections are made at once.
func (b *bench) do(step func()) {
	step()
	for {
		var out Output
		b.r.Take(&out)
		b.sends = append(b.sends, out.Sends...)
		b.ended = append(b.ended, out.Deliveries...)
		b.closed = append(b.closed, out.Disconnect...)
		if out.Refresh {
			b.wanted++
		}
		if len(out.Connect) == 0 {
			return
		}
		for _, to := range out.Connect {
			b.r.LinkUp(b.now, to.Addr)
		}
	}
}

func put(shard shardmap.ShardID) *flotillav1.Request {
	return &flotillav1.Request{Ops: []*flotillav1.Op{{Op: &flotillav1.Op_Put{Put: &flotillav1.Put{Key: keyIn(shard)}}}}}
}

func get(shard shardmap.ShardID) *flotillav1.Request {
	return &flotillav1.Request{Ops: []*flotillav1.Op{{Op: &flotillav1.Op_Get{Get: &flotillav1.Get{Key: keyIn(shard)}}}}}
}

func (b *bench) submit(q *flotillav1.Request) *Call { return b.submitIn(nil, q) }

func (b *bench) submitIn(lane *Lane, q *flotillav1.Request) *Call {
	c := &Call{Request: q, Deadline: b.now.Add(10 * time.Second), Lane: lane}
	b.do(func() { b.r.Submit(b.now, c) })
	return c
}

// sent takes the one request that was sent and checks to whom.
func (b *bench) sent(to raft.NodeID) *flotillav1.Request {
	b.t.Helper()
	if len(b.sends) != 1 {
		b.t.Fatalf("%d requests sent, want 1", len(b.sends))
	}
	s := b.sends[0]
	b.sends = nil
	if s.To.Addr != addrOf(to) {
		b.t.Fatalf("sent to %s, want node %d", s.To.Addr, to)
	}
	return s.Request
}

func (b *bench) quiet() {
	b.t.Helper()
	if len(b.sends) != 0 || len(b.ended) != 0 {
		b.t.Fatalf("%d requests sent and %d calls ended, want none", len(b.sends), len(b.ended))
	}
}

func (b *bench) answer(q *flotillav1.Request, code flotillav1.Code, more ...func(*flotillav1.Response)) {
	p := &flotillav1.Response{Id: q.GetId(), Code: code, Compared: true}
	for range q.GetOps() {
		p.Results = append(p.Results, &flotillav1.Result{Version: 1})
	}
	for _, m := range more {
		m(p)
	}
	b.do(func() { b.r.Response(b.now, p) })
}

func leaderIs(id raft.NodeID) func(*flotillav1.Response) {
	return func(p *flotillav1.Response) { p.LeaderNode, p.LeaderAddr = uint64(id), addrOf(id) }
}

func ownerIs(id raft.GroupID) func(*flotillav1.Response) {
	return func(p *flotillav1.Response) { p.Group = uint64(id) }
}

// pass lets time go by until something was sent or ended.
func (b *bench) pass() {
	b.t.Helper()
	for range 100 {
		at := b.r.timers.next()
		if at.IsZero() {
			b.t.Fatal("nothing to wait for")
		}
		b.now = at
		b.do(func() { b.r.Tick(b.now) })
		if len(b.sends)+len(b.ended) > 0 {
			return
		}
	}
	b.t.Fatal("nothing happens")
}

func (b *bench) end() Delivery {
	b.t.Helper()
	if len(b.ended) != 1 {
		b.t.Fatalf("%d calls ended, want 1", len(b.ended))
	}
	d := b.ended[0]
	b.ended = nil
	return d
}

func (b *bench) fails(reason Reason, possible bool) *Failure {
	b.t.Helper()
	d := b.end()
	if d.Failure == nil {
		b.t.Fatalf("answered %v, want a failure", d.Response)
	}
	if d.Failure.Reason != reason || d.Failure.Possible != possible {
		b.t.Fatalf("failed with reason %d, possible %v; want %d, %v", d.Failure.Reason, d.Failure.Possible, reason, possible)
	}
	return d.Failure
}

func (b *bench) succeeds() {
	b.t.Helper()
	if d := b.end(); d.Failure != nil {
		b.t.Fatalf("failed: %+v", *d.Failure)
	}
}

func sameNumber(t *testing.T, a, b *flotillav1.Request) {
	t.Helper()
	if a.GetSession().GetClientId() != b.GetSession().GetClientId() || a.GetSession().GetSeq() != b.GetSession().GetSeq() || a.GetSession().GetSeq() == 0 {
		t.Fatalf("a retry changed its number from %v to %v", a.GetSession(), b.GetSession())
	}
	if a.GetId() == b.GetId() {
		t.Fatalf("two attempts share the id %d", a.GetId())
	}
}

func TestAWriteGoesToThePreferredLeaderFirst(t *testing.T) {
	b := newBench(t)
	b.submit(put(1))
	q := b.sent(2)
	if q.GetGroup() != 3 || q.GetShard() != 1 || q.GetSession().GetSeq() != 1 || q.GetSession().GetLowest() != 1 {
		t.Fatalf("sent %v", q)
	}
	b.answer(q, flotillav1.Code_OK)
	b.succeeds()
}

func TestANamedLeaderIsAskedAtOnceAndRemembered(t *testing.T) {
	b := newBench(t)
	b.submit(put(0))
	first := b.sent(1)
	b.answer(first, flotillav1.Code_NOT_LEADER, leaderIs(3))
	again := b.sent(3)
	sameNumber(t, first, again)
	b.submit(get(2))
	b.sent(3) // the same group's other shard
}

func TestALateNotLeaderDoesNotUnseatTheNewLeader(t *testing.T) {
	b := newBench(t)
	b.submit(get(0))
	slow := b.sent(1)
	b.submit(get(0))
	b.answer(b.sent(1), flotillav1.Code_NOT_LEADER, leaderIs(3))
	b.answer(b.sent(3), flotillav1.Code_OK)
	b.succeeds()
	b.answer(slow, flotillav1.Code_NOT_LEADER)
	b.sent(3)
}

func TestWithoutALeaderOtherMembersAreAskedAfterAWait(t *testing.T) {
	b := newBench(t)
	b.submit(put(0))
	b.answer(b.sent(1), flotillav1.Code_NOT_LEADER)
	b.quiet()
	b.pass()
	b.answer(b.sent(2), flotillav1.Code_NOT_LEADER)
	b.pass()
	b.sent(3)
}

func TestTwoThatNameEachOtherAreNotAskedInATightLoop(t *testing.T) {
	b := newBench(t)
	b.submit(get(0))
	asked := 0
	at := b.now
	for len(b.sends) > 0 {
		asked++
		if asked > 10 {
			t.Fatal("ten requests without a pause")
		}
		q, other := b.sends[0].Request, raft.NodeID(2)
		if b.sends[0].To.Addr == addrOf(2) {
			other = 1
		}
		b.sends = nil
		b.answer(q, flotillav1.Code_NOT_LEADER, leaderIs(other))
	}
	if next := b.r.timers.next(); !next.After(at) {
		t.Fatalf("next try at %v, not after %v", next, at)
	}
}

func TestBusyWaitsOnTheSameRouteAndDoesNotLengthenOtherWaits(t *testing.T) {
	b := newBench(t)
	b.submit(put(0))
	first := b.sent(1)
	q := first
	for range 100 {
		b.answer(q, flotillav1.Code_BUSY)
		b.pass()
		if len(b.ended) > 0 {
			break
		}
		q = b.sent(1)
		sameNumber(t, first, q)
	}
	if q.GetId() < 50 {
		t.Fatalf("only %d attempts in ten seconds of busy", q.GetId())
	}
	at := b.now
	b.answer(q, flotillav1.Code_UNKNOWN)
	b.pass()
	if waited := b.now.Sub(at); waited > failureWaitMin {
		t.Fatalf("the first wait after a failure took %v", waited)
	}
	b.answer(b.sent(1), flotillav1.Code_OK)
	b.succeeds()
}

func TestBusyUntilTheDeadlineIsADefiniteFailure(t *testing.T) {
	b := newBench(t)
	c := b.submit(put(0))
	b.answer(b.sent(1), flotillav1.Code_BUSY)
	b.now = c.Deadline
	b.do(func() { b.r.Tick(b.now) })
	f := b.fails(ReasonDeadline, false)
	if f.Last != Cause(flotillav1.Code_BUSY) {
		t.Fatalf("the last cause is %v", f.Last)
	}
}

func TestMovedFollowsTheOwnerAndRefreshesTheMap(t *testing.T) {
	b := newBench(t)
	b.submit(put(0))
	first := b.sent(1)
	wanted := b.wanted
	b.answer(first, flotillav1.Code_MOVED, ownerIs(3))
	q := b.sent(2)
	if q.GetGroup() != 3 {
		t.Fatalf("asked group %d", q.GetGroup())
	}
	sameNumber(t, first, q)
	if b.wanted == wanted {
		t.Fatal("the map was not asked for")
	}
	b.answer(q, flotillav1.Code_OK)
	b.succeeds()
}

func TestMovedHoldsUntilAMapKnowsALaterOwner(t *testing.T) {
	b := newBench(t)
	b.submit(get(0))
	b.answer(b.sent(1), flotillav1.Code_MOVED, ownerIs(3))
	b.answer(b.sent(2), flotillav1.Code_OK)
	b.succeeds()

	b.do(func() { b.r.MapChanged(b.now, testMap(11)) }) // newer, but not about this shard
	if owner := b.r.routes.owner(0); owner != 3 {
		t.Fatalf("group %d after a map that knows nothing of the move", owner)
	}
	later := testMap(12)
	later.Shards[0] = shardmap.Assignment{Group: 2, Generation: 3} // it came back
	b.do(func() { b.r.MapChanged(b.now, later) })
	if owner := b.r.routes.owner(0); owner != 2 {
		t.Fatalf("group %d after a map of a later generation", owner)
	}
}

func TestTheHigherGenerationWinsOverANewerMap(t *testing.T) {
	b := newBench(t)
	ahead := testMap(20)
	ahead.Shards[0] = shardmap.Assignment{Group: 3, Generation: 5}
	b.do(func() { b.r.MapChanged(b.now, ahead) })
	b.do(func() { b.r.MapChanged(b.now, testMap(21)) })
	if owner := b.r.routes.owner(0); owner != 3 {
		t.Fatalf("group %d, the generation before", owner)
	}
}

func TestMovedByOneThatIsNotAskedAnyMoreChangesNothing(t *testing.T) {
	b := newBench(t)
	b.submit(get(0))
	slow := b.sent(1)
	m := testMap(11)
	m.Shards[0] = shardmap.Assignment{Group: 3, Generation: 2}
	b.do(func() { b.r.MapChanged(b.now, m) })
	b.answer(slow, flotillav1.Code_MOVED, ownerIs(9))
	if q := b.sent(2); q.GetGroup() != 3 {
		t.Fatalf("asked group %d", q.GetGroup())
	}
}

func TestABrokenConnectionSendsAllToAnotherMemberUnderTheirNumbers(t *testing.T) {
	b := newBench(t)
	b.submit(put(0))
	b.submit(put(2))
	first, second := b.sends[0].Request, b.sends[1].Request
	b.sends = nil
	b.do(func() { b.r.LinkDown(b.now, addrOf(1), errors.New("reset"), nil) })
	if len(b.sends) != 2 {
		t.Fatalf("%d requests sent again", len(b.sends))
	}
	sameNumber(t, first, b.sends[0].Request)
	sameNumber(t, second, b.sends[1].Request)
	if b.sends[0].To.Addr == addrOf(1) {
		t.Fatal("the dead node was asked again")
	}
	b.sends = nil
	b.submit(get(0))
	if b.sends[0].To.Addr == addrOf(1) {
		t.Fatal("the next call still goes to the dead node: one failure must refresh the route")
	}
}

func TestADeadLeaderThatIsStillNamedIsNotAsked(t *testing.T) {
	b := newBench(t)
	b.submit(get(0))
	b.sent(1)
	b.do(func() { b.r.LinkDown(b.now, addrOf(1), errors.New("reset"), nil) })
	b.answer(b.sent(2), flotillav1.Code_NOT_LEADER, leaderIs(1))
	b.quiet()
	b.pass()
	b.sent(3)
}

func TestWhetherAWriteMayHaveHappened(t *testing.T) {
	lost := func(b *bench, q *flotillav1.Request) {
		b.do(func() { b.r.LinkDown(b.now, addrOf(1), errors.New("reset"), nil) })
	}
	unsent := func(b *bench, q *flotillav1.Request) {
		b.do(func() { b.r.LinkDown(b.now, addrOf(1), errors.New("reset"), []uint64{q.GetId()}) })
	}
	code := func(code flotillav1.Code) func(*bench, *flotillav1.Request) {
		return func(b *bench, q *flotillav1.Request) { b.answer(q, code) }
	}
	for name, test := range map[string]struct {
		happens  func(*bench, *flotillav1.Request)
		possible bool
	}{
		"lost":        {lost, true},
		"unsent":      {unsent, false},
		"busy":        {code(flotillav1.Code_BUSY), false},
		"not leader":  {code(flotillav1.Code_NOT_LEADER), false},
		"moved":       {code(flotillav1.Code_MOVED), false},
		"unavailable": {code(flotillav1.Code_UNAVAILABLE), false},
		"unknown":     {code(flotillav1.Code_UNKNOWN), true},
		"no quorum":   {code(flotillav1.Code_NO_QUORUM), true},
	} {
		t.Run(name, func(t *testing.T) {
			for _, q := range []*flotillav1.Request{put(0), get(0)} {
				b := newBench(t)
				c := b.submit(q)
				test.happens(b, b.sent(1))
				// What was sent again since is not what the test asks about.
				for len(b.sends) > 0 {
					again := b.sends[0].Request
					b.sends = nil
					b.answer(again, flotillav1.Code_BUSY)
				}
				b.do(func() { b.r.Cancel(b.now, c, ReasonCancelled) })
				b.fails(ReasonCancelled, test.possible && c.kind == kindWrite)
			}
		})
	}
}

func TestAWriteUnderWayAtItsDeadlineMayHaveHappened(t *testing.T) {
	b := newBench(t)
	c := b.submit(put(0))
	b.sent(1)
	b.now = c.Deadline
	b.do(func() { b.r.Tick(b.now) })
	f := b.fails(ReasonDeadline, true)
	if f.Write.Seq != 1 || f.Write.Shard != 0 || f.Write.Client == 0 {
		t.Fatalf("the write is named %+v", f.Write)
	}
}

func TestAnUnreachableClusterIsADefiniteFailure(t *testing.T) {
	b := newBench(t)
	c := &Call{Request: put(0), Deadline: b.now.Add(time.Second)}
	b.r.Submit(b.now, c)
	for !b.now.After(c.Deadline) && len(b.ended) == 0 {
		var out Output
		b.r.Take(&out)
		b.ended = append(b.ended, out.Deliveries...)
		for _, to := range out.Connect {
			b.r.LinkDown(b.now, to.Addr, errors.New("refused"), nil)
		}
		if len(out.Connect) == 0 && !out.Wake.IsZero() {
			b.now = out.Wake
			b.r.Tick(b.now)
		}
	}
	f := b.fails(ReasonDeadline, false)
	if f.Last != CauseUnsent {
		t.Fatalf("the last cause is %v", f.Last)
	}
}

func TestSilenceGoesElsewhereUnderTheSameNumber(t *testing.T) {
	b := newBench(t)
	b.submit(put(0))
	first := b.sent(1)
	b.pass()
	sameNumber(t, first, b.sent(2))
}

func TestAnExpiredSessionIsReplacedIfNothingCanHaveHappened(t *testing.T) {
	b := newBench(t)
	b.submit(put(0))
	first := b.sent(1)
	b.answer(first, flotillav1.Code_SESSION_EXPIRED)
	q := b.sent(1)
	if q.GetSession().GetClientId() == first.GetSession().GetClientId() || q.GetSession().GetSeq() != 1 {
		t.Fatalf("renumbered from %v to %v", first.GetSession(), q.GetSession())
	}
}

func TestAnExpiredSessionEndsAWriteThatMayHaveHappened(t *testing.T) {
	b := newBench(t)
	b.submit(put(0))
	b.answer(b.sent(1), flotillav1.Code_UNKNOWN)
	b.pass()
	b.answer(b.sent(1), flotillav1.Code_SESSION_EXPIRED)
	b.fails(ReasonSessionExpired, true)
}

func TestAClockThatIsWrongEndsInAnError(t *testing.T) {
	b := newBench(t)
	b.submit(put(0))
	for range renewalsMax + 1 {
		b.answer(b.sent(1), flotillav1.Code_SESSION_EXPIRED)
	}
	b.fails(ReasonSessionExpired, false)
}

func TestSessionsAreRenewedAndOldNumbersFinishUnderTheOldOne(t *testing.T) {
	b := newBench(t)
	slow := &Call{Request: put(0), Deadline: b.now.Add(2 * time.Hour)}
	b.do(func() { b.r.Submit(b.now, slow) })
	first := b.sent(1)
	b.now = b.now.Add(31 * time.Minute)
	b.submit(put(0))
	young := b.sent(1)
	if young.GetSession().GetClientId() == first.GetSession().GetClientId() || young.GetSession().GetSeq() != 1 {
		t.Fatalf("after 31 minutes a write has %v", young.GetSession())
	}
	if b.now.UnixMilli() != young.GetSession().GetBirthMs() {
		t.Fatalf("the new session was born at %d", young.GetSession().GetBirthMs())
	}
	b.answer(first, flotillav1.Code_BUSY)
	b.pass()
	sameNumber(t, first, b.sent(1))
}

func TestARefusedRequestEndsAtOnce(t *testing.T) {
	b := newBench(t)
	b.submit(put(0))
	b.answer(b.sent(1), flotillav1.Code_INVALID, func(p *flotillav1.Response) { p.Message = "too long" })
	if f := b.fails(ReasonInvalid, false); f.Message != "too long" {
		t.Fatalf("says %q", f.Message)
	}
}

// TestOnlyTheDeadlineEndsACallThatMaySucceedYet lets a group have no majority
// for minutes: the call succeeds when it is back, or fails at its deadline, and
// asks meanwhile neither all the time nor hardly ever.
func TestOnlyTheDeadlineEndsACallThatMaySucceedYet(t *testing.T) {
	for _, away := range []time.Duration{4 * time.Minute, 6 * time.Minute} {
		b := newBench(t)
		start := b.now
		c := &Call{Request: put(0), Deadline: start.Add(5 * time.Minute)}
		b.do(func() { b.r.Submit(b.now, c) })
		attempts := 0
		for len(b.ended) == 0 {
			if len(b.sends) == 0 {
				b.pass()
				continue
			}
			q := b.sends[0].Request
			b.sends = nil
			attempts++
			code := flotillav1.Code_NO_QUORUM
			if b.now.Sub(start) >= away {
				code = flotillav1.Code_OK
			}
			b.answer(q, code)
		}
		waited := b.now.Sub(start)
		if perSecond := float64(attempts) / waited.Seconds(); perSecond < 5 || perSecond > 100 {
			t.Errorf("%d attempts in %v", attempts, waited)
		}
		if away < 5*time.Minute {
			b.succeeds()
			if waited > away+failureWaitMax {
				t.Errorf("answered %v after the group was back", waited-away)
			}
			continue
		}
		if f := b.fails(ReasonDeadline, true); f.Last != Cause(flotillav1.Code_NO_QUORUM) || !b.now.Equal(c.Deadline) {
			t.Errorf("ended after %v, the last cause is %v", waited, f.Last)
		}
	}
}

func TestCallsWaitForTheFirstMapInTheirOrder(t *testing.T) {
	b := emptyBench(t)
	b.submit(put(0))
	b.submit(put(0))
	b.quiet()
	if b.wanted == 0 {
		t.Fatal("no map was asked for")
	}
	b.do(func() { b.r.MapChanged(b.now, testMap(1)) })
	if len(b.sends) != 2 || b.sends[0].Request.GetSession().GetSeq() != 1 || b.sends[1].Request.GetSession().GetSeq() != 2 {
		t.Fatalf("sent %v", b.sends)
	}
}

func TestAShardWithoutOwnerWaitsForTheMap(t *testing.T) {
	b := emptyBench(t)
	m := testMap(1)
	m.Shards[0] = shardmap.Assignment{}
	b.do(func() { b.r.MapChanged(b.now, m) })
	b.submit(put(0))
	b.quiet()
	b.do(func() { b.r.MapChanged(b.now, testMap(2)) })
	b.sent(1)
}

func TestKeysInDifferentShardsAreRefused(t *testing.T) {
	b := newBench(t)
	q := put(0)
	q.Ops = append(q.Ops, put(1).Ops...)
	b.submit(q)
	b.fails(ReasonCrossShard, false)
	for _, shard := range []uint64{4, 1 << 63, 1<<64 - 1} {
		b.submit(&flotillav1.Request{Shard: shard, Ops: []*flotillav1.Op{{Op: &flotillav1.Op_Scan{Scan: &flotillav1.Scan{}}}}})
		b.fails(ReasonCrossShard, false)
	}
}

// The number of shards is fixed for ever: a map that says otherwise is no map of
// this cluster, and calls under way would lie in shards that it does not have.
func TestAMapWithAnotherNumberOfShardsIsIgnored(t *testing.T) {
	b := newBench(t)
	b.submit(put(3))
	few := testMap(11)
	few.Shards = few.Shards[:2]
	b.do(func() { b.r.MapChanged(b.now, few) })
	if r := b.r.Map().Revision; r != 10 {
		t.Errorf("routes by the map of revision %d", r)
	}
	b.do(func() { b.r.LinkDown(b.now, addrOf(b.sends[0].To.Node), nil, nil) })
}

func TestFollowerReadsGoRoundAndMayPreferANode(t *testing.T) {
	b := newBench(t)
	seen := make(map[string]bool)
	for range 3 {
		q := get(0)
		q.Follower = true
		b.submit(q)
		seen[b.sends[0].To.Addr] = true
		b.sends = nil
	}
	if len(seen) != 3 {
		t.Fatalf("three follower reads went to %v", seen)
	}
	b.r.options.PreferNode = 3
	for range 3 {
		q := get(0)
		q.Consistency = flotillav1.Consistency_STALE
		b.submit(q)
		b.sent(3)
	}
}

func TestLearnersAreNotAsked(t *testing.T) {
	b := emptyBench(t)
	m := testMap(1)
	for i := range m.Groups[0].Members {
		m.Groups[0].Members[i].Learner = i != 1
	}
	b.do(func() { b.r.MapChanged(b.now, m) })
	for range 3 {
		q := get(0)
		q.Follower = true
		b.submit(q)
		b.sent(2)
	}
}

func TestAnOlderMapIsIgnored(t *testing.T) {
	b := newBench(t)
	for _, revision := range []uint64{9, 10} {
		m := testMap(revision)
		m.Nodes = nil
		b.do(func() { b.r.MapChanged(b.now, m) })
	}
	other := testMap(11)
	other.ClusterID, other.Nodes = "other", nil
	b.do(func() { b.r.MapChanged(b.now, other) })
	b.submit(get(0))
	b.sent(1)
}

func TestOneFailureRefreshesTheRoutesOfAllGroupsLedThere(t *testing.T) {
	b := newBench(t)
	for shard, leader := range []raft.NodeID{1, 2} {
		b.submit(get(shardmap.ShardID(shard)))
		q := b.sent(leader)
		if leader == 2 {
			b.answer(q, flotillav1.Code_NOT_LEADER, leaderIs(1)) // node 1 leads both groups
			q = b.sent(1)
		}
		b.answer(q, flotillav1.Code_OK)
		b.succeeds()
	}
	b.do(func() { b.r.LinkDown(b.now, addrOf(1), errors.New("reset"), nil) })
	b.now = b.now.Add(time.Minute) // past the time to connect again
	for shard := range shardmap.ShardID(2) {
		b.submit(get(shard))
		if to := b.sends[0].To.Addr; to == addrOf(1) {
			t.Errorf("shard %d still goes to the node that was lost", shard)
		}
		b.sends = nil
	}
}

func TestReconnectingIsPacedAndAnAnswerResetsThePace(t *testing.T) {
	b := newBench(t)
	connects := func(d time.Duration) (n int) {
		end := b.now.Add(d)
		c := &Call{Request: get(0), Deadline: end}
		b.r.Submit(b.now, c)
		for c.state != stateDone {
			var out Output
			b.r.Take(&out)
			for _, to := range out.Connect {
				n++
				b.r.LinkDown(b.now, to.Addr, errors.New("refused"), nil)
			}
			if len(out.Connect) == 0 {
				b.now = out.Wake
				b.r.Tick(b.now)
			}
		}
		return n
	}
	if n := connects(20 * time.Second); n < 60 || n > 200 {
		t.Fatalf("%d attempts to connect to three nodes in 20 s", n)
	}
	b.now = b.now.Add(time.Minute)
	b.ended = nil
	b.submit(get(0))
	to := b.sends[0].To.Addr
	b.answer(b.sends[0].Request, flotillav1.Code_OK)
	if l := b.r.links[to]; l.delay != 0 {
		t.Fatalf("after an answer a node is tried again after %v", l.delay)
	}
}

func TestQuickTriesComeBackAfterAWait(t *testing.T) {
	b := newBench(t)
	b.submit(get(0))
	for round := range 3 {
		tries := 0
		for len(b.sends) > 0 {
			q := b.sends[0].Request
			b.sends = nil
			tries++
			b.answer(q, flotillav1.Code_UNAVAILABLE)
		}
		if tries != redirectsMax+1 {
			t.Fatalf("%d tries in round %d", tries, round)
		}
		b.pass()
	}
}

func TestTheNumberOfAGivenUpWriteIsHeldForOutcome(t *testing.T) {
	b := newBench(t)
	c := b.submit(put(0))
	b.sent(1)
	b.do(func() { b.r.Cancel(b.now, c, ReasonCancelled) })
	f := b.fails(ReasonCancelled, true)
	b.submit(put(0))
	if q := b.sent(1); q.GetSession().GetLowest() != 1 || q.GetSession().GetSeq() != 2 {
		t.Fatalf("the next write says %v: Outcome would find nothing", q.GetSession())
	}
	b.r.Forget(f.Write)
	b.submit(put(0))
	if q := b.sent(1); q.GetSession().GetLowest() != 2 {
		t.Fatalf("after Outcome told, a write says %v", q.GetSession())
	}
}

func TestANodeThatLeftTheMapIsDisconnected(t *testing.T) {
	b := newBench(t)
	b.submit(get(0))
	b.answer(b.sent(1), flotillav1.Code_OK)
	b.succeeds()
	m := testMap(11)
	m.Nodes = m.Nodes[1:]
	b.do(func() { b.r.MapChanged(b.now, m) })
	if len(b.closed) != 1 || b.closed[0] != addrOf(1) {
		t.Fatalf("disconnected %v", b.closed)
	}
}

func TestAConnectionThatIsSilentTwiceIsMadeAnew(t *testing.T) {
	for _, x := range []struct {
		name   string
		word   bool // something else comes over the connection between the two
		closed int
	}{{"silent", false, 1}, {"slow", true, 0}} {
		t.Run(x.name, func(t *testing.T) {
			b := newBench(t)
			wait := func(deadline time.Duration) {
				c := &Call{Request: get(0), Deadline: b.now.Add(deadline)}
				b.do(func() { b.r.Submit(b.now, c) })
				b.now = c.Deadline
				b.do(func() { b.r.Tick(b.now) })
				b.fails(ReasonDeadline, false)
			}
			wait(time.Second)
			wait(time.Second / 2)
			if len(b.closed) != 0 {
				t.Fatalf("given up after %v", time.Second/2)
			}
			if x.word {
				b.do(func() { b.r.Heard(b.now, addrOf(1)) })
			}
			wait(time.Second)
			wait(time.Second / 2)
			if len(b.closed) != x.closed {
				t.Fatalf("disconnected %v", b.closed)
			}
			if x.closed > 0 {
				b.do(func() { b.r.LinkDown(b.now, addrOf(1), nil, nil) })
				b.sends = nil
				b.submit(get(0))
				b.sent(2) // who knows the leader, perhaps another one
			}
		})
	}
}

func TestAnAnswerNobodyWaitsForIsIgnored(t *testing.T) {
	b := newBench(t)
	b.submit(put(0))
	q := b.sent(1)
	b.answer(q, flotillav1.Code_OK)
	b.succeeds()
	b.answer(q, flotillav1.Code_OK)
	b.answer(&flotillav1.Request{Id: 999}, flotillav1.Code_NOT_LEADER, leaderIs(3))
	b.quiet()
}

func TestCancelAllEndsEveryCallAndStartsNone(t *testing.T) {
	b := newBench(t)
	var lane Lane
	for range 3 {
		b.submitIn(&lane, put(0))
	}
	b.submit(get(1))
	b.sends = nil
	b.do(func() { b.r.CancelAll(b.now, ReasonClosed) })
	if len(b.ended) != 4 || len(b.sends) != 0 || b.r.Calls() != 0 {
		t.Fatalf("%d ended, %d sent, %d left", len(b.ended), len(b.sends), b.r.Calls())
	}
	possible := 0
	for _, d := range b.ended {
		if d.Failure.Possible {
			possible++
		}
	}
	if possible != 1 {
		t.Fatalf("%d writes may have happened, one was sent", possible)
	}
}

func TestEveryCodeHasARule(t *testing.T) {
	for code := range flotillav1.Code_name {
		r := ruleFor(Cause(code))
		if code != int32(flotillav1.Code_INTERNAL) && r.next == stepGiveUp && r.possible {
			t.Errorf("%v falls through to the last rule", flotillav1.Code(code))
		}
	}
	if r := ruleFor(Cause(4711)); r.next != stepGiveUp || !r.possible {
		t.Error("a code of a newer server must end the call and leave its outcome open")
	}
}
