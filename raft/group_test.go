package raft_test

import (
	"fmt"
	"testing"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/rafttest"
)

const electionTicks = 6

// group is a few replicas whose messages, disks and applies a test moves by
// hand. All properties are checked after every step.
type group struct {
	t        *testing.T
	checker  *rafttest.Checker
	options  raft.Options
	replicas []*rafttest.Replica // replica i at i-1
	cut      map[[2]raft.ReplicaID]bool
	random   func(int) int
	lost     []raft.Message // what was cut off
	log      func(string)   // if set, gets a line for each event
}

// members are replicas 1..n, each on the node of its number.
func members(ids ...raft.ReplicaID) []raft.Member {
	var list []raft.Member
	for _, id := range ids {
		list = append(list, raft.Member{Replica: id, Node: raft.NodeID(id)})
	}
	return list
}

// idle is a group of n voters, none of which has moved yet. Election timeouts
// are electionTicks exactly.
func idle(t *testing.T, n int) *group {
	t.Helper()
	g := &group{
		t: t, checker: rafttest.NewChecker(), cut: map[[2]raft.ReplicaID]bool{},
		options: raft.Options{HeartbeatTicks: 1, ElectionTicks: electionTicks},
		random:  func(int) int { return 0 },
	}
	first := raft.Membership{Epoch: 1}
	for id := raft.ReplicaID(1); id <= raft.ReplicaID(n); id++ {
		first.Voters = append(first.Voters, members(id)...)
	}
	for _, m := range first.Voters {
		g.add(m, first)
	}
	return g
}

// led is a group whose replica 1 leads term 1, with its no-op applied by all.
func led(t *testing.T, n int) *group {
	t.Helper()
	g := idle(t, n)
	g.elect(1)
	return g
}

func (g *group) add(m raft.Member, first raft.Membership) *rafttest.Replica {
	g.t.Helper()
	r := rafttest.NewReplica(m, first, g.checker)
	g.checker.Watch(r)
	g.replicas = append(g.replicas, r)
	g.start(m.Replica)
	return r
}

func (g *group) r(id raft.ReplicaID) *rafttest.Replica { return g.replicas[id-1] }

func (g *group) core(id raft.ReplicaID) *raft.Raft { return g.r(id).Core }

func (g *group) must(err error) {
	g.t.Helper()
	if err != nil {
		g.t.Fatal(err)
	}
}

func (g *group) start(id raft.ReplicaID) {
	g.t.Helper()
	g.must(g.r(id).Start(g.options, func(n int) int { return g.random(n) }))
	g.must(g.r(id).Turn())
}

// turn runs every replica's ready work but syncs and applies nothing.
func (g *group) turn() {
	g.t.Helper()
	for _, r := range g.replicas {
		if r.Up() {
			g.must(r.Turn())
		}
	}
}

// settle syncs, applies and delivers until nothing moves.
func (g *group) settle() {
	g.t.Helper()
	for moved := true; moved; {
		moved = g.round()
	}
}

// round syncs, applies and delivers once.
func (g *group) round() (moved bool) {
	g.t.Helper()
	g.turn()
	var out []raft.Message
	for _, r := range g.replicas {
		if !r.Up() {
			continue
		}
		if n := r.Unsynced(); n > 0 {
			g.must(r.Persist(n))
			g.note("  %d syncs %d", r.Member.Replica, n)
			moved = true
		}
		if n := r.Unapplied(); n > 0 {
			es, err := r.Apply(n)
			g.must(err)
			g.note("  %d applies [%s]", r.Member.Replica, rafttest.DescribeEntries(es))
			moved = true
		}
		out = append(out, r.Outbox...)
		r.Outbox = nil
	}
	for _, m := range out {
		moved = true
		g.deliver(m)
	}
	return moved
}

// deliver steps a message at its receiver, unless the way is cut.
func (g *group) deliver(m raft.Message) {
	g.t.Helper()
	if g.cut[[2]raft.ReplicaID{m.From, m.To}] || int(m.To) > len(g.replicas) || !g.r(m.To).Up() {
		g.lost = append(g.lost, m)
		g.note("  lost %s", rafttest.Describe(&m))
		return
	}
	g.note("  %s", rafttest.Describe(&m))
	if err := g.core(m.To).Step(m); err != nil {
		g.note("    refused: %v", err)
	}
	g.must(g.r(m.To).Turn())
}

