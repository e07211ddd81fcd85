package raft

// NodeID names a process with its data dir. The controller gives it at
// registration; it is kept for ever and never reused. 0 means unknown.
type NodeID uint64

// GroupID names a Raft group. 1 is the config group, replica groups start at
// 2; 0 means unassigned. Never reused.
type GroupID uint64

// ReplicaID names one member of a group. Never reused: a node that returns to
// a group is a new replica. 0 means none.
type ReplicaID uint64

// Term is a Raft term (section 5.1 of the paper); 0 is before the first.
type Term uint64

// Index is a position in a group's log; the first entry has index 1.
type Index uint64

// ConfigGroup is the group that holds the controller's state.
const ConfigGroup GroupID = 1

// ReplicaKey names a replica within a node: what the stores and the host know
// it by.
type ReplicaKey struct {
	Group   GroupID
	Replica ReplicaID
}
