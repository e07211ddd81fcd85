package multiraft

import (
	"errors"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
)

// jointChange is a membership change whose joint phase is applied and that
// waits for the group to leave it, which the leader does by itself.
type jointChange struct {
	epoch uint64 // of the joint phase
	since time.Time
	done  func(error)
}

// ChangeMembership asks the leader, if it is here, for new voters and learners
// of the group, through a joint phase if need be. epoch is that of the
// membership it was planned for; if that has passed: *EpochError. done is
// called when the change is complete and applied here, or with the reason why
// not; ErrUnknown leaves it open. It is called as Propose's is.
func (h *Host) ChangeMembership(g raft.GroupID, epoch uint64, voters, learners []raft.Member, done func(error)) {
	r, ok := h.find(g)
	if !ok {
		done(ErrNoGroup)
		return
	}
	if !r.worker.inbox.order(func() { r.proposeMembership(epoch, voters, learners, done) }) {
		done(ErrStopped)
	}
}

func (r *replica) proposeMembership(epoch uint64, voters, learners []raft.Member, done func(error)) {
	switch have := r.core.Membership().Epoch; {
	case r.gone:
		done(ErrStopped)
		return
	case r.core.Role() != raft.Leader || r.frozen:
		done(r.notLeader())
		return
	case have != epoch:
		done(&EpochError{Group: r.key.Group, Asked: epoch, Have: have})
		return
	}
	index, term, err := r.core.ProposeMembership(voters, learners)
	if errors.Is(err, raft.ErrNotLeader) {
		err = r.notLeader()
	}
	if err != nil {
		done(err)
		return
	}
	r.idle = 0
	w := r.worker
	answered := func(res Result) { w.changeApplied(r, res, done) }
	r.outcomes.add(index, term, []proposal{{r: r, done: answered}}, w.now)
	w.touch(r)
}

// changeApplied is called by the applier when the change's own entry is
// applied, or cannot be any more.
func (w *worker) changeApplied(r *replica, res Result, done func(error)) {
	m, ok := res.Value.(raft.Membership)
	if res.Err != nil || !ok || !m.Joint() {
		done(res.Err)
		return
	}
	change := jointChange{epoch: m.Epoch, since: w.h.now(), done: done}
	if !w.inbox.order(func() { r.changes = append(r.changes, change) }) {
		done(ErrUnknown)
	}
}

// membershipApplied looks at what the replica's log, as applied, says of the
// group: a joint phase may be over, or the replica itself removed.
func (r *replica) membershipApplied(m raft.Membership) {
	if r.gone {
		return
	}
	if !m.Joint() {
		kept := r.changes[:0]
		for _, c := range r.changes {
			if m.Epoch > c.epoch {
				c.done(nil)
			} else {
				kept = append(kept, c)
			}
		}
		clear(r.changes[len(kept):])
		r.changes = kept
	}
	h := r.worker.h
	_, member := m.Member(r.key.Replica)
	if r.wasMember && !member {
		h.log.Info("replica is removed from its group", "group", r.key.Group, "replica", r.key.Replica, "epoch", m.Epoch)
		if h.opts.OnRemoved != nil {
			h.opts.OnRemoved(r.key)
		}
	}
	r.wasMember = member
	h.log.Info("membership applied", "group", r.key.Group, "replica", r.key.Replica, "epoch", m.Epoch,
		"voters", len(m.Voters), "outgoing", len(m.Outgoing), "learners", len(m.Learners))
}

// expireChanges gives up waiting for the end of joint phases begun before
// limit; the group leaves them all the same, when it can.
func (r *replica) expireChanges(limit time.Time) {
	kept := r.changes[:0]
	for _, c := range r.changes {
		if c.since.Before(limit) {
			c.done(ErrUnknown)
		} else {
			kept = append(kept, c)
		}
	}
	clear(r.changes[len(kept):])
	r.changes = kept
}

func (r *replica) endChanges() {
	for _, c := range r.changes {
		c.done(ErrUnknown)
	}
	r.changes = nil
}
