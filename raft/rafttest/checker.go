package rafttest

import (
	"fmt"

	"github.com/flotilla-kv/flotilla/raft"
)

// Violation says which property did not hold, and where.
type Violation struct {
	Property string
	Detail   string
}

// Error names the property first.
func (v *Violation) Error() string { return v.Property + ": " + v.Detail }

func violated(property, format string, args ...any) error {
	return &Violation{Property: property, Detail: fmt.Sprintf(format, args...)}
}

// Checker sees every step of every replica of one group and says which
// property of the paper's figure 3 (or of this core's contract) was violated.
type Checker struct {
	replicas map[raft.ReplicaID]*Replica

	leaders   map[raft.Term]*reign
	terms     []raft.Term // of leaders, in order of election
	chains    map[position]uint64
	committed []decided // by index-1
	observed  map[raft.ReplicaID]*observation
	// rules is nil where messages are made by hand: it counts those it has seen.
	rules *rules
	// Cuts counts logs that were cut: what was durable on a quorum may be so
	// no more.
	Cuts int
}

type position struct {
	index raft.Index
	term  raft.Term
}

// decided is a committed entry.
type decided struct {
	term  raft.Term
	chain uint64
	by    raft.Term // the term of whoever was first seen to know it committed
}

// reign is a leader and the log it was elected with.
type reign struct {
	leader raft.ReplicaID
	log    view
}

// observation is what was last seen of a running replica.
type observation struct {
	role   raft.Role
	term   raft.Term
	commit raft.Index
	last   raft.Index
	chain  uint64 // at last
}

// NewChecker has seen nothing.
func NewChecker() *Checker {
	return &Checker{
		replicas: map[raft.ReplicaID]*Replica{},
		leaders:  map[raft.Term]*reign{},
		chains:   map[position]uint64{},
		observed: map[raft.ReplicaID]*observation{},
	}
}

// Watch adds a replica whose disk counts.
func (c *Checker) Watch(r *Replica) { c.replicas[r.Member.Replica] = r }

// Committed is how far the group has committed, as any replica knows.
func (c *Checker) Committed() raft.Index { return raft.Index(len(c.committed)) }

// DecidedTerm is the term of the committed entry at i, 0 if none is.
func (c *Checker) DecidedTerm(i raft.Index) raft.Term {
	if i == 0 || i > c.Committed() {
		return 0
	}
	return c.committed[i-1].term
}

// chainOf is the chain at a committed index.
func (c *Checker) chainOf(i raft.Index) uint64 {
	if i == 0 {
		return 0
	}
	return c.committed[i-1].chain
}

// view is a core's log as its writes have told it: the chains of all entries.
type view struct {
	base      raft.Index
	baseChain uint64
	terms     []raft.Term
	chains    []uint64
}

func (v *view) open(d *Disk) {
	*v = view{base: d.base, baseChain: d.baseChain}
	for i := range d.entries {
		v.terms, v.chains = append(v.terms, d.entries[i].Term), append(v.chains, d.chains[i])
	}
}

func (v *view) last() raft.Index { return v.base + raft.Index(len(v.chains)) }

func (v *view) chainAt(i raft.Index) (uint64, bool) {
	switch {
	case i == v.base:
		return v.baseChain, true
	case i > v.base && i <= v.last():
		return v.chains[i-v.base-1], true
	}
	return 0, false
}

func (v *view) copy() view {
	c := *v
	c.terms = append([]raft.Term(nil), v.terms...)
	c.chains = append([]uint64(nil), v.chains...)
	return c
}

// written follows the log, and checks Log Matching: two logs with an entry of
// one index and term are equal through there.
func (c *Checker) written(r *Replica, w *raft.Write) error {
	v := &r.view
	if w.Reset != nil {
		*v = view{base: w.Reset.Index, baseChain: c.chainOf(w.Reset.Index)}
	}
	if len(w.Entries) == 0 {
		return nil
	}
	first := w.Entries[0].Index
	if first <= v.base || first > v.last()+1 {
		return fmt.Errorf("replica %d writes entry %d onto a log of (%d, %d]", r.Member.Replica, first, v.base, v.last())
	}
	keep := first - v.base - 1
	at, _ := v.chainAt(first - 1)
	v.terms, v.chains = v.terms[:keep:keep], v.chains[:keep:keep]
	for i := range w.Entries {
		e := &w.Entries[i]
		at = chain(at, e)
		v.terms, v.chains = append(v.terms, e.Term), append(v.chains, at)
		p := position{e.Index, e.Term}
		if known, ok := c.chains[p]; ok && known != at {
			return violated("Log Matching", "replica %d has entry %d of term %d behind another log, or with other content, than others", r.Member.Replica, e.Index, e.Term)
		}
		c.chains[p] = at
	}
	return c.rules.written(r, w)
}

