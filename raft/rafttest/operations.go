package rafttest

import (
	"encoding/binary"

	"github.com/flotilla-kv/flotilla/raft"
)

// operations are what clients do, and the check that it is linearizable. All
// replicas pass through the same states (State Machine Safety), so an operation
// takes effect at an index: a write at its entry's, a read at the state it was
// answered from. The history is linearizable exactly if no operation takes
// effect before one that had ended when it began.
type operations struct {
	nextID  uint64
	pending map[uint64]*operation // reads by id
	writes  []*operation          // in order of proposal
	// effective is the highest index at which an ended operation took effect.
	effective raft.Index
	// namedAt is the epoch at which each replica that was added became a
	// member.
	namedAt map[raft.ReplicaID]uint64
}

type operation struct {
	id      uint64
	replica raft.ReplicaID
	began   raft.Index // effective, when it began
	at      position   // a write's entry
	index   raft.Index // a read's ReadIndex, once known
}

func (o *operations) forget(id raft.ReplicaID) {
	for k, op := range o.pending {
		if op.replica == id {
			delete(o.pending, k)
		}
	}
	kept := o.writes[:0]
	for _, op := range o.writes {
		if op.replica != id {
			kept = append(kept, op)
		}
	}
	o.writes = kept
}

// end notes that an operation took effect at index.
func (s *Sim) end(op *operation, index raft.Index, what string) {
	if index < op.began {
		s.fail(violated("Linearizability", "%s %d at replica %d takes effect at %d, but one that ended before it began did at %d", what, op.id, op.replica, index, op.began))
	}
	s.ops.effective = max(s.ops.effective, index)
}

// clientTurn begins one operation somewhere.
func (s *Sim) clientTurn() {
	if s.healed && s.marker.index != 0 {
		return
	}
	r := s.anyUp()
	if r == nil {
		return
	}
	switch k := s.rng.IntN(10); {
	case k < 5:
		for n := 1 + s.rng.IntN(s.profile.burst); n > 0; n-- {
			s.write(r)
		}
	case k < 8:
		s.read(r)
	default:
		s.leaseRead(r)
	}
	s.settle(r)
}

// anyUp is a running replica, the leader more often than not.
func (s *Sim) anyUp() *simReplica {
	var up []*simReplica
	for _, r := range s.replicas {
		if r.Up() && r.paused <= s.now {
			up = append(up, r)
			if r.Core.Role() == raft.Leader && s.rng.IntN(2) == 0 {
				return r
			}
		}
	}
	if len(up) == 0 {
		return nil
	}
	return up[s.rng.IntN(len(up))]
}

func (s *Sim) write(r *simReplica) {
	s.ops.nextID++
	data := make([]byte, 8+s.rng.IntN(40))
	binary.BigEndian.PutUint64(data, s.ops.nextID)
	index, term, err := r.Core.Propose(data)
	if err != nil {
		return
	}
	s.note("write", r.Member.Replica, uint64(index), uint64(term))
	s.ops.writes = append(s.ops.writes, &operation{id: s.ops.nextID, replica: r.Member.Replica, began: s.ops.effective, at: position{index, term}})
}

// appliedAt acknowledges the writes among entries, at the replica that took
// them in, and answers the reads that waited.
func (s *Sim) appliedAt(r *simReplica, entries []raft.Entry) {
	for i := range entries {
		at := position{entries[i].Index, entries[i].Term}
		kept := s.ops.writes[:0]
		for _, op := range s.ops.writes {
			switch {
			case op.replica != r.Member.Replica || op.at.index != at.index:
				kept = append(kept, op)
			case op.at == at:
				s.result.Writes++
				s.end(op, at.index, "write")
			}
		}
		s.ops.writes = kept
	}
	s.readable(r)
}

func (s *Sim) read(r *simReplica) {
	s.ops.nextID++
	id := s.ops.nextID
	if r.Core.ReadIndex(id) != nil {
		return
	}
	s.note("read", r.Member.Replica, id, 0)
	s.ops.pending[id] = &operation{id: id, replica: r.Member.Replica, began: s.ops.effective}
}

// answered takes the read states.
func (s *Sim) answered(r *simReplica) {
	for _, rs := range r.Reads {
		op := s.ops.pending[rs.ID]
		switch {
		case op == nil:
		case !rs.OK:
			delete(s.ops.pending, rs.ID)
		default:
			op.index = rs.Index
		}
	}
	r.Reads = nil
	s.readable(r)
}

// readable answers the reads whose index is applied, in order of id.
func (s *Sim) readable(r *simReplica) {
	var ready []*operation
	for _, op := range s.ops.pending {
		if op.replica == r.Member.Replica && op.index != 0 && op.index <= r.Machine.Applied {
			ready = append(ready, op)
		}
	}
	for _, op := range ready {
		delete(s.ops.pending, op.id)
		s.result.Reads++
		s.end(op, r.Machine.Applied, "read")
	}
}

// leaseRead reads without asking anybody, if the replica holds a lease and
// its clock is not behind.
func (s *Sim) leaseRead(r *simReplica) {
	if r.nextTick <= s.now {
		return
	}
	if index, ok := r.Core.LeaseRead(); ok && index <= r.Machine.Applied {
		s.ops.nextID++
		s.note("lease", r.Member.Replica, uint64(index), 0)
		s.result.LeaseRead++
		s.end(&operation{id: s.ops.nextID, replica: r.Member.Replica, began: s.ops.effective}, r.Machine.Applied, "lease read")
	}
}
