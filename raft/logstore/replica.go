package logstore

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/flotilla-kv/flotilla/raft"
)

// Record says that a replica exists on this node.
type Record struct {
	ID      raft.ReplicaKey
	First   raft.Membership // the group's first membership if the replica was born with it; else Epoch 0
	Suspect bool
	Lost    bool // see Store.Lost: it must not run
}

// Identity says who this node is. It is written as JSON.
type Identity struct {
	ClusterID string
	Node      raft.NodeID
	RandomID  string // chosen before registration, so that a repeated Register gives the same Node
	Name      string
	LastNodes []byte // the last known node table, opaque here
}

// Identity is what was last set; false if nothing was.
func (s *Store) Identity() (Identity, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.identity, s.hasIdentity
}

// SetIdentity replaces the identity durably.
func (s *Store) SetIdentity(identity Identity) error {
	return s.change(func(*turn) error {
		s.frame.add(recordIdentity, encodeIdentity(identity))
		s.mu.Lock()
		defer s.mu.Unlock()
		s.identity, s.hasIdentity = identity, true
		return nil
	})
}

// Create records durably that the replica exists, before it starts. first is
// the group's first membership for a replica of a new group; with Epoch 0 the
// replica starts empty. Creating the replica that exists does nothing. An id
// that is not higher than every earlier one of its group is refused with
// ErrOldReplica: a replica that forgot its log must not come back. For the same
// reason all are refused with ErrVotesLost if it is not known which there were.
func (s *Store) Create(id raft.ReplicaKey, first raft.Membership) error {
	if _, exists := s.group(id); s.lost && !exists {
		return fmt.Errorf("create replica %d of group %d: %w", id.Replica, id.Group, ErrVotesLost)
	}
	return s.change(func(t *turn) error {
		if _, exists := s.group(id); exists {
			return nil
		}
		if highest := s.highest[id.Group]; id.Replica <= highest {
			return fmt.Errorf("create replica %d of group %d, which had %d: %w", id.Replica, id.Group, highest, ErrOldReplica)
		}
		record := Record{ID: id, First: first}
		s.highest[id.Group] = id.Replica
		s.frame.add(recordReplica, encodeID(id), encodeReplica(record))
		t.votes = append(t.votes, voteRecord{seq: t.seq, kind: voteCreated, id: id, payload: first.Encode()})
		s.mu.Lock()
		defer s.mu.Unlock()
		s.groups[id] = &group{id: id, record: record}
		return nil
	})
}

// Remove deletes the replica's log and record durably. Its id stays used. What
// does not exist is removed already.
func (s *Store) Remove(id raft.ReplicaKey) error {
	return s.change(func(t *turn) error {
		g, exists := s.group(id)
		if !exists {
			return nil
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		s.frame.add(recordRemoved, encodeID(id))
		t.votes = append(t.votes, voteRecord{seq: t.seq, kind: voteRemoved, id: id})
		s.tails.left(g.reset(raft.SnapshotMark{Index: g.last, Term: g.lastTerm}))
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.groups, id)
		return nil
	})
}

// Replicas lists the replicas that exist, in the order of their ids.
func (s *Store) Replicas() []Record {
	var records []Record
	for _, g := range s.all() {
		g.mu.RLock()
		record := g.record
		g.mu.RUnlock()
		record.Lost = s.lost
		records = append(records, record)
	}
	slices.SortFunc(records, compareRecords)
	return records
}

func compareRecords(a, b Record) int {
	return cmp.Or(cmp.Compare(a.ID.Group, b.ID.Group), cmp.Compare(a.ID.Replica, b.ID.Replica))
}

// MarkSuspect records durably that the log may have lost its end, as Open does
// by itself when it notices: for whoever finds other proof, such as state
// machines that are ahead of the log. All replicas are suspect from then on.
func (s *Store) MarkSuspect() error {
	return s.change(func(*turn) error {
		for _, g := range s.all() {
			s.setSuspect(g, true)
		}
		return nil
	})
}

// ClearSuspect records durably that a leader has caught the replica up.
func (s *Store) ClearSuspect(id raft.ReplicaKey) error {
	return s.change(func(*turn) error {
		g, exists := s.group(id)
		if !exists {
			return fmt.Errorf("group %d replica %d: %w", id.Group, id.Replica, ErrNoReplica)
		}
		s.setSuspect(g, false)
		return nil
	})
}

func (s *Store) setSuspect(g *group, suspect bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.record.Suspect = suspect
	s.frame.add(recordReplica, encodeID(g.id), encodeReplica(g.record))
}

// controlBytes is about what a change of the store's own records takes.
const controlBytes = 1 << 10

// change runs control in the writer's next turn and waits until that is
// durable. If control fails it has changed nothing.
func (s *Store) change(control func(*turn) error) error {
	result := make(chan error, 1)
	if err := s.queue.push(request{control: control, bytes: controlBytes, done: func(err error) { result <- err }}); err != nil {
		return err
	}
	return <-result
}