// sent checks that a message promises nothing that is not on the disk.
func (c *Checker) sent(r *Replica, m *raft.Message) error {
	d, id := r.Disk, r.Member.Replica
	if err := c.rules.sent(r, m); err != nil {
		return err
	}
	switch b := m.Body.(type) {
	case *raft.RequestVote:
		if !b.PreVote && (d.Hard.Term != m.Term || d.Hard.Vote != id) {
			return fmt.Errorf("durable vote: replica %d asks for votes in term %d, on its disk is term %d with a vote for %d", id, m.Term, d.Hard.Term, d.Hard.Vote)
		}
		return nil
	case *raft.RequestVoteReply:
		if b.PreVote {
			return nil
		}
		if b.Granted && (d.Hard.Term != m.Term || d.Hard.Vote != m.To) {
			return fmt.Errorf("durable vote: replica %d grants %d its vote in term %d, on its disk is term %d with a vote for %d", id, m.To, m.Term, d.Hard.Term, d.Hard.Vote)
		}
		if b.Granted && r.Suspect {
			return fmt.Errorf("suspect: replica %d votes", id)
		}
	case *raft.AppendEntriesReply:
		if b.Success {
			if err := c.checkAcknowledged(r, m, b); err != nil {
				return err
			}
		}
	}
	if d.Hard.Term < m.Term {
		return fmt.Errorf("durable term: replica %d says %T in term %d, on its disk is term %d", id, m.Body, m.Term, d.Hard.Term)
	}
	return nil
}

// checkAcknowledged: through MatchIndex the disk equals the leader's log.
func (c *Checker) checkAcknowledged(r *Replica, m *raft.Message, b *raft.AppendEntriesReply) error {
	if b.MatchIndex < r.Disk.base {
		return nil // committed and compacted
	}
	have, ok := r.Disk.chainAt(b.MatchIndex)
	if !ok {
		return fmt.Errorf("durable acknowledgement: replica %d acknowledges %d, its disk ends at %d", r.Member.Replica, b.MatchIndex, r.Disk.LastIndex())
	}
	leader := c.replicas[m.To]
	if leader == nil || leader.Core == nil || leader.Core.Term() != m.Term || leader.Core.Role() != raft.Leader {
		return nil
	}
	if want, ok := leader.view.chainAt(b.MatchIndex); ok && want != have {
		return fmt.Errorf("acknowledgement: replica %d acknowledges %d to leader %d of term %d, but has another log", r.Member.Replica, b.MatchIndex, m.To, m.Term)
	}
	return nil
}

// handedOut checks that what is to be applied is durable here.
func (c *Checker) handedOut(r *Replica, e *raft.Entry) error {
	if e.Index > r.Disk.LastIndex() {
		return fmt.Errorf("applied before durable: replica %d is given entry %d, its disk ends at %d", r.Member.Replica, e.Index, r.Disk.LastIndex())
	}
	return nil
}

// applied checks State Machine Safety: no two replicas apply different entries
// at one index.
func (c *Checker) applied(r *Replica) error {
	i := r.Machine.Applied
	if i > c.Committed() {
		return violated("State Machine Safety", "replica %d applies entry %d, which nobody has committed", r.Member.Replica, i)
	}
	if c.committed[i-1].chain != r.Machine.Chain {
		return violated("State Machine Safety", "replica %d has another state at index %d", r.Member.Replica, i)
	}
	return nil
}

// crashed forgets what a restart may change.
func (c *Checker) crashed(r *Replica) { delete(c.observed, r.Member.Replica) }

