package raft

import "fmt"

// Recover makes this replica the only voter of its group, by nobody's decision
// but the caller's: the way on where so many of the voters are lost for good that
// no quorum will ever be again. What only the lost ones had is lost, though it was
// acknowledged; what this log holds is committed, though it may not have been. If
// it was cut that is overlooked too, and so is a promise to a lease.
//
// The caller answers for it that no other replica of the group is recovered, and
// that those it is recovered from are not served any more. They are not heard any
// more either: all but this one that are below floor, which is above every id that
// the group has given.
//
// epoch is that of the new membership. Repeated, it goes on with what has begun.
// ErrMembership if the group is beyond it, or if this replica is no member;
// ErrMembershipPending while a snapshot comes in.
func (r *Raft) Recover(epoch uint64, floor ReplicaID) error {
	now := r.memberships.current()
	me, known := now.Member(r.self)
	switch {
	case now.Epoch == epoch && now.Floor == floor && now.Survivor == r.self:
		if r.role == Follower && r.suspicion.on { // after a restart: no election comes by itself
			r.Wake()
			r.campaign(false)
			r.afterStep()
		}
		return nil
	case now.Epoch >= epoch || floor < now.Floor:
		return fmt.Errorf("%w: epoch %d and floor %d, it is at %d and %d", ErrMembership, epoch, floor, now.Epoch, now.Floor)
	case !known || floor <= r.self:
		return fmt.Errorf("%w: replica %d is no member, or not below %d", ErrMembership, r.self, floor)
	case r.disk.reset != nil:
		return ErrMembershipPending
	}
	r.Wake()
	r.becomeFollower(r.currentTerm, 0)
	next := Membership{Epoch: epoch, Voters: []Member{me}, Floor: floor, Survivor: r.self}
	e := Entry{Index: r.log.last + 1, Term: r.currentTerm + 1, Kind: EntryMembership, Data: next.Encode()}
	r.memberships.push(IndexedMembership{Index: e.Index, Term: e.Term, Membership: next})
	r.campaign(false) // its own vote is enough by the new membership
	r.log.append(e)
	r.afterStep()
	return nil
}

// recovering tells whether this replica alone is its group by a recovery. Whether
// its log was cut matters all the same, unless Recover says otherwise.
func (r *Raft) recovering() bool {
	now := r.memberships.current()
	return now.Survivor == r.self && len(now.Voters) == 1 && now.Voters[0].Replica == r.self
}