func (g *group) note(format string, args ...any) {
	if g.log != nil {
		g.log(fmt.Sprintf(format, args...))
	}
}

// isolate cuts a replica from all others; join undoes it.
func (g *group) isolate(id raft.ReplicaID) {
	for _, r := range g.replicas {
		o := r.Member.Replica
		g.cut[[2]raft.ReplicaID{id, o}], g.cut[[2]raft.ReplicaID{o, id}] = true, true
	}
}

func (g *group) join() { g.cut = map[[2]raft.ReplicaID]bool{} }

// crash stops a replica and loses what it has not synced.
func (g *group) crash(id raft.ReplicaID) { g.r(id).Crash(0) }

// tick lets n ticks pass at a replica, and delivers nothing.
func (g *group) tick(id raft.ReplicaID, n int) {
	g.t.Helper()
	for range n {
		g.core(id).Tick()
		g.must(g.r(id).Turn())
	}
}

// elect makes a replica the leader: the others have not heard a leader for an
// election timeout.
func (g *group) elect(id raft.ReplicaID) {
	g.t.Helper()
	for _, r := range g.replicas {
		if r.Up() && r.Member.Replica != id && r.Core.Role() != raft.Leader {
			r.Core.LeaderLost()
		}
	}
	g.core(id).Campaign()
	g.settle()
	if g.core(id).Role() != raft.Leader {
		g.t.Fatalf("replica %d does not lead: %+v", id, g.core(id).Status())
	}
}

// propose appends a command at the leader and lets everything settle.
func (g *group) propose(id raft.ReplicaID, data string) raft.Index {
	g.t.Helper()
	i, _, err := g.core(id).Propose([]byte(data))
	g.must(err)
	g.settle()
	return i
}

// take removes and returns what a replica has to say, of one kind of body.
func take[B raft.Body](g *group, id raft.ReplicaID) []raft.Message {
	var kept, taken []raft.Message
	for _, m := range g.r(id).Outbox {
		if _, ok := m.Body.(B); ok {
			taken = append(taken, m)
		} else {
			kept = append(kept, m)
		}
	}
	g.r(id).Outbox = kept
	return taken
}

// step hands replica 'to' a message, and returns what it answers once its disk
// has caught up.
func (g *group) step(from, to raft.ReplicaID, term raft.Term, body raft.Body) []raft.Message {
	g.t.Helper()
	r := g.r(to)
	r.Outbox = nil
	if err := r.Core.Step(raft.Message{Group: rafttest.Group, From: from, To: to, Term: term, Body: body}); err != nil {
		g.t.Logf("refused: %v", err)
	}
	g.must(r.Turn())
	g.must(r.Persist(r.Unsynced()))
	out := r.Outbox
	r.Outbox = nil
	return out
}

// reply is the one message that step returned.
func reply[B raft.Body](g *group, out []raft.Message) B {
	g.t.Helper()
	var none B
	if len(out) != 1 {
		g.t.Fatalf("answers: %+v", out)
		return none
	}
	b, ok := out[0].Body.(B)
	if !ok {
		g.t.Fatalf("answer is %T", out[0].Body)
	}
	return b
}

// entries are commands of the given terms, from index first on.
func entries(first raft.Index, terms ...raft.Term) []raft.Entry {
	var list []raft.Entry
	for i, t := range terms {
		list = append(list, raft.Entry{Index: first + raft.Index(i), Term: t, Kind: raft.EntryCommand, Data: []byte{byte(t)}})
	}
	return list
}

// withLog is a group of n whose replica id holds a log of the given terms, and
// stands in the last of them.
func withLog(t *testing.T, n int, id raft.ReplicaID, terms ...raft.Term) *group {
	t.Helper()
	g := idle(t, n)
	g.fill(id, terms...)
	return g
}

// fill gives a replica a log, as a leader (never heard of again) would.
func (g *group) fill(id raft.ReplicaID, terms ...raft.Term) {
	g.t.Helper()
	if len(terms) == 0 {
		return
	}
	other := id%raft.ReplicaID(len(g.replicas)) + 1
	g.step(other, id, terms[len(terms)-1], &raft.AppendEntries{Entries: entries(1, terms...)})
	for range 2 * electionTicks {
		if g.core(id).Leader() != 0 {
			g.core(id).LeaderLost()
		}
	}
}
