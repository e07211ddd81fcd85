package sim

import (
	"fmt"
	"hash/fnv"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/logstore"
	"github.com/flotilla-kv/flotilla/raft/multiraft"
	"github.com/flotilla-kv/flotilla/raft/statestore"
)

// raftChecker sees every write, message and applied entry of all groups, and
// holds them against figure 3 of the paper and what was promised.
type raftChecker struct {
	w       *world
	groups  map[raft.GroupID]*groupHistory
	commits []commit // not yet held against what was acknowledged
}

// commit is news of a leader: it has committed more than anybody has known.
type commit struct {
	n       *node
	group   raft.GroupID
	term    raft.Term
	through raft.Index
}

// groupHistory is what is known of one group. A chain is a hash over all the
// entries of a log through an index.
type groupHistory struct {
	leaders    map[raft.Term]*leader
	terms      []raft.Term // of leaders, in the order of their elections
	chains     map[position]uint64
	committed  []decided // by index-1
	logs       map[raft.ReplicaID]*logView
	applied    map[raft.Index]uint64 // what was applied, as the first replica did
	top        raft.Index            // the highest that anybody has known to be committed
	acks       map[reporter]acks
	aloneStamp int64 // the latest stamp, of those that are ahead, by the clock of an only voter
}

// reporter is a replica in a term.
type reporter struct {
	replica raft.ReplicaID
	term    raft.Term
}

// acks are what a replica has acknowledged in a term.
type acks struct {
	counts  raft.Index // through here
	suspect raft.Index // and through here while it was suspect, which does not count
}

type position struct {
	index raft.Index
	term  raft.Term
}

// decided is a committed entry.
type decided struct {
	known bool
	term  raft.Term
	chain uint64
	by    raft.Term // of the leader that was first seen to know it committed
}

// leader is who was elected, with the log he had then.
type leader struct {
	replica raft.ReplicaID
	log     logView
}

// logView is a log as its writes have told it.
type logView struct {
	base      raft.Index
	baseChain uint64
	baseKnown bool
	terms     []raft.Term
	chains    []uint64
	leads     raft.Term // the term that the replica leads now; 0: none
	applied   raft.Index
}

func (v *logView) last() raft.Index { return v.base + raft.Index(len(v.chains)) }

// chainAt is the chain through i; false if i is not in the log, or if nobody
// knows what came before the log begins.
func (v *logView) chainAt(i raft.Index) (uint64, bool) {
	switch {
	case !v.baseKnown:
		return 0, false
	case i == v.base:
		return v.baseChain, true
	case i > v.base && i <= v.last():
		return v.chains[i-v.base-1], true
	}
	return 0, false
}

func newRaftChecker(w *world) raftChecker {
	return raftChecker{w: w, groups: make(map[raft.GroupID]*groupHistory)}
}

func (c *raftChecker) group(id raft.GroupID) *groupHistory {
	g := c.groups[id]
	if g == nil {
		g = &groupHistory{
			leaders: make(map[raft.Term]*leader), chains: make(map[position]uint64),
			logs: make(map[raft.ReplicaID]*logView), applied: make(map[raft.Index]uint64), acks: make(map[reporter]acks),
		}
		c.groups[id] = g
	}
	return g
}

func (g *groupHistory) log(id raft.ReplicaID) *logView {
	v := g.logs[id]
	if v == nil {
		v = &logView{baseKnown: true}
		g.logs[id] = v
	}
	return v
}

// chainOf is the chain of a committed index.
func (g *groupHistory) chainOf(i raft.Index) (uint64, bool) {
	if i == 0 {
		return 0, true
	}
	if int(i) > len(g.committed) || !g.committed[i-1].known {
		return 0, false
	}
	return g.committed[i-1].chain, true
}

func chain(before uint64, e *raft.Entry) uint64 {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d %d %d %d ", before, e.Index, e.Term, e.Kind)
	h.Write(e.Data)
	return h.Sum64()
}

// watchedLog shows the checker what is written.
type watchedLog struct {
	*logstore.ModelStore
	n *node
}

// Append implements multiraft.Log.
func (l watchedLog) Append(writes []logstore.Write, done func(error)) {
	for _, w := range writes {
		l.n.w.raft.written(l.n, w)
	}
	l.ModelStore.Append(writes, done)
}

