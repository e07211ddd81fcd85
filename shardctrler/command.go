package shardctrler

import (
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Command is what an entry of the config group's log says: Init, Register,
// Commit, Finish, Observe or Prefer, of moves OrderMove, CancelMove or
// ReportMove, and of what there is AddGroups, RemoveGroup, DrainNode or
// RemoveNode.
type Command interface{ isCommand() }

// Init makes the cluster: its id, its policy, its first node and the config
// group with that node's replica. It is refused with ErrInitialised when there
// is a cluster already. Answer: Registered.
type Init struct {
	ClusterID string
	Shards    uint64
	Replicas  uint64
	Groups    uint64
	// ReplaceAfter as in Policy.
	ReplaceAfter uint64
	First        Registration
}

// Register gives a node its id, or, to a random id that has one, the same
// again, and takes over the addresses it names. Answer: Registered.
type Register struct {
	ClusterID string      // that the node believes to belong to; "": none yet
	Node      raft.NodeID // that it believes to be; 0: none yet
	Registration
}

// Registered answers Init and Register.
type Registered struct {
	ClusterID string
	Node      raft.NodeID
}

// Commit makes operations of what was planned. Each is checked against the
// state as it is by then, and refused by itself if it no longer fits, so that
// a plan that was made twice, or by a leader that no longer is, does nothing
// twice. Answer: Committed.
type Commit struct {
	Operations []Operation
	// Applied is the entry as of which the state was that the plan was made from. 0:
	// that is not said, and no decision is kept.
	Applied raft.Index
	Scene   []byte // packScene's
}

// Committed answers Commit: one error for each operation, nil if accepted.
type Committed struct{ Refused []error }

// Finish ends a pending operation: its group's leader has carried it out
// (Done) or it can never be carried out. An operation that is not pending any
// more is left alone. Answer: nil.
type Finish struct {
	Operation OperationID
	Done      bool
	Detail    string
}

// Observe reports a group's membership as of an epoch, never of a joint phase.
// It does nothing unless the epoch is news. Answer: nil.
type Observe struct {
	Group   raft.GroupID
	Epoch   uint64
	Members []shardmap.Member
}

// Prefer sets the node that should lead a group: an operator asked for it.
// Answer: nil.
type Prefer struct {
	Group raft.GroupID
	Node  raft.NodeID
}

func (Init) isCommand()     {}
func (Register) isCommand() {}
func (Commit) isCommand()   {}
func (Finish) isCommand()   {}
func (Observe) isCommand()  {}
func (Prefer) isCommand()   {}
