package rafttest

import (
	"fmt"

	"github.com/flotilla-kv/flotilla/raft"
)

// Machine is a state machine: it has applied everything through Applied. Its
// state is the hash of all entries it has applied, so that two that differ in
// anything show it.
type Machine struct {
	Applied    raft.Index
	Term       raft.Term
	Membership raft.Membership
	Chain      uint64
}

// apply takes the next entry.
func (m *Machine) apply(e *raft.Entry) error {
	if e.Index != m.Applied+1 {
		return fmt.Errorf("entry %d is applied behind %d", e.Index, m.Applied)
	}
	if e.Kind == raft.EntryMembership {
		members, err := raft.DecodeMembership(e.Data)
		if err != nil {
			return err
		}
		m.Membership = members
	}
	m.Applied, m.Term, m.Chain = e.Index, e.Term, chain(m.Chain, e)
	return nil
}

func (m *Machine) copy() *Machine {
	c := *m
	return &c
}

func (m *Machine) mark() raft.SnapshotMark {
	return raft.SnapshotMark{Index: m.Applied, Term: m.Term, Membership: m.Membership}
}

// Replay applies entries, as a replica would; for tests that make up a state.
func (m *Machine) Replay(es []raft.Entry) {
	for i := range es {
		if err := m.apply(&es[i]); err != nil {
			panic(err)
		}
	}
}