// written follows a replica's log. Log Matching: two logs with an entry of one
// index and term are equal through there. Leader Append-Only.
func (c *raftChecker) written(n *node, w logstore.Write) {
	g := c.group(w.ID.Group)
	v := g.log(w.ID.Replica)
	if mark := w.Write.Reset; mark != nil {
		at, known := g.chainOf(mark.Index)
		*v = logView{base: mark.Index, baseChain: at, baseKnown: known, applied: max(v.applied, mark.Index)}
		g.top = max(g.top, mark.Index)
	}
	if len(w.Write.Entries) == 0 {
		return
	}
	first := w.Write.Entries[0].Index
	if first <= v.base || first > v.last()+1 {
		c.w.fail("Log Matching", "node %d group %d: entry %d is written onto a log of (%d, %d]", n.place, w.ID.Group, first, v.base, v.last())
		return
	}
	if v.leads != 0 && first <= v.last() {
		c.w.fail("Leader Append-Only", "node %d leads group %d in term %d and writes entry %d over a log that ends at %d", n.place, w.ID.Group, v.leads, first, v.last())
	}
	keep := first - v.base - 1
	at, known := v.chainAt(first - 1)
	v.terms, v.chains = v.terms[:keep], v.chains[:keep]
	for i := range w.Write.Entries {
		e := &w.Write.Entries[i]
		at = chain(at, e)
		v.terms, v.chains = append(v.terms, e.Term), append(v.chains, at)
		p := position{e.Index, e.Term}
		if !known {
			continue
		}
		if other, seen := g.chains[p]; seen && other != at {
			c.w.fail("Log Matching", "node %d group %d has entry %d of term %d behind another log, or with other content, than others", n.place, w.ID.Group, e.Index, e.Term)
		}
		g.chains[p] = at
	}
}

// leaderChanged hears that a replica begins or ends to lead. Election Safety,
// Leader Completeness.
func (c *raftChecker) leaderChanged(n *node, change multiraft.LeaderChange) {
	g := c.group(change.Group)
	v := g.log(change.Replica)
	v.leads = 0
	if change.Role != raft.Leader {
		return
	}
	v.leads = change.Term
	if other := g.leaders[change.Term]; other != nil {
		if other.replica != change.Replica {
			c.w.fail("Election Safety", "replicas %d and %d of group %d lead term %d", other.replica, change.Replica, change.Group, change.Term)
		}
		return
	}
	c.w.counts.Leaders++
	l := &leader{replica: change.Replica, log: *v}
	l.log.terms, l.log.chains = append([]raft.Term(nil), v.terms...), append([]uint64(nil), v.chains...)
	g.leaders[change.Term] = l
	g.terms = append(g.terms, change.Term)
	for i, d := range g.committed {
		if d.known && d.by < change.Term {
			c.complete(change.Group, g, change.Term, raft.Index(i+1))
		}
	}
}

// complete: the leader of a term was elected with a committed entry.
func (c *raftChecker) complete(id raft.GroupID, g *groupHistory, term raft.Term, i raft.Index) {
	l := g.leaders[term]
	if i < l.log.base || !l.log.baseKnown {
		return
	}
	if have, ok := l.log.chainAt(i); !ok || have != g.committed[i-1].chain {
		c.w.fail("Leader Completeness", "replica %d of group %d was elected in term %d without committed entry %d of term %d", l.replica, id, term, i, g.committed[i-1].term)
	}
}

// sent checks what a message promises, and learns from a leader what is
// committed.
func (c *raftChecker) sent(n *node, m *raft.Message) {
	id := raft.ReplicaKey{Group: m.Group, Replica: m.From}
	switch b := m.Body.(type) {
	case *raft.AppendEntries:
		c.committed(n, m, b.LeaderCommit)
	case *raft.RequestVote:
		if hard, _ := n.log.Durable(id); !b.PreVote && (hard.Term != m.Term || hard.Vote != m.From) {
			c.w.fail("Durable Promise", "node %d asks for votes of group %d in term %d; on its disk is term %d, vote %d", n.place, m.Group, m.Term, hard.Term, hard.Vote)
		}
	case *raft.RequestVoteReply:
		if hard, _ := n.log.Durable(id); !b.PreVote && b.Granted && (hard.Term != m.Term || hard.Vote != m.To) {
			c.w.fail("Durable Promise", "node %d votes for replica %d of group %d in term %d; on its disk is term %d, vote %d", n.place, m.To, m.Group, m.Term, hard.Term, hard.Vote)
		}
	case *raft.AppendEntriesReply:
		if hard, last := n.log.Durable(id); b.Success && (b.MatchIndex > last || hard.Term < m.Term) {
			c.w.fail("Durable Promise", "node %d acknowledges entry %d of group %d in term %d; its disk ends at %d, term %d", n.place, b.MatchIndex, m.Group, m.Term, last, hard.Term)
		}
		c.group(m.Group).acknowledged(m.From, m.Term, b)
	}
}

