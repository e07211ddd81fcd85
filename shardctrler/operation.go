package shardctrler

import (
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Operation is a decision of the planner, with its reason. It is committed in
// the config group's log, which gives it its ID, before anything is sent to
// anybody. Some take effect by being committed; the others stay pending until
// the leader of their group has carried them out or has refused them.
type Operation struct {
	ID     OperationID // 0 until committed
	At     int64       // when it was committed, unix milliseconds
	Reason string
	Body   Body
	// Decision it is of; 0 until committed.
	Decision DecisionID
}

// Body is the closed set of operations: CreateGroups, SetNodeState, Birth,
// TransferLeader, ChangeMembership, StartMove, DestroyGroup, SetPreferred,
// Reassign, NoteEffect and Recover.
type Body interface {
	// kind is the word that events use.
	kind() string
	// onGroup is the group whose leader carries it out; false: it takes effect
	// by being committed.
	onGroup() (raft.GroupID, bool)
}

// CreateGroups makes the first groups and the first config. It takes effect
// by being committed.
type CreateGroups struct {
	Groups []NewGroup
	// Owners is the first assignment, indexed by shard. It names groups by
	// their place in Groups: 0 is the first.
	Owners []uint64
}

// NewGroup is a group to be made. Its replicas are numbered from 1 in the
// order of Nodes.
type NewGroup struct {
	Nodes     []raft.NodeID
	Preferred raft.NodeID
}

// SetNodeState records what was observed or decided of a node. It takes
// effect by being committed.
type SetNodeState struct {
	Node  raft.NodeID
	State shardmap.NodeState
}

// Birth tells a group of init which shards it has.
type Birth struct {
	Group      raft.GroupID
	Generation shardmap.Generation
}

// TransferLeader asks a group's leader to hand over to a node.
type TransferLeader struct {
	Group raft.GroupID
	Epoch uint64 // of the membership it was planned for
	To    raft.NodeID
}

// ChangeMembership gives a group a new membership, by one joint step if the
// voters change. A member with replica 0 is new and is numbered when the
// operation is committed.
type ChangeMembership struct {
	Group   raft.GroupID
	Epoch   uint64 // of the membership it was planned for
	Members []shardmap.Member
	// Added is how many of the members are new, once they are numbered: those
	// with the highest numbers.
	Added int
}

func (CreateGroups) kind() string     { return "create-groups" }
func (SetNodeState) kind() string     { return "node-state" }
func (Birth) kind() string            { return "birth" }
func (TransferLeader) kind() string   { return "transfer-leader" }
func (ChangeMembership) kind() string { return "change-membership" }

func (CreateGroups) onGroup() (raft.GroupID, bool)       { return 0, false }
func (SetNodeState) onGroup() (raft.GroupID, bool)       { return 0, false }
func (b Birth) onGroup() (raft.GroupID, bool)            { return b.Group, true }
func (b TransferLeader) onGroup() (raft.GroupID, bool)   { return b.Group, true }
func (b ChangeMembership) onGroup() (raft.GroupID, bool) { return b.Group, true }

// group is the group whose leader carries the operation out.
func (o Operation) group() (raft.GroupID, bool) { return o.Body.onGroup() }
