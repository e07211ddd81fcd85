package client

import (
	"cmp"
	"fmt"
	"slices"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// decodeMap reads a map from the wire. It refuses one that could not be
// routed by.
func decodeMap(m *flotillav1.ShardMap) (*shardmap.Map, error) {
	if err := shardmap.CheckShards(len(m.GetShards())); err != nil {
		return nil, fmt.Errorf("shard map of revision %d: %w", m.GetRevision(), err)
	}
	out := &shardmap.Map{
		ClusterID: m.GetClusterId(),
		Revision:  m.GetRevision(),
		Config:    shardmap.ConfigNum(m.GetConfigNum()),
		Shards:    make([]shardmap.Assignment, len(m.GetShards())),
		Groups:    make([]shardmap.Group, len(m.GetGroups())),
		Nodes:     make([]shardmap.Node, len(m.GetNodes())),
	}
	for i, a := range m.GetShards() {
		out.Shards[i] = shardmap.Assignment{Group: raft.GroupID(a.GetGroup()), Generation: shardmap.Generation(a.GetGeneration())}
	}
	for i, g := range m.GetGroups() {
		out.Groups[i] = decodeGroup(g)
	}
	for i, n := range m.GetNodes() {
		out.Nodes[i] = decodeNode(n)
	}
	slices.SortFunc(out.Groups, func(a, b shardmap.Group) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(out.Nodes, func(a, b shardmap.Node) int { return cmp.Compare(a.ID, b.ID) })
	return out, nil
}

func decodeGroup(g *flotillav1.Group) shardmap.Group {
	group := shardmap.Group{ID: raft.GroupID(g.GetId()), Preferred: raft.NodeID(g.GetPreferredNode()), Epoch: g.GetEpoch()}
	for _, m := range g.GetMembers() {
		group.Members = append(group.Members, shardmap.Member{
			Replica: raft.ReplicaID(m.GetReplicaId()),
			Node:    raft.NodeID(m.GetNodeId()),
			Learner: m.GetLearner(),
			First:   m.GetFirst(),
		})
	}
	return group
}

func decodeNode(n *flotillav1.Node) shardmap.Node {
	return shardmap.Node{
		ID:         raft.NodeID(n.GetId()),
		Name:       n.GetName(),
		Zone:       n.GetZone(),
		State:      decodeNodeState(n.GetState()),
		Addr:       n.GetAddr(),
		GossipAddr: n.GetGossipAddr(),
		RespAddr:   n.GetRespAddr(),
		HTTPAddr:   n.GetHttpAddr(),
	}
}

func decodeNodeState(word string) shardmap.NodeState {
	for _, s := range []shardmap.NodeState{shardmap.NodeUp, shardmap.NodeDraining, shardmap.NodeDown, shardmap.NodeRemoved} {
		if s.String() == word {
			return s
		}
	}
	return shardmap.NodeUp // a word of a newer server must not hide the node
}