// acknowledged takes in a reply that is sent.
func (g *groupHistory) acknowledged(id raft.ReplicaID, term raft.Term, b *raft.AppendEntriesReply) {
	if !b.Success {
		return
	}
	a := g.acks[reporter{id, term}]
	if b.Suspect {
		a.suspect = max(a.suspect, b.MatchIndex)
	} else {
		a.counts = max(a.counts, b.MatchIndex)
	}
	g.acks[reporter{id, term}] = a
}

// heard takes in a message that arrives. A reply that is not suspect lets the
// leader count what the replica has acknowledged in the term while it was.
func (c *raftChecker) heard(m *raft.Message) {
	if b, ok := m.Body.(*raft.AppendEntriesReply); ok && !b.Suspect {
		g := c.group(m.Group)
		a := g.acks[reporter{m.From, m.Term}]
		a.counts, a.suspect = max(a.counts, a.suspect), 0
		g.acks[reporter{m.From, m.Term}] = a
	}
}

// counted holds what leaders have newly committed against what they were told:
// an entry of their own term (section 5.4.2) that a majority has acknowledged,
// suspect replicas aside. Quorum Commit.
func (c *raftChecker) counted() {
	news := c.commits
	c.commits = nil
	for _, news := range news {
		g := c.group(news.group)
		if !news.n.up() || news.n.host == nil {
			g.top = max(g.top, news.through)
			continue
		}
		s, ok := news.n.host.Status(news.group)
		if !ok || s.Role != raft.Leader || s.Term != news.term || s.Commit <= g.top {
			g.top = max(g.top, news.through) // it leads no more, and nobody can tell
			continue
		}
		g.top = s.Commit
		v := g.log(s.Key.Replica)
		if i := s.Commit - v.base; i > 0 && i <= raft.Index(len(v.terms)) && v.terms[i-1] != s.Term {
			c.w.fail("Quorum Commit", "node %d leads group %d in term %d and commits entry %d of term %d by counting", news.n.place, news.group, s.Term, s.Commit, v.terms[i-1])
		}
		// The status is of now: a membership may have begun since.
		if !g.quorum(news.n, s, s.Membership.Voters) && !(s.Membership.Joint() && g.quorum(news.n, s, s.Membership.Outgoing)) {
			c.w.fail("Quorum Commit", "node %d leads group %d in term %d and commits entry %d, which no majority has acknowledged: %+v", news.n.place, news.group, s.Term, s.Commit, g.acks)
		}
	}
}

// quorum tells whether a majority has what the leader has committed.
func (g *groupHistory) quorum(leader *node, s multiraft.GroupStatus, voters []raft.Member) bool {
	have := 0
	for _, m := range voters {
		through := g.acks[reporter{m.Replica, s.Term}].counts
		if m.Replica == s.Key.Replica {
			_, through = leader.log.Durable(s.Key)
		}
		if through >= s.Commit {
			have++
		}
	}
	return have > len(voters)/2
}

// committed takes in how far a leader says that the group has committed.
func (c *raftChecker) committed(n *node, m *raft.Message, through raft.Index) {
	g := c.group(m.Group)
	v := g.log(m.From)
	if through > v.last() {
		c.w.fail("State Machine Safety", "node %d leads group %d and commits %d; its log ends at %d", n.place, m.Group, through, v.last())
		return
	}
	if through > g.top {
		c.commits = append(c.commits, commit{n, m.Group, m.Term, through})
	}
	for i := raft.Index(len(g.committed)) + 1; i <= through; i++ {
		g.committed = append(g.committed, decided{})
	}
	for i := through; i > v.base && v.baseKnown; i-- {
		at, _ := v.chainAt(i)
		d := &g.committed[i-1]
		if d.known {
			if d.chain != at {
				c.w.fail("State Machine Safety", "node %d commits another entry %d of group %d (of term %d) than was committed (of term %d)", n.place, i, m.Group, v.terms[i-v.base-1], d.term)
			}
			break // the chain vouches for all before it
		}
		*d = decided{known: true, term: v.terms[i-v.base-1], chain: at, by: m.Term}
		for _, t := range g.terms {
			if t > m.Term {
				c.complete(m.Group, g, t, i)
			}
		}
	}
}

