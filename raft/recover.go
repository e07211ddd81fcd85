package raft

import "fmt"

// Recover makes this replica the only voter of its group, by nobody's decision
// but the caller's: the way on where so many of the voters are lost for good that
// no quorum will ever be again. What only the lost ones had is lost, though it was
// acknowledged; what this log holds is committed, though it may not have been.
//
// The caller answers for it that no other replica of the group is recovered, and
// that those it is recovered from are not served any more. They are not heard any
// more either: all that are not members and are below floor, which is above every
// id that the group has given.
//
// epoch is that of the new membership. If the group is at it already nothing
// happens. ErrMembership if it is beyond it, or if this replica is no member;
// ErrMembershipPending while a snapshot comes in.
func (r *Raft) Recover(epoch uint64, floor ReplicaID) error {
	now := r.memberships.current()
	me, known := now.Member(r.self)
	switch {
	case now.Epoch == epoch && now.Floor == floor:
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
	r.suspicion = suspicion{} // who could make it whole is lost
	next := Membership{Epoch: epoch, Voters: []Member{me}, Floor: floor}
	e := Entry{Index: r.log.last + 1, Term: r.currentTerm + 1, Kind: EntryMembership, Data: next.Encode()}
	r.memberships.push(IndexedMembership{Index: e.Index, Term: e.Term, Membership: next})
	r.campaign(false) // its own vote is enough by the new membership
	r.log.append(e)
	r.afterStep()
	return nil
}
