package multiraft

import (
	"fmt"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/logstore"
)

// Recorded lists the replicas that the log store knows: those that ran here
// before. After Open the owner starts them again, unless they are lost.
func (h *Host) Recorded() []logstore.Record { return h.opts.Log.Replicas() }

// Start runs a replica. It is recorded durably before that; a ReplicaID that
// is not above all that the group ever had here, and is not the present one,
// is refused (logstore.ErrOldReplica), and so is a lost one
// (logstore.ErrVotesLost). Of a replica that runs already it
// changes nothing; another one of the group is ErrRunning.
func (h *Host) Start(spec ReplicaSpec) error {
	key := raft.ReplicaKey{Group: spec.Group, Replica: spec.Replica}
	if err := h.claim(spec.Group); err != nil {
		return err
	}
	defer h.unclaim(spec.Group)
	if r, ok := h.find(spec.Group); ok {
		if r.key == key {
			return nil
		}
		return fmt.Errorf("start replica %d of group %d: %w: replica %d", key.Replica, key.Group, ErrRunning, r.key.Replica)
	}
	r, err := h.prepare(key, spec)
	if err != nil {
		return fmt.Errorf("start replica %d of group %d: %w", key.Replica, key.Group, err)
	}
	if !r.worker.do(func() { r.worker.add(r) }) {
		return ErrStopped
	}
	h.replicas.Store(key.Group, r)
	h.log.Info("replica started", "group", key.Group, "replica", key.Replica, "applied", r.apply.appliedIndex())
	return nil
}

// claim keeps two Starts or Removes of a group apart.
func (h *Host) claim(g raft.GroupID) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.closed || h.cause != nil:
		return ErrStopped
	case h.claims[g]:
		return fmt.Errorf("group %d: %w: it is being started or removed", g, ErrRunning)
	}
	h.claims[g] = true
	return nil
}

func (h *Host) unclaim(g raft.GroupID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.claims, g)
}

// prepare brings together what the stores know of the replica.
func (h *Host) prepare(key raft.ReplicaKey, spec ReplicaSpec) (*replica, error) {
	first, err := h.record(key, spec.First)
	if err != nil {
		return nil, err
	}
	stored, err := h.opts.Log.Load(key)
	if err != nil {
		return nil, err
	}
	state := h.opts.States.Replica(key)
	applied, term, membership, err := state.Applied()
	if err != nil {
		return nil, err
	}
	if applied == 0 {
		membership = first
	}
	r := &replica{key: key, worker: h.workerOf(key.Group), spec: spec, state: state, appliedMembership: membership}
	r.awakeAt, r.log = -1, h.opts.Log.Reader(key)
	r.suspect = stored.Suspect
	_, r.wasMember = membership.Member(key.Replica)
	r.apply.init(applied)
	r.outcomes.applied = applied
	r.core, err = raft.New(raft.Config{
		Group: key.Group, Replica: key.Replica,
		Log: r.log, HardState: stored.HardState,
		Applied: applied, AppliedTerm: term, Membership: membership,
		LogMemberships: stored.Memberships,
		Suspect:        stored.Suspect,
		Rand:           h.randN,
		Options:        h.coreOptions(spec),
	})
	if err != nil {
		return nil, err
	}
	r.published.Store(&LeaderView{})
	r.learnMembers()
	r.machine = spec.NewStateMachine(state)
	if err := r.machine.Restored(state); err != nil {
		return nil, err
	}
	r.machine.Committed(applied)
	return r, nil
}

// record makes the replica's record durable, unless it is known from the start
// on, and returns the first membership that counts.
func (h *Host) record(key raft.ReplicaKey, first raft.Membership) (raft.Membership, error) {
	h.mu.Lock()
	recorded, ok := h.recorded[key]
	h.mu.Unlock()
	if ok {
		return recorded, nil
	}
	if err := h.opts.Log.Create(key, first); err != nil {
		return raft.Membership{}, err
	}
	h.mu.Lock()
	h.recorded[key] = first
	h.mu.Unlock()
	return first, nil
}

func (h *Host) coreOptions(spec ReplicaSpec) raft.Options {
	t := h.opts.Timing
	return raft.Options{
		HeartbeatTicks:    t.ticks(t.Heartbeat),
		ElectionTicks:     t.ticks(t.Election),
		MaxAppendBytes:    h.opts.Limits.AppendBytes,
		MaxUnappliedBytes: h.opts.Limits.UnappliedBytes,
		LeaseReads:        spec.LeaseReads,
	}
}

// add takes a new replica in; it stands for election when its rank's turn
// comes.
func (w *worker) add(r *replica) {
	w.groups[r.key.Group] = r
	r.standLater(0, startGap)
	w.touch(r)
}

// Remove ends a replica and deletes all it has stored; its ReplicaID stays
// known for ever. What waits for it ends with ErrUnknown or ErrStopped. A
// replica that does not run is removed all the same.
func (h *Host) Remove(key raft.ReplicaKey) error {
	if err := h.claim(key.Group); err != nil {
		return err
	}
	defer h.unclaim(key.Group)
	if r, ok := h.find(key.Group); ok && r.key == key {
		h.replicas.Delete(key.Group)
		if !r.worker.do(func() { r.worker.drop(r) }) {
			return ErrStopped
		}
		h.sends.forget(r)
		r.apply.close()
	}
	// The record goes first: state without one is cleaned up at the next
	// start, a log without its state would be taken for cut.
	h.mu.Lock()
	delete(h.recorded, key)
	h.mu.Unlock()
	if err := h.opts.Log.Remove(key); err != nil {
		return fmt.Errorf("remove replica %d of group %d: %w", key.Replica, key.Group, err)
	}
	if err := h.opts.States.Replica(key).Destroy(); err != nil {
		return fmt.Errorf("remove replica %d of group %d: %w", key.Replica, key.Group, err)
	}
	h.log.Info("replica removed", "group", key.Group, "replica", key.Replica)
	return nil
}

// drop lets go of a replica.
func (w *worker) drop(r *replica) {
	delete(w.groups, r.key.Group)
	r.end()
}