// watchedMachine shows the checker what is applied.
type watchedMachine struct {
	multiraft.StateMachine
	n     *node
	state *statestore.Replica
}

// Apply implements multiraft.StateMachine.
func (m watchedMachine) Apply(b *statestore.Batch, e multiraft.Applied, results []any) error {
	m.n.w.raft.apply(m.n, m.state.ID(), e)
	m.n.w.raft.stamped(m.n, m.state, e)
	return m.StateMachine.Apply(b, e, results)
}

// stampAhead is how far clocks that are not wrong may be ahead of the right
// time in a run: they go up to three tenths too fast.
const stampAhead = time.Minute

// stamped: one clock that is wrong does not make the time of a group, unless the
// group has one voter, or had when it was stamped. Group Time.
func (c *raftChecker) stamped(n *node, state *statestore.Replica, e multiraft.Applied) {
	ahead := e.Stamp - c.w.clock().UnixMilli()
	g := c.group(state.ID().Group)
	if ahead <= stampAhead.Milliseconds() || e.Stamp <= g.aloneStamp {
		return
	}
	if _, _, m, err := state.Applied(); err == nil && len(m.Voters) <= 1 {
		g.aloneStamp = e.Stamp
		return
	}
	c.w.fail("Group Time", "node %d group %d: entry %d is stamped %d s ahead of the time", n.place, state.ID().Group, e.Index, ahead/1000)
}

// apply: no two replicas apply other entries at one index, and none goes back.
func (c *raftChecker) apply(n *node, key raft.ReplicaKey, e multiraft.Applied) {
	g := c.group(key.Group)
	v := g.log(key.Replica)
	if e.Index <= v.applied {
		c.w.fail("State Machine Safety", "node %d group %d applies entry %d behind %d", n.place, key.Group, e.Index, v.applied)
	}
	v.applied = e.Index
	switch {
	case e.Index <= g.top:
	case v.leads != 0:
		c.commits = append(c.commits, commit{n, key.Group, v.leads, e.Index})
	default:
		g.top = e.Index
	}
	h := fnv.New64a()
	fmt.Fprintf(h, "%d %d ", e.Term, e.Stamp)
	for _, command := range e.Commands {
		h.Write(command)
	}
	sum := h.Sum64()
	if first, known := g.applied[e.Index]; known && first != sum {
		c.w.fail("State Machine Safety", "node %d group %d applies another entry %d than others", n.place, key.Group, e.Index)
	}
	g.applied[e.Index] = sum
}

// crashed forgets what the node led.
func (c *raftChecker) crashed(n *node) {
	c.eachOn(n, func(_ *groupHistory, _ raft.ReplicaKey, v *logView) { v.leads = 0 })
}

// restarted takes the logs as the disk gives them back.
func (c *raftChecker) restarted(n *node) {
	c.eachOn(n, func(g *groupHistory, key raft.ReplicaKey, v *logView) {
		r := n.store.Reader(key)
		base := r.FirstIndex() - 1
		at, known := g.chainOf(base)
		*v = logView{base: base, baseChain: at, baseKnown: known}
		if last := r.LastIndex(); last > base {
			entries, err := r.Entries(base+1, last+1, 1<<30)
			if err != nil {
				c.w.fail("Assertion", "node %d: the log of group %d cannot be read: %v", n.place, key.Group, err)
				return
			}
			for i := range entries {
				at = chain(at, &entries[i])
				v.terms, v.chains = append(v.terms, entries[i].Term), append(v.chains, at)
			}
		}
	})
}

// reopened learns what the states on the disk tell of what is committed: entries
// of the core's own pass no state machine.
func (c *raftChecker) reopened(n *node) {
	for _, s := range n.host.Statuses() {
		g := c.group(s.Key.Group)
		g.top = max(g.top, s.Commit)
	}
}

// eachOn visits the replicas that the node's log knows.
func (c *raftChecker) eachOn(n *node, visit func(*groupHistory, raft.ReplicaKey, *logView)) {
	for _, key := range n.log.Known() {
		g := c.group(key.Group)
		visit(g, key, g.log(key.Replica))
	}
}
