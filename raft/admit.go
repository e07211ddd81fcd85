package raft

import (
	"fmt"
	"math"
)

// A term grows by one an election. maxTermJump is more elections than can
// happen between two messages, and maxTerm leaves room above: a damaged or
// hostile peer must not be able to exhaust the terms of a group.
const (
	maxTermJump Term = 1 << 32
	maxTerm     Term = math.MaxUint64 / 2
	maxIndex         = Index(math.MaxUint64 / 2)
)

// admit refuses what is not for this replica or not possible, before anything
// changes.
//
// Requests of a replica that is not in our membership are let through: it may
// have been added by an entry that we do not have yet, and the thesis (section
// 4.1) asks to hear such leaders and candidates. Replies count only for
// members, which their handlers see to. A group that was recovered hears no more
// of those that it was recovered from.
func (r *Raft) admit(m *Message) error {
	switch {
	case m.Group != r.group:
		return fmt.Errorf("%w: %d, this is %d", ErrWrongGroup, m.Group, r.group)
	case m.To != r.self:
		return fmt.Errorf("%w: %d, this is %d", ErrWrongReplica, m.To, r.self)
	case m.From == 0 || m.From == r.self:
		return fmt.Errorf("%w: message from %d to %d", ErrUnknownReplica, m.From, m.To)
	case r.memberships.current().lost(m.From):
		return fmt.Errorf("%w: replica %d is of before the group was recovered", ErrUnknownReplica, m.From)
	case m.Term == 0 || m.Term > maxTerm || m.Term > r.currentTerm && m.Term-r.currentTerm > maxTermJump:
		return fmt.Errorf("%w: %d from replica %d, current is %d", ErrTermJump, m.Term, m.From, r.currentTerm)
	}
	if err := admitBody(m); err != nil {
		return fmt.Errorf("%w: %w from replica %d", ErrBadMessage, err, m.From)
	}
	return nil
}

func admitBody(m *Message) error {
	switch b := m.Body.(type) {
	case *RequestVote:
		return refuseNil(b == nil)
	case *RequestVoteReply:
		return refuseNil(b == nil)
	case *AppendEntries:
		if b == nil {
			return refuseNil(true)
		}
		return admitEntries(m.Term, b)
	case *AppendEntriesReply:
		return refuseNil(b == nil)
	case *InstallSnapshot:
		if b == nil {
			return refuseNil(true)
		}
		return admitSnapshot(m.Term, &b.Snapshot)
	case *TimeoutNow:
		return refuseNil(b == nil)
	case *ReadIndexRequest:
		return refuseNil(b == nil)
	case *ReadIndexReply:
		return refuseNil(b == nil)
	}
	return fmt.Errorf("body %T", m.Body)
}

func refuseNil(isNil bool) error {
	if isNil {
		return fmt.Errorf("empty body")
	}
	return nil
}

// admitEntries checks that the entries continue PrevLogIndex without a gap,
// with terms that never fall and never pass the leader's, and that each can be
// understood: an entry of an unknown kind must not be acknowledged, for it
// could not be applied.
func admitEntries(term Term, a *AppendEntries) error {
	if a.PrevLogIndex > maxIndex || a.PrevLogTerm > term || (a.PrevLogIndex == 0) != (a.PrevLogTerm == 0) {
		return fmt.Errorf("entries behind %d of term %d in term %d", a.PrevLogIndex, a.PrevLogTerm, term)
	}
	before := a.PrevLogTerm
	for i := range a.Entries {
		e := &a.Entries[i]
		switch {
		case e.Index != a.PrevLogIndex+1+Index(i):
			return fmt.Errorf("entry %d at place %d behind %d", e.Index, i, a.PrevLogIndex)
		case e.Term == 0 || e.Term < before || e.Term > term:
			return fmt.Errorf("entry %d of term %d behind term %d in term %d", e.Index, e.Term, before, term)
		case e.Kind > EntryMembership:
			return fmt.Errorf("entry %d of unknown kind %d", e.Index, e.Kind)
		case e.Kind == EntryMembership:
			if _, err := decodeEntryMembership(e); err != nil {
				return err
			}
		}
		before = e.Term
	}
	return nil
}

func admitSnapshot(term Term, s *SnapshotMark) error {
	if s.Index == 0 || s.Index > maxIndex || s.Term == 0 || s.Term > term || s.Membership.Epoch == 0 {
		return fmt.Errorf("snapshot at %d of term %d, epoch %d, in term %d", s.Index, s.Term, s.Membership.Epoch, term)
	}
	return s.Membership.validate()
}

// decodeEntryMembership decodes a membership entry, which must name members.
func decodeEntryMembership(e *Entry) (Membership, error) {
	m, err := DecodeMembership(e.Data)
	if err == nil && m.Epoch == 0 {
		err = fmt.Errorf("raft: membership entry without an epoch")
	}
	if err != nil {
		return Membership{}, fmt.Errorf("entry %d: %w", e.Index, err)
	}
	return m, nil
}
