package shardctrler

import (
	"context"
	"errors"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/multiraft"
	"github.com/flotilla-kv/flotilla/raft/statestore"
)

// NewStateMachine makes the state machine of this node's replica of the config
// group; it is a multiraft.ReplicaSpec's. The controller reads from the one
// made last.
func (c *Controller) NewStateMachine(*statestore.Replica) multiraft.StateMachine {
	return c.newMachine()
}

// Apply implements multiraft.StateMachine.
func (m *Machine) Apply(b *statestore.Batch, e multiraft.Applied, results []any) error {
	return m.applyEntry(b, e.Index, e.Stamp, e.Commands, results)
}

// Finish implements multiraft.StateMachine: each entry's batch is whole.
func (m *Machine) Finish(*statestore.Batch) {}

// Restored implements multiraft.StateMachine.
func (m *Machine) Restored(r *statestore.Replica) error {
	records := r.NewIter(nil, nil)
	return errors.Join(m.restore(records), records.Close())
}

// Committed implements multiraft.StateMachine.
func (m *Machine) Committed(raft.Index) { m.publish() }

// OverMultiraft is the Host that a multiraft.Host is.
func OverMultiraft(h *multiraft.Host) Host { return multiraftHost{h} }

type multiraftHost struct{ host *multiraft.Host }

// Propose implements ConfigLog. What the controller decides is never refused
// for load.
func (m multiraftHost) Propose(ctx context.Context, command []byte) (any, error) {
	done := make(chan multiraft.Result, 1)
	m.host.ProposeUrgent(raft.ConfigGroup, command, func(r multiraft.Result) { done <- r })
	select {
	case r := <-done:
		return r.Value, fromMultiraft(r.Err)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Barrier implements ConfigLog.
func (m multiraftHost) Barrier(ctx context.Context) error {
	done := make(chan error, 1)
	m.host.ReadIndex(raft.ConfigGroup, multiraft.ReadOptions{Follower: true}, func(_ raft.Index, err error) { done <- err })
	select {
	case err := <-done:
		return fromMultiraft(err)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// fromMultiraft translates what has certainly had no effect; all else may have.
func fromMultiraft(err error) error {
	var notLeader *multiraft.NotLeaderError
	switch {
	case errors.As(err, &notLeader):
		return &NotLeaderError{Group: notLeader.Group, Leader: notLeader.Leader.Node}
	case errors.Is(err, multiraft.ErrNoGroup):
		return ErrNoReplica
	}
	return err
}

// Leader implements Groups.
func (m multiraftHost) Leader(g raft.GroupID) (raft.Member, raft.Term, bool) { return m.host.Leader(g) }

// Status implements Groups.
func (m multiraftHost) Status(g raft.GroupID) (GroupStatus, bool) {
	s, ok := m.host.Status(g)
	if !ok {
		return GroupStatus{}, false
	}
	return statusFromMultiraft(s), true
}

// Statuses implements Groups.
func (m multiraftHost) Statuses() []GroupStatus {
	all := m.host.Statuses()
	statuses := make([]GroupStatus, len(all))
	for i, s := range all {
		statuses[i] = statusFromMultiraft(s)
	}
	return statuses
}

func statusFromMultiraft(s multiraft.GroupStatus) GroupStatus {
	st := GroupStatus{
		Group:      s.Key.Group,
		Self:       s.Key.Replica,
		IsLeader:   s.Role == raft.Leader,
		Leader:     s.Leader,
		Term:       s.Term,
		Membership: s.Membership,
		Unsettled:  s.Unsettled,
		CaughtUp:   s.Applied >= s.Commit && !s.Suspect && !s.Installing,
		Last:       s.Last,
		LastTerm:   s.LastTerm,
		Commit:     s.Commit,
		Applied:    s.Applied,
		Suspect:    s.Suspect,
	}
	if !st.IsLeader {
		return st
	}
	st.Lag = make(map[raft.ReplicaID]int64, len(s.Members))
	for _, m := range s.Members {
		if m.MatchKnown {
			st.Lag[m.Replica] = max(0, int64(s.Last)-int64(m.Match))
		}
	}
	return st
}

// Transfer implements Groups.
func (m multiraftHost) Transfer(g raft.GroupID, to raft.ReplicaID) error {
	return m.host.Transfer(g, to)
}

// Recover implements Groups.
func (m multiraftHost) Recover(key raft.ReplicaKey, epoch uint64, floor raft.ReplicaID) error {
	return m.host.Recover(key, epoch, floor)
}

// ChangeMembership implements Groups.
func (m multiraftHost) ChangeMembership(g raft.GroupID, epoch uint64, voters, learners []raft.Member, done func(error)) {
	m.host.ChangeMembership(g, epoch, voters, learners, done)
}