// stepped checks what a step may have changed. The core has been drained.
func (c *Checker) stepped(r *Replica) error {
	if err := r.Core.CheckInvariants(); err != nil {
		return err
	}
	id := r.Member.Replica
	now := observation{role: r.Core.Role(), term: r.Core.Term(), commit: r.Core.CommitIndex(), last: r.view.last()}
	now.chain, _ = r.view.chainAt(now.last)
	before := c.observed[id]
	if before == nil {
		before = &observation{}
		c.observed[id] = before
	}
	if now.term < before.term || now.commit < before.commit {
		return fmt.Errorf("replica %d goes back from term %d commit %d to term %d commit %d", id, before.term, before.commit, now.term, now.commit)
	}
	if err := c.checkLeader(r, before, &now); err != nil {
		return err
	}
	if now.commit > before.commit {
		if err := c.checkCommit(r, before.commit, &now); err != nil {
			return err
		}
	}
	*before = now
	return nil
}

// checkLeader: Election Safety, Leader Append-Only, Leader Completeness.
func (c *Checker) checkLeader(r *Replica, before, now *observation) error {
	if now.role != raft.Leader {
		return nil
	}
	id := r.Member.Replica
	if before.role == raft.Leader && before.term == now.term {
		if had, ok := r.view.chainAt(before.last); now.last < before.last || ok && had != before.chain {
			return violated("Leader Append-Only", "leader %d of term %d changed its log, which was %d long", id, now.term, before.last)
		}
		return nil
	}
	if other := c.leaders[now.term]; other != nil {
		return violated("Election Safety", "replicas %d and %d lead term %d", other.leader, id, now.term)
	}
	if err := c.rules.elected(r); err != nil {
		return err
	}
	c.leaders[now.term] = &reign{leader: id, log: r.view.copy()}
	c.terms = append(c.terms, now.term)
	for i, d := range c.committed {
		// The leader of an older term, elected late, need not have it.
		if d.by >= now.term {
			continue
		}
		if err := c.hasCommitted(now.term, raft.Index(i+1)); err != nil {
			return err
		}
	}
	return nil
}

// hasCommitted: the leader of term t was elected with the committed entry i.
func (c *Checker) hasCommitted(t raft.Term, i raft.Index) error {
	g := c.leaders[t]
	if i < g.log.base {
		return nil
	}
	if have, ok := g.log.chainAt(i); !ok || have != c.committed[i-1].chain {
		return violated("Leader Completeness", "leader %d of term %d was elected without committed entry %d of term %d", g.leader, t, i, c.committed[i-1].term)
	}
	return nil
}

// checkCommit: what is committed never changes, every leader of a later term
// had it, and it is durable on a quorum.
func (c *Checker) checkCommit(r *Replica, from raft.Index, now *observation) error {
	id := r.Member.Replica
	for i := max(from, r.view.base) + 1; i <= now.commit; i++ {
		at, ok := r.view.chainAt(i)
		if !ok {
			return fmt.Errorf("replica %d commits %d, its log ends at %d", id, i, now.last)
		}
		term := r.view.terms[i-r.view.base-1]
		if i <= c.Committed() {
			if c.committed[i-1].chain != at {
				return violated("State Machine Safety", "replica %d commits another entry %d (of term %d) than was committed (of term %d)", id, i, term, c.committed[i-1].term)
			}
			continue
		}
		if i != c.Committed()+1 {
			return fmt.Errorf("replica %d commits %d, nobody has committed %d", id, i, c.Committed()+1)
		}
		c.committed = append(c.committed, decided{term: term, chain: at, by: now.term})
		for _, t := range c.terms {
			if t > now.term {
				if err := c.hasCommitted(t, i); err != nil {
					return err
				}
			}
		}
	}
	if now.role == raft.Leader && c.Cuts == 0 {
		return c.checkQuorum(r, now.commit)
	}
	return nil
}

// checkQuorum counts the disks.
func (c *Checker) checkQuorum(r *Replica, i raft.Index) error {
	want, ok := r.view.chainAt(i)
	if !ok {
		return nil
	}
	members := r.Core.Membership()
	for _, list := range [][]raft.Member{members.Voters, members.Outgoing} {
		n := 0
		for _, m := range list {
			if o := c.replicas[m.Replica]; o != nil {
				if have, ok := o.Disk.chainAt(i); o.Disk.base > i || ok && have == want {
					n++
				}
			}
		}
		if len(list) > 0 && n <= len(list)/2 {
			return fmt.Errorf("durable commit: leader %d of term %d commits %d, which is on the disks of %d of %d voters", r.Member.Replica, r.Core.Term(), i, n, len(list))
		}
	}
	return nil
}
