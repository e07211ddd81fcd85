package main

import (
	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

// The JSON of the reading commands. Unknown numbers are -1, no leader is 0, no
// time is ""; no field is null or missing.

type statusJSON struct {
	ClusterID   string      `json:"cluster_id"`
	ConfigNum   uint64      `json:"config_num"`
	Nodes       []nodeJSON  `json:"nodes"`
	Groups      []groupJSON `json:"groups"`
	ShardsTotal uint64      `json:"shards_total"`
	Moves       []moveJSON  `json:"moves"`
	WaitingFor  []string    `json:"waiting_for"`
}

type nodeJSON struct {
	ID         uint64 `json:"id"`
	Name       string `json:"name"`
	State      string `json:"state"`
	Zone       string `json:"zone"`
	Addr       string `json:"addr"`
	GossipAddr string `json:"gossip_addr"`
	RespAddr   string `json:"resp_addr"`
	HTTPAddr   string `json:"http_addr"`
	Leaders    int64  `json:"leaders"`
	Replicas   int64  `json:"replicas"`
}

type groupJSON struct {
	ID         uint64        `json:"id"`
	LeaderNode uint64        `json:"leader_node"`
	Term       int64         `json:"term"`
	Replicas   []replicaJSON `json:"replicas"`
	Shards     uint64        `json:"shards"`
}

type replicaJSON struct {
	ReplicaID uint64 `json:"replica_id"`
	NodeID    uint64 `json:"node_id"`
	Role      string `json:"role"`
	MatchLag  int64  `json:"match_lag"`
}

type moveJSON struct {
	ID         uint64 `json:"id"`
	Shard      uint64 `json:"shard"`
	From       uint64 `json:"from"`
	To         uint64 `json:"to"`
	Phase      string `json:"phase"`
	WaitingFor string `json:"waiting_for"`
	BytesDone  int64  `json:"bytes_done"`
	BytesTotal int64  `json:"bytes_total"`
	PauseUs    int64  `json:"pause_us"`
	Verified   bool   `json:"verified"`
	Started    string `json:"started"`
	Ended      string `json:"ended"`
	Reason     string `json:"reason"`
}

type shardJSON struct {
	Shard      uint64 `json:"shard"`
	Group      uint64 `json:"group"`
	Generation uint64 `json:"generation"`
	State      string `json:"state"`
	Keys       int64  `json:"keys"`
	Bytes      int64  `json:"bytes"`
}

type locateJSON struct {
	Key        string `json:"key"`
	Shard      uint64 `json:"shard"`
	Group      uint64 `json:"group"`
	LeaderNode uint64 `json:"leader_node"`
}

type configJSON struct {
	Num     uint64            `json:"num"`
	Created string            `json:"created"`
	Reason  string            `json:"reason"`
	Groups  []configGroupJSON `json:"groups"`
	Shards  []uint64          `json:"shards"`
}

type configGroupJSON struct {
	ID       uint64       `json:"id"`
	Replicas []memberJSON `json:"replicas"`
}

type memberJSON struct {
	ReplicaID uint64 `json:"replica_id"`
	NodeID    uint64 `json:"node_id"`
}

type eventJSON struct {
	ID      uint64 `json:"id"`
	Time    string `json:"time"`
	Kind    string `json:"kind"`
	Subject string `json:"subject"`
	Reason  string `json:"reason"`
	// Operation or move, and decision, that it is of; 0: none.
	Operation uint64 `json:"operation"`
	Decision  uint64 `json:"decision"`
}

func toStatusJSON(s *flotillav1.ClusterStatus) statusJSON {
	return statusJSON{
		ClusterID:   s.ClusterId,
		ConfigNum:   s.ConfigNum,
		Nodes:       each(s.Nodes, toNodeJSON),
		Groups:      each(s.Groups, toGroupJSON),
		ShardsTotal: s.ShardsTotal,
		Moves:       each(s.Moves, toMoveJSON),
		WaitingFor:  each(s.WaitingFor, func(what string) string { return what }),
	}
}

func toMoveJSON(m *flotillav1.Move) moveJSON {
	return moveJSON{ID: m.Id, Shard: m.Shard, From: m.From, To: m.To, Phase: m.Phase, WaitingFor: m.WaitingFor,
		BytesDone: m.BytesDone, BytesTotal: m.BytesTotal, PauseUs: m.PauseUs, Verified: m.Verified, Started: m.Started, Ended: m.Ended, Reason: m.Reason}
}

func toNodeJSON(n *flotillav1.NodeStatus) nodeJSON {
	return nodeJSON{
		ID:         n.Node.GetId(),
		Name:       n.Node.GetName(),
		State:      n.Node.GetState(),
		Zone:       n.Node.GetZone(),
		Addr:       n.Node.GetAddr(),
		GossipAddr: n.Node.GetGossipAddr(),
		RespAddr:   n.Node.GetRespAddr(),
		HTTPAddr:   n.Node.GetHttpAddr(),
		Leaders:    n.Leaders,
		Replicas:   n.Replicas,
	}
}

func toGroupJSON(g *flotillav1.GroupStatus) groupJSON {
	return groupJSON{
		ID:         g.Id,
		LeaderNode: g.LeaderNode,
		Term:       g.Term,
		Replicas: each(g.Replicas, func(r *flotillav1.ReplicaStatus) replicaJSON {
			return replicaJSON{ReplicaID: r.ReplicaId, NodeID: r.NodeId, Role: r.Role, MatchLag: r.MatchLag}
		}),
		Shards: g.Shards,
	}
}

func toShardJSON(s *flotillav1.ShardStatus) shardJSON {
	return shardJSON{Shard: s.Shard, Group: s.Group, Generation: s.Generation, State: s.State, Keys: s.Keys, Bytes: s.Bytes}
}

func toConfigJSON(c *flotillav1.Config) configJSON {
	return configJSON{
		Num:     c.Num,
		Created: c.Created,
		Reason:  c.Reason,
		Groups: each(c.Groups, func(g *flotillav1.Group) configGroupJSON {
			return configGroupJSON{
				ID: g.Id,
				Replicas: each(g.Members, func(m *flotillav1.GroupMember) memberJSON {
					return memberJSON{ReplicaID: m.ReplicaId, NodeID: m.NodeId}
				}),
			}
		}),
		Shards: each(c.Shards, func(group uint64) uint64 { return group }),
	}
}

func toEventJSON(e *flotillav1.Event) eventJSON {
	return eventJSON{ID: e.Id, Time: e.Time, Kind: e.Kind, Subject: e.Subject, Reason: e.Reason, Operation: e.Operation, Decision: e.Decision}
}

// each maps a list; the result is empty, never nil, so that JSON has no null.
func each[A, B any](list []A, f func(A) B) []B {
	out := make([]B, 0, len(list))
	for _, a := range list {
		out = append(out, f(a))
	}
	return out
}
