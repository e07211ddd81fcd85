package multiraft

import (
	"fmt"

	"github.com/flotilla-kv/flotilla/internal/assert"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/statestore"
)

// StateMachine is what a group's log drives. Each replica has its own; apart
// from what it answers readers by itself, it is called by one goroutine at a
// time.
type StateMachine interface {
	// Apply applies one entry's commands into b, the batch that also carries
	// the applied index: the same entry has the same effect at every replica.
	// results has one slot for each command. An error stops the node: the state
	// machine met something that it must not skip.
	Apply(b *statestore.Batch, e Applied, results []any) error
	// Finish is called once for each batch, when all its entries are applied
	// and before it is committed: what every entry changes is put into b once.
	// How entries are batched must not show in the state.
	Finish(b *statestore.Batch)
	// Restored is called after the start and after a snapshot was installed:
	// what is kept in memory is built anew from r.
	Restored(r *statestore.Replica) error
	// Committed is called when the entries through index are in the state
	// store, visible to readers, and before their proposers are answered.
	Committed(index raft.Index)
}

// Applied is one command entry.
type Applied struct {
	Index    raft.Index
	Term     raft.Term
	Stamp    int64    // unix ms, from the leader that proposed it; a group's time is the largest applied
	Commands [][]byte // shared with the log: read only, and copied if kept
	Waited   bool     // false: nobody waits here, the results may be left nil
}

// ReplicaSpec is what Start needs to know of a replica.
type ReplicaSpec struct {
	Group   raft.GroupID
	Replica raft.ReplicaID
	// First is the group's first membership; Epoch 0: the replica starts
	// empty, and learns who it is from its leader's log or snapshot. Of a
	// replica that the node has recorded already it is not looked at.
	First raft.Membership
	// Preferred is the node that should lead: it stands for election first. 0:
	// none.
	Preferred raft.NodeID
	// LeaseReads lets the group serve reads from its leader's lease; all
	// replicas of a group must agree.
	LeaseReads bool
	// NewStateMachine is called once, by Start.
	NewStateMachine func(*statestore.Replica) StateMachine
}

// applyEntries applies entries, mostly as one batch of the state store, and notes
// in s who is to be answered, once all of them are applied.
func (r *replica) applyEntries(entries []raft.Entry, s *applyScratch) error {
	next := r.apply.appliedIndex() + 1
	assert.That(entries[0].Index == next, "group %d replica %d applies entry %d behind %d",
		r.key.Group, r.key.Replica, entries[0].Index, next-1)
	for len(entries) > 0 {
		n, err := r.applyBatch(entries, s)
		if err != nil {
			return err
		}
		entries = entries[n:]
	}
	return nil
}

// applyBatch applies entries as one batch, as many as it takes.
func (r *replica) applyBatch(entries []raft.Entry, s *applyScratch) (n int, err error) {
	b := r.state.NewBatch()
	defer b.Close()
	for n < len(entries) && (n == 0 || b.Bytes() < r.worker.h.opts.Limits.EffectBytes) {
		e := &entries[n]
		if err := r.applyEntry(b, e, s); err != nil {
			return n, fmt.Errorf("entry %d of term %d: %w", e.Index, e.Term, err)
		}
		n++
	}
	r.machine.Finish(b)
	last := &entries[n-1]
	b.SetApplied(last.Index, last.Term, r.appliedMembership)
	if err := b.Commit(); err != nil {
		return n, err
	}
	r.machine.Committed(last.Index)
	return n, nil
}

func (r *replica) applyEntry(b *statestore.Batch, e *raft.Entry, s *applyScratch) error {
	w := r.outcomes.take(e.Index)
	if w != nil { // from here on it is ours to answer, whatever happens
		s.answers = append(s.answers, answer{w: w, term: e.Term})
	}
	from := len(s.results)
	switch e.Kind {
	case raft.EntryNoop:
	case raft.EntryCommand:
		if err := r.applyCommands(b, e, s, waitedFor(w, e.Term)); err != nil {
			return err
		}
	case raft.EntryMembership:
		m, err := raft.DecodeMembership(e.Data)
		if err != nil {
			return err
		}
		r.appliedMembership, s.membership = m, &m
		s.results = append(s.results, m)
	default:
		return fmt.Errorf("%w: kind %d", errEntry, e.Kind)
	}
	if w != nil {
		s.answers[len(s.answers)-1].results = s.results[from:len(s.results):len(s.results)]
	}
	return nil
}

func (r *replica) applyCommands(b *statestore.Batch, e *raft.Entry, s *applyScratch, waited bool) error {
	firstCommand, firstResult := len(s.commands), len(s.results)
	stamp, commands, err := decodeCommands(e.Data, s.commands)
	if err != nil {
		return err
	}
	s.commands = commands
	for range len(commands) - firstCommand {
		s.results = append(s.results, nil)
	}
	return r.machine.Apply(b, Applied{
		Index:    e.Index,
		Term:     e.Term,
		Stamp:    stamp,
		Commands: commands[firstCommand:len(commands):len(commands)],
		Waited:   waited,
	}, s.results[firstResult:len(s.results):len(s.results)])
}

// waitedFor says whether a proposer waits for the entry of that term.
func waitedFor(w *waiter, term raft.Term) bool {
	for ; w != nil; w = w.next {
		if w.term == term {
			return true
		}
	}
	return false
}
