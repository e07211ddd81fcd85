package shardmap

import (
	"github.com/flotilla-kv/flotilla/raft"
)

// Map says who serves each shard as of a revision. It is immutable once
// published: a change makes a new one.
type Map struct {
	ClusterID string
	// Revision is the config group's applied index as of which this holds.
	Revision uint64
	Config   ConfigNum
	Shards   []Assignment // indexed by ShardID; its length is N
	Groups   []Group      // ascending by ID
	Nodes    []Node       // ascending by ID
}

// Assignment is one shard's owner.
type Assignment struct {
	Group      raft.GroupID // 0: nobody yet
	Generation Generation
}

// Group is a replica group and where its replicas are.
type Group struct {
	ID      raft.GroupID
	Members []Member
	// Preferred is the node that should lead, 0 if none. A hint.
	Preferred raft.NodeID
	// Epoch of the membership that the controller last heard of.
	Epoch uint64
}

// Member is one replica of a group.
type Member struct {
	Replica raft.ReplicaID
	Node    raft.NodeID
	Learner bool
	// First: it belongs to the group's first membership and starts with it;
	// any other replica starts empty.
	First bool
	// Gone: the replica was given up, and the group has it for a member all the
	// same. Its node may have deleted it, and starts it never again.
	Gone bool
}

// Node is a registered node's addresses.
type Node struct {
	ID         raft.NodeID
	Name       string
	Zone       string
	State      NodeState
	Addr       string // gRPC, host:port
	GossipAddr string
	RespAddr   string
	HTTPAddr   string
}

// NodeState is what the controller holds of a node.
type NodeState uint8

// The states of a node. Down is an observation, the others are decisions.
const (
	NodeUp NodeState = iota
	NodeDraining
	NodeDown
	NodeRemoved
)

// String is the word that status prints.
func (s NodeState) String() string {
	switch s {
	case NodeUp:
		return "up"
	case NodeDraining:
		return "draining"
	case NodeDown:
		return "down"
	case NodeRemoved:
		return "removed"
	}
	return "unknown"
}

// Owner is the group that serves key, 0 if none does yet.
func (m *Map) Owner(key []byte) (ShardID, Assignment) {
	s := Shard(key, len(m.Shards))
	return s, m.Shards[s]
}

// Group finds a group by id.
func (m *Map) Group(id raft.GroupID) (Group, bool) {
	for _, g := range m.Groups {
		if g.ID == id {
			return g, true
		}
	}
	return Group{}, false
}

// Node finds a node by id.
func (m *Map) Node(id raft.NodeID) (Node, bool) {
	for _, n := range m.Nodes {
		if n.ID == id {
			return n, true
		}
	}
	return Node{}, false
}
