package routing

import (
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// A watch is no call: it stays where it is until it is told that this was the
// wrong place. It goes by the same routes, and teaches them the same.

// Owner is the group that serves a shard as far as known, 0 if none does; then
// a new map is asked for.
func (r *Router) Owner(shard shardmap.ShardID) raft.GroupID {
	if r.routes.current == nil || int(shard) >= len(r.routes.owners) || r.routes.owner(shard) == 0 {
		r.refresh()
		return 0
	}
	return r.routes.owner(shard)
}

// Leader is the leader of a group, or the member whose turn it is to be tried;
// without an address if none is known.
func (r *Router) Leader(now time.Time, group raft.GroupID) Target {
	g := r.routes.groups[group]
	if g == nil {
		r.refresh()
		return Target{}
	}
	return g.leaderOr(r.usable(now))
}

// Watching says that a member serves watches of a group: it leads.
func (r *Router) Watching(group raft.GroupID, at Target) {
	if g := r.routes.groups[group]; g != nil {
		g.answered(at)
	}
}

// WatchMoved says that a group answered of a shard that it is at another.
func (r *Router) WatchMoved(shard shardmap.ShardID, from, to raft.GroupID) {
	r.refresh()
	if r.routes.current != nil && int(shard) < len(r.routes.owners) {
		r.routes.moved(shard, from, to)
	}
}

// WatchEnded says how a watch of a group ended at a member: with a response's
// code, or with nothing (OK).
func (r *Router) WatchEnded(group raft.GroupID, at Target, code flotillav1.Code, leader raft.NodeID, addr string) {
	g := r.routes.groups[group]
	if g == nil {
		return
	}
	switch code {
	case flotillav1.Code_NOT_LEADER:
		g.notLeader(at, r.routes.node(leader, addr))
	case flotillav1.Code_BUSY:
	default:
		g.skip(at)
	}
}
