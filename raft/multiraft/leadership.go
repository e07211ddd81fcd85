package multiraft

import (
	"context"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
)

// HandleMessages takes Raft messages in; what finds no room or no group is
// dropped and counted, which Raft repairs.
func (h *Host) HandleMessages(from raft.NodeID, ms []raft.Message) {
	if len(h.workers) == 1 {
		h.stats.messagesDropped.Add(uint64(h.workers[0].inbox.deliver(from, ms)))
		return
	}
	// Runs of messages for the same worker go in together.
	for len(ms) > 0 {
		w := h.workerOf(ms[0].Group)
		n := 1
		for n < len(ms) && h.workerOf(ms[n].Group) == w {
			n++
		}
		h.stats.messagesDropped.Add(uint64(w.inbox.deliver(from, ms[:n])))
		ms = ms[n:]
	}
}

// PeerUp says that a node is alive, with this boot number. A new boot came as
// PeerDown before it.
func (h *Host) PeerUp(node raft.NodeID, boot uint64) {
	h.log.Info("node is up", "node", node, "boot", boot)
	for _, w := range h.workers {
		w.inbox.order(func() { w.nodeUp(node) })
	}
	h.sends.kick()
}

// PeerDown says that a node is dead, or was before it came back.
func (h *Host) PeerDown(node raft.NodeID) {
	h.log.Info("node is down", "node", node)
	for _, w := range h.workers {
		w.inbox.order(func() { w.nodeDown(node) })
	}
}

// Leader is the group's leader as the replica here knows it, at once. ok: the
// group has a replica here and that knows one.
func (h *Host) Leader(g raft.GroupID) (leader raft.Member, term raft.Term, ok bool) {
	r, ok := h.find(g)
	if !ok {
		return raft.Member{}, 0, false
	}
	v := r.published.Load()
	return v.Leader, v.Term, v.Leader.Replica != 0
}

// Transfer hands the leadership of a group that is led here to another voter;
// 0: to whichever live one is furthest. It returns when the core has begun;
// OnLeader tells how it ends. A transfer that does not succeed within an
// election timeout is given up.
func (h *Host) Transfer(g raft.GroupID, to raft.ReplicaID) error {
	r, ok := h.find(g)
	if !ok {
		return ErrNoGroup
	}
	var err error
	if !r.worker.do(func() { err = r.transfer(to) }) {
		return ErrStopped
	}
	return err
}

func (r *replica) transfer(to raft.ReplicaID) error {
	switch {
	case r.gone:
		return ErrStopped
	case r.core.Role() != raft.Leader || r.frozen:
		return r.notLeader()
	}
	if to == 0 {
		to = r.successor()
	}
	if to == 0 {
		return ErrNoTarget
	}
	r.idle = 0
	err := r.core.TransferLeadership(to)
	r.worker.touch(r)
	return err
}

// successor is the live voter with the longest log, 0 if there is none; the
// preferred node's goes before others that are as far.
func (r *replica) successor() raft.ReplicaID {
	var best raft.ReplicaID
	var bestMatch raft.Index
	m := r.core.Membership()
	for _, p := range r.core.Status().Progress {
		if !m.IsVoter(p.Member.Replica) || p.Member.Replica == r.key.Replica || p.Suspect || !r.worker.h.opts.Transport.Alive(p.Member.Node) {
			continue
		}
		if best == 0 || p.Match > bestMatch || p.Match == bestMatch && p.Member.Node == r.spec.Preferred {
			best, bestMatch = p.Member.Replica, p.Match
		}
	}
	return best
}

// drainRetry is how often Drain looks at what still leads here.
const drainRetry = 20 * time.Millisecond

// Drain hands over all leaderships that somebody else can take, and returns
// when none such is left or ctx ends. It is the first step of a graceful stop.
func (h *Host) Drain(ctx context.Context) error {
	ticker := time.NewTicker(drainRetry)
	defer ticker.Stop()
	for {
		if left, err := h.DrainOnce(); left == 0 || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// DrainOnce is one look of Drain: it begins what can be begun and tells how
// many leaderships are still to be handed over.
func (h *Host) DrainOnce() (left int, err error) {
	for _, w := range h.workers {
		if !w.do(func() { left += w.drain() }) {
			return 0, ErrStopped
		}
	}
	return left, nil
}

// drain begins to hand over what is led here and tells how many are left.
func (w *worker) drain() (left int) {
	for _, r := range w.sorted() {
		if r.core.Role() != raft.Leader || r.successor() == 0 {
			continue
		}
		left++
		_ = r.transfer(0) // one under way goes on; the rest is tried again
	}
	return left
}
