package shardmap

import "github.com/flotilla-kv/flotilla/raft"

// Assigned is a replica that the config assigns to a node.
type Assigned struct {
	Key raft.ReplicaKey
	// First is the membership that the replica starts with: its group's first
	// one. Epoch 0: it starts empty and cannot vote until the group's leader
	// names it.
	First raft.Membership
	// Leads: this node is the one that should lead the group. A hint.
	Leads bool
}

// Assigned lists the replicas that node has to run, ascending by group.
func (m *Map) Assigned(node raft.NodeID) []Assigned {
	var mine []Assigned
	for _, g := range m.Groups {
		for _, member := range g.Members {
			if member.Node != node {
				continue
			}
			a := Assigned{Key: raft.ReplicaKey{Group: g.ID, Replica: member.Replica}, Leads: g.Preferred == node}
			if member.First {
				a.First = g.firstMembership()
			}
			mine = append(mine, a)
		}
	}
	return mine
}

// firstMembership is what all the first replicas of the group start with.
// Members stay marked as first only while the group has never changed, so
// whoever finds himself marked finds all the others too.
func (g Group) firstMembership() raft.Membership {
	first := raft.Membership{Epoch: 1}
	for _, m := range g.Members {
		if m.First {
			first.Voters = append(first.Voters, raft.Member{Replica: m.Replica, Node: m.Node})
		}
	}
	return first
}

// Merge is what a node believes that knew old and hears of update. The higher
// revision wins, except that for one shard the higher generation always does.
// Maps of different clusters do not merge: old stays. Either may be nil.
func Merge(old, update *Map) *Map {
	switch {
	case update == nil:
		return old
	case old == nil:
		return update
	case old.ClusterID != update.ClusterID:
		return old
	}
	newer, older := update, old
	if old.Revision >= update.Revision {
		newer, older = old, update
	}
	return newer.withHigherGenerations(older)
}

// withHigherGenerations is m with those assignments of other that are of a
// higher generation; m itself if there are none.
func (m *Map) withHigherGenerations(other *Map) *Map {
	merged := m
	for s := range min(len(m.Shards), len(other.Shards)) {
		if other.Shards[s].Generation <= m.Shards[s].Generation {
			continue
		}
		if merged == m {
			clone := *m
			clone.Shards = append([]Assignment(nil), m.Shards...)
			merged = &clone
		}
		merged.Shards[s] = other.Shards[s]
	}
	return merged
}
