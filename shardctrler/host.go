package shardctrler

import (
	"context"
	"fmt"

	"google.golang.org/grpc"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Identity is who a node is, for ever.
type Identity struct {
	ClusterID string
	Node      raft.NodeID
}

// Home is what the node does when it gets its identity. Both calls must be
// repeatable: after a crash in between, the same call goes on. The host that
// they return runs.
type Home interface {
	// Found makes the node the first of a new cluster: durably, in this order,
	// it creates replica 1 of the config group with itself as the only member
	// and records the identity; then it opens its host and starts that replica.
	Found(ctx context.Context, id Identity) (Host, error)
	// Adopt durably records the identity and opens the node's host.
	Adopt(ctx context.Context, id Identity) (Host, error)
}

// Host runs this node's replicas. Package multiraft is the product's; see
// OverMultiraft.
type Host interface {
	ConfigLog
	Groups
}

// ConfigLog is the config group's log as seen from this node.
type ConfigLog interface {
	// Propose waits for the command's answer. An error says that there is none:
	// the command had no effect if the error is a *NotLeaderError or
	// ErrNoReplica, and may have had or yet have one otherwise.
	Propose(ctx context.Context, command []byte) (any, error)
	// Barrier returns when this node's replica has applied all that was
	// committed when it was called.
	Barrier(ctx context.Context) error
}

// Groups are the replicas on this node.
type Groups interface {
	// Leader is at once what this node knows; false: nothing.
	Leader(raft.GroupID) (leader raft.Member, term raft.Term, known bool)
	Status(raft.GroupID) (GroupStatus, bool)
	Statuses() []GroupStatus
	// Transfer asks the local leader to hand over; it returns when that has
	// begun.
	Transfer(group raft.GroupID, to raft.ReplicaID) error
	// ChangeMembership proposes a membership at the local leader; it is refused
	// unless the group is at epoch. done is called once, from any goroutine,
	// perhaps before the change is through.
	ChangeMembership(group raft.GroupID, epoch uint64, voters, learners []raft.Member, done func(error))
	// Recover makes the replica here the only one of its group: see
	// raft.Raft.Recover.
	Recover(key raft.ReplicaKey, epoch uint64, floor raft.ReplicaID) error
}

// changing tells whether a change of the membership is half done: it is in its
// joint phase, or not committed yet.
func (st *GroupStatus) changing() bool { return st.Unsettled || len(st.Membership.Outgoing) > 0 }

// GroupStatus is a group as its replica on this node knows it.
type GroupStatus struct {
	Group      raft.GroupID
	Self       raft.ReplicaID
	IsLeader   bool
	Leader     raft.Member // zero: not known
	Term       raft.Term
	Membership raft.Membership
	// Unsettled: the membership may yet be undone.
	Unsettled bool
	// CaughtUp: everything that is known to be committed is applied here.
	CaughtUp bool
	// Of the log here.
	Last, Commit, Applied raft.Index
	LastTerm              raft.Term
	Suspect               bool // it was cut
	// Lag is, at the leader, how many entries each member is behind.
	Lag map[raft.ReplicaID]int64
}

// NotLeaderError: the replica on this node does not lead its group.
type NotLeaderError struct {
	Group  raft.GroupID
	Leader raft.NodeID // 0: not known
}

func (e *NotLeaderError) Error() string {
	if e.Leader == 0 {
		return fmt.Sprintf("no leader of group %d is known here", e.Group)
	}
	return fmt.Sprintf("node %d leads group %d", e.Leader, e.Group)
}

// Shards are the replica groups on this node as far as the controller needs
// them. Package shardkv is the product's.
type Shards interface {
	// Birth gives the group that this node leads its first shards; a group that
	// was born takes it for done. done is called once, from any goroutine.
	Birth(group raft.GroupID, shards []shardmap.ShardID, generation shardmap.Generation, done func(error))
	// Born tells whether the group is known here to have been born.
	Born(group raft.GroupID) bool
	// Import has the group that this node leads take a shard over, or end that,
	// and tells how the move with that number stands. done is called once, from
	// any goroutine.
	Import(group raft.GroupID, number uint64, order *flotillav1.ImportShard, done func(*flotillav1.MoveReport, error))
	// MoveReports tells how the moves into a group stand.
	MoveReports(group raft.GroupID) []*flotillav1.MoveReport
	// Load is what the requests of a group cost that this node leads in a term;
	// nil: not known, or nothing. keys: with the keys that are asked for most.
	Load(group raft.GroupID, term raft.Term, keys bool) *flotillav1.GroupLoad
	// ShardStatuses lists the shards of a group with estimates of what is in
	// them.
	ShardStatuses(group raft.GroupID) []*flotillav1.ShardStatus
}

// Peers are the nodes that gossip or flags have told of. It suggests addresses
// and decides nothing.
type Peers interface{ Peers() []Peer }

// Peer is what is said of a node.
type Peer struct {
	Addr      string      // gRPC
	ClusterID string      // "": it has not joined one
	Node      raft.NodeID // 0: it has no id yet
}

// Dialer gives the connection to the Cluster service at an address. It keeps
// connections and does not block.
type Dialer func(addr string) (grpc.ClientConnInterface, error)
