package rafttest

import (
	"fmt"

	"github.com/flotilla-kv/flotilla/raft"
)

// Replica is one core with its disk and state machine, driven by hand. Core is
// nil while it is down.
type Replica struct {
	Member  raft.Member
	Core    *raft.Raft
	Disk    *Disk
	Machine *Machine
	// Suspect outlives restarts, as the store's note does, until the core
	// trusts its log again.
	Suspect bool
	// Owed is what was committed when its log was last cut.
	Owed raft.Index
	// Ticks since the start.
	Ticks int

	// What Ready handed out and nobody has taken yet.
	Outbox    []raft.Message
	Reads     []raft.ReadState
	Snapshots []raft.Member
	toApply   []raft.Entry

	view    view
	options raft.Options
	checker *Checker
}

// Group is the group that all replicas of this package are of.
const Group raft.GroupID = 7

// NewReplica is down, with an empty disk.
func NewReplica(m raft.Member, first raft.Membership, c *Checker) *Replica {
	return &Replica{Member: m, Disk: newDisk(first, c.chainOf), checker: c}
}

// Start opens the replica from its disk.
func (r *Replica) Start(options raft.Options, random func(int) int) error {
	r.Machine = r.Disk.Flushed.copy()
	core, err := raft.New(raft.Config{
		Group: Group, Replica: r.Member.Replica,
		Log: r.Disk, HardState: r.Disk.Hard,
		Applied: r.Machine.Applied, AppliedTerm: r.Machine.Term, Membership: r.Machine.Membership,
		LogMemberships: r.Disk.memberships(),
		Suspect:        r.Suspect, Rand: random, Options: options,
	})
	if err != nil {
		return err
	}
	r.Core, r.options, r.Ticks = core, options, 0
	r.view.open(r.Disk)
	return nil
}

// Crash stops the replica; of its unsynced writes the oldest keep survive.
func (r *Replica) Crash(keep int) {
	r.Core, r.Machine = nil, nil
	r.Outbox, r.Reads, r.Snapshots, r.toApply = nil, nil, nil, nil
	r.Disk.Crash(keep)
	r.checker.crashed(r)
}

// Up tells whether the replica runs.
func (r *Replica) Up() bool { return r.Core != nil }

// Unsynced is how many writes wait for a sync.
func (r *Replica) Unsynced() int { return len(r.Disk.waiting) }

// Unapplied is how many entries wait to be applied.
func (r *Replica) Unapplied() int { return len(r.toApply) }

// Turn takes out all that the core has ready and checks every property.
func (r *Replica) Turn() error {
	for r.Core.HasReady() {
		rd := r.Core.Ready()
		if rd.Write.Seq != 0 {
			r.Disk.waiting = append(r.Disk.waiting, rd.Write)
			if err := r.checker.written(r, &rd.Write); err != nil {
				return err
			}
		}
		for i := range rd.Messages {
			if err := r.checker.sent(r, &rd.Messages[i]); err != nil {
				return err
			}
		}
		for i := range rd.Committed {
			if err := r.checker.handedOut(r, &rd.Committed[i]); err != nil {
				return err
			}
		}
		r.Outbox = append(r.Outbox, rd.Messages...)
		r.Reads = append(r.Reads, rd.ReadStates...)
		r.Snapshots = append(r.Snapshots, rd.Snapshots...)
		r.toApply = append(r.toApply, rd.Committed...)
	}
	if r.Suspect && !r.Core.Suspect() {
		if err := r.checker.rules.trusted(r); err != nil {
			return err
		}
	}
	r.Suspect = r.Core.Suspect()
	return r.checker.stepped(r)
}

// Persist syncs the oldest n writes and tells the core.
func (r *Replica) Persist(n int) error {
	if n == 0 {
		return nil
	}
	r.Core.Persisted(r.Disk.Sync(n))
	return r.Turn()
}

// Apply applies the next n entries and tells the core.
func (r *Replica) Apply(n int) ([]raft.Entry, error) {
	done := r.toApply[:n]
	r.toApply = r.toApply[n:]
	for i := range done {
		if err := r.Machine.apply(&done[i]); err != nil {
			return nil, fmt.Errorf("replica %d: %w", r.Member.Replica, err)
		}
		if err := r.checker.applied(r); err != nil {
			return nil, err
		}
	}
	r.Core.Applied(r.Machine.Applied)
	return done, r.Turn()
}

// Flush makes the state machine durable as it is.
func (r *Replica) Flush() { r.Disk.Flushed = r.Machine.copy() }

// Install puts a snapshot in place, durably, and then tells the core; with
// crash it dies in between. One that is not wanted is dropped.
func (r *Replica) Install(m raft.Message, image *Machine, crash bool) error {
	if !r.Core.WantsSnapshot(m.From, m.Term, image.Applied) {
		return nil
	}
	r.Machine = image.copy()
	r.Flush()
	r.toApply = nil
	if crash {
		r.Crash(0)
		return nil
	}
	if err := r.Core.Step(m); err != nil {
		return err
	}
	return r.Turn()
}

// Stream is a snapshot of what the replica has applied, and the message that
// goes with it.
func (r *Replica) Stream(to raft.ReplicaID) (*Machine, raft.Message) {
	image := r.Machine.copy()
	return image, raft.Message{
		Group: Group, From: r.Member.Replica, To: to, Term: r.Core.Term(),
		Body: &raft.InstallSnapshot{Snapshot: image.mark()},
	}
}
