package rafttest

import (
	"fmt"

	"github.com/flotilla-kv/flotilla/raft"
)

// rules are what the core does so that the properties of the paper hold. Broken,
// one shows in its consequences in one seed of thousands; so each is checked
// where it is followed.
type rules struct {
	votes     map[campaign]map[raft.ReplicaID]bool // who has granted one
	transfers map[campaign]bool                    // begun by a TimeoutNow
	joint     map[raft.ReplicaID]raft.Index        // of the joint membership that a log ends with
}

// campaign is a candidate in a term.
type campaign struct {
	term      raft.Term
	candidate raft.ReplicaID
}

func newRules() *rules {
	return &rules{
		votes:     make(map[campaign]map[raft.ReplicaID]bool),
		transfers: make(map[campaign]bool),
		joint:     make(map[raft.ReplicaID]raft.Index),
	}
}

// sent checks a message against the rules for leases and promises.
func (c *rules) sent(r *Replica, m *raft.Message) error {
	if c == nil {
		return nil
	}
	switch b := m.Body.(type) {
	case *raft.TimeoutNow:
		if _, held := r.Core.LeaseRead(); held {
			return fmt.Errorf("lease: leader %d hands over in term %d and keeps its lease", r.Member.Replica, m.Term)
		}
	case *raft.RequestVote:
		if !b.PreVote && b.Transfer {
			c.transfers[campaign{m.Term, m.From}] = true
		}
	case *raft.RequestVoteReply:
		if b.PreVote || !b.Granted {
			return nil
		}
		at := campaign{m.Term, m.To}
		if c.votes[at] == nil {
			c.votes[at] = make(map[raft.ReplicaID]bool)
		}
		c.votes[at][m.From] = true
		if r.options.LeaseReads && r.Ticks < r.options.ElectionTicks && !c.transfers[at] {
			return fmt.Errorf("promise: replica %d votes in term %d, %d ticks after its start", r.Member.Replica, m.Term, r.Ticks)
		}
	}
	return nil
}

// elected: by each majority that there is.
func (c *rules) elected(r *Replica) error {
	if c == nil {
		return nil
	}
	votes := c.votes[campaign{r.Core.Term(), r.Member.Replica}]
	members := r.Core.Membership()
	for _, list := range [][]raft.Member{members.Voters, members.Outgoing} {
		n := 0
		for _, m := range list {
			if votes[m.Replica] || m.Replica == r.Member.Replica {
				n++
			}
		}
		if len(list) > 0 && n <= len(list)/2 {
			return fmt.Errorf("election: leader %d of term %d has the votes of %d of %d voters", r.Member.Replica, r.Core.Term(), n, len(list))
		}
	}
	return nil
}

// written: a leader changes no membership before it has committed in its term,
// and ends a joint one when that is committed.
func (c *rules) written(r *Replica, w *raft.Write) error {
	if c == nil {
		return nil
	}
	id := r.Member.Replica
	if len(w.Entries) > 0 && w.Entries[0].Index <= c.joint[id] || w.Reset != nil {
		delete(c.joint, id)
	}
	for i := range w.Entries {
		e := &w.Entries[i]
		if e.Kind != raft.EntryMembership {
			continue
		}
		m, err := raft.DecodeMembership(e.Data)
		if err != nil {
			return err
		}
		joint := c.joint[id]
		delete(c.joint, id)
		if m.Joint() {
			c.joint[id] = e.Index
		}
		if r.Core.Role() != raft.Leader || e.Term != r.Core.Term() {
			continue
		}
		commit := r.Core.CommitIndex()
		if at := commit - r.view.base; commit > r.view.base && r.view.terms[at-1] != e.Term {
			return fmt.Errorf("membership: leader %d of term %d proposes one at %d, and has committed %d of term %d", id, e.Term, e.Index, commit, r.view.terms[at-1])
		}
		if joint > commit {
			return fmt.Errorf("membership: leader %d of term %d ends the joint one at %d, and has committed %d", id, e.Term, joint, commit)
		}
	}
	return nil
}

// trusted: a replica whose log was cut has again what was committed by then.
func (c *rules) trusted(r *Replica) error {
	if c == nil {
		return nil
	}
	if last := r.Disk.LastIndex(); last < r.Owed {
		return fmt.Errorf("suspect: replica %d is trusted, its disk ends at %d and %d were committed when it was cut", r.Member.Replica, last, r.Owed)
	}
	return nil
}
