package raft

// EntryKind tells what an entry is for.
type EntryKind uint8

// The kinds of entries.
const (
	EntryNoop       EntryKind = iota // starts a term
	EntryCommand                     // the state machine's
	EntryMembership                  // Data is an encoded Membership, absolute, never a difference
)

// Entry is one position of the log. Data is never modified once the entry
// exists: core, log cache and transport share it.
type Entry struct {
	Index Index
	Term  Term
	Kind  EntryKind
	Data  []byte
}

// HardState is what must be durable before it is answered for (figure 2:
// currentTerm and votedFor). The commit index is not in it: it is never
// synced.
type HardState struct {
	Term Term
	Vote ReplicaID
}

// Member is one replica and the node it lives on.
type Member struct {
	Replica ReplicaID
	Node    NodeID
}

// Membership says who is in the group. Outside a joint phase Outgoing is
// empty; in it, decisions need a majority of Voters and one of Outgoing
// (thesis section 4.3). Learners get the log and do not count. All lists are
// sorted by replica. A membership takes effect when it is in the log and falls
// back if its entry is truncated.
type Membership struct {
	Epoch    uint64 // 0 for none; 1 for a group's first; each later entry adds 1, a recovery more
	Voters   []Member
	Outgoing []Member
	Learners []Member
	// Of a group that was recovered, which never hears again of those that it was
	// recovered from: all below Floor but the Survivor. See Recover.
	Floor, Survivor ReplicaID
}

// SnapshotMark names a state: everything through Index, whose entry had Term,
// with the membership as of Index.
type SnapshotMark struct {
	Index      Index
	Term       Term
	Membership Membership
}

// Write is what one Ready wants on disk. It is durable as a whole, after all
// earlier writes of the group.
type Write struct {
	Seq       uint64        // running number from 1; 0: nothing to write
	HardState *HardState    // nil: unchanged
	Reset     *SnapshotMark // if set, the log is emptied and begins after Reset.Index
	Entries   []Entry       // replace everything from Entries[0].Index on
}

// WriteAck says that the write Seq, and all before it, are durable. Last and
// LastTerm are the index and term of the write's last entry (0 if it had none)
// and must equal what was handed out.
type WriteAck struct {
	Seq      uint64
	Last     Index
	LastTerm Term
}

// ReadState answers a ReadIndex: the read with this ID is linearizable once
// Index is applied. Refused reads (leadership lost) have OK false.
type ReadState struct {
	ID    uint64
	Index Index
	OK    bool
}

// Role of a replica.
type Role uint8

// The roles; a learner's is told by the membership.
const (
	Follower Role = iota
	PreCandidate
	Candidate
	Leader
)

// Ready is what the core wants done.
type Ready struct {
	Write      Write
	Messages   []Message   // may be sent at once
	Committed  []Entry     // committed and durable here: apply in order
	ReadStates []ReadState // answers to ReadIndex
	// Snapshots names followers whose next entry is gone from the log: stream
	// them a snapshot, then report with SnapshotDone.
	Snapshots []Member
}

// LogReader is the durable log as the core reads it. The core never asks for
// what it has not been told is durable through Persisted, nor for what it
// keeps in memory. ErrCompacted is answered for an index below FirstIndex.
type LogReader interface {
	FirstIndex() Index // 1 behind what was compacted; 1 for a fresh log
	LastIndex() Index  // FirstIndex-1 if empty
	// Term of the entry at i; it also answers for FirstIndex-1.
	Term(i Index) (Term, error)
	// Entries returns [lo, hi), at least one, and no more than maxBytes beyond
	// the first.
	Entries(lo, hi Index, maxBytes int) ([]Entry, error)
}
