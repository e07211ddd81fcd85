package shardctrler

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// mapToWire is a map as the API shows it.
func mapToWire(m *shardmap.Map) *flotillav1.ShardMap {
	w := &flotillav1.ShardMap{ClusterId: m.ClusterID, Revision: m.Revision, ConfigNum: uint64(m.Config)}
	for _, a := range m.Shards {
		w.Shards = append(w.Shards, &flotillav1.Assignment{Group: uint64(a.Group), Generation: uint64(a.Generation)})
	}
	for _, g := range m.Groups {
		w.Groups = append(w.Groups, &flotillav1.Group{Id: uint64(g.ID), Members: membersToWire(g.Members),
			PreferredNode: uint64(g.Preferred), Epoch: g.Epoch})
	}
	for _, n := range m.Nodes {
		w.Nodes = append(w.Nodes, nodeToWire(n))
	}
	return w
}

// mapFromWire refuses a map that is not whole.
func mapFromWire(w *flotillav1.ShardMap) (*shardmap.Map, error) {
	if w.GetClusterId() == "" {
		return nil, invalid("a map of no cluster")
	}
	if err := shardmap.CheckShards(len(w.Shards)); err != nil {
		return nil, invalid("a map with %v", err)
	}
	m := &shardmap.Map{ClusterID: w.ClusterId, Revision: w.Revision, Config: shardmap.ConfigNum(w.ConfigNum),
		Shards: make([]shardmap.Assignment, len(w.Shards))}
	for i, a := range w.Shards {
		m.Shards[i] = shardmap.Assignment{Group: raft.GroupID(a.GetGroup()), Generation: shardmap.Generation(a.GetGeneration())}
	}
	for _, g := range w.Groups {
		m.Groups = append(m.Groups, shardmap.Group{ID: raft.GroupID(g.GetId()), Members: membersFromWire(g.GetMembers()),
			Preferred: raft.NodeID(g.GetPreferredNode()), Epoch: g.GetEpoch()})
	}
	for _, n := range w.Nodes {
		m.Nodes = append(m.Nodes, nodeFromWire(n))
	}
	return m, nil
}

func nodeToWire(n shardmap.Node) *flotillav1.Node {
	return &flotillav1.Node{Id: uint64(n.ID), Name: n.Name, Zone: n.Zone, State: n.State.String(),
		Addr: n.Addr, GossipAddr: n.GossipAddr, RespAddr: n.RespAddr, HttpAddr: n.HTTPAddr}
}

func nodeFromWire(w *flotillav1.Node) shardmap.Node {
	n := shardmap.Node{ID: raft.NodeID(w.GetId()), Name: w.GetName(), Zone: w.GetZone(),
		Addr: w.GetAddr(), GossipAddr: w.GetGossipAddr(), RespAddr: w.GetRespAddr(), HTTPAddr: w.GetHttpAddr()}
	for s := shardmap.NodeUp; s <= shardmap.NodeRemoved; s++ {
		if s.String() == w.GetState() {
			n.State = s
		}
	}
	return n
}

func membersToWire(members []shardmap.Member) []*flotillav1.GroupMember {
	w := make([]*flotillav1.GroupMember, 0, len(members))
	for _, m := range members {
		w = append(w, &flotillav1.GroupMember{ReplicaId: uint64(m.Replica), NodeId: uint64(m.Node), Learner: m.Learner, First: m.First})
	}
	return w
}

func membersFromWire(w []*flotillav1.GroupMember) []shardmap.Member {
	members := make([]shardmap.Member, 0, len(w))
	for _, m := range w {
		members = append(members, shardmap.Member{Replica: raft.ReplicaID(m.GetReplicaId()), Node: raft.NodeID(m.GetNodeId()),
			Learner: m.GetLearner(), First: m.GetFirst()})
	}
	return members
}

func registrationFromWire(r *flotillav1.RegisterRequest) Register {
	return Register{ClusterID: r.ClusterId, Node: raft.NodeID(r.NodeId), Registration: Registration{
		RandomID: r.RandomId, Name: r.Name, Zone: r.Zone, Addr: r.Addr, GossipAddr: r.GossipAddr,
		RespAddr: r.RespAddr, HTTPAddr: r.HttpAddr, Version: r.Version}}
}

func registrationToWire(id Identity, r Registration) *flotillav1.RegisterRequest {
	return &flotillav1.RegisterRequest{ClusterId: id.ClusterID, NodeId: uint64(id.Node), RandomId: r.RandomID, Name: r.Name,
		Zone: r.Zone, Addr: r.Addr, GossipAddr: r.GossipAddr, RespAddr: r.RespAddr, HttpAddr: r.HTTPAddr, Version: r.Version}
}

func configToWire(c Config) *flotillav1.Config {
	w := &flotillav1.Config{Num: uint64(c.Num), Created: timeText(c.Created), Reason: c.Reason, Shards: make([]uint64, len(c.Owners))}
	for i, owner := range c.Owners {
		w.Shards[i] = uint64(owner)
	}
	for _, g := range c.Groups {
		group := &flotillav1.Group{Id: uint64(g.ID)}
		for _, n := range g.Nodes {
			group.Members = append(group.Members, &flotillav1.GroupMember{NodeId: uint64(n)})
		}
		w.Groups = append(w.Groups, group)
	}
	return w
}

func eventToWire(e Event) *flotillav1.Event {
	return &flotillav1.Event{Id: uint64(e.ID), Time: timeText(e.Time), Kind: e.Kind, Subject: e.Subject, Reason: e.Reason,
		Operation: uint64(e.Operation), Decision: uint64(e.Decision)}
}

// timeText is RFC 3339 in UTC; "" for no time.
func timeText(unixMilli int64) string {
	if unixMilli == 0 {
		return ""
	}
	return time.UnixMilli(unixMilli).UTC().Format(time.RFC3339Nano)
}

// EncodeMap is how a node remembers a map; DecodeMap takes it back.
func EncodeMap(m *shardmap.Map) ([]byte, error) { return proto.Marshal(mapToWire(m)) }

// DecodeMap takes apart what EncodeMap made.
func DecodeMap(b []byte) (*shardmap.Map, error) {
	w := new(flotillav1.ShardMap)
	if err := proto.Unmarshal(b, w); err != nil {
		return nil, invalid("the remembered map: %v", err)
	}
	return mapFromWire(w)
}

// toStatus makes a gRPC error of what a call failed with. What the caller can
// only try again is Unavailable; all else is definite and had no effect.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codeOf(err), err.Error())
}

func codeOf(err error) codes.Code {
	var (
		wrong     *InvalidError
		taken     *NameTakenError
		passed    *StaleError
		forgotten *ForgottenConfigError
	)
	switch {
	case errors.As(err, &wrong):
		return codes.InvalidArgument
	case errors.As(err, &taken):
		return codes.AlreadyExists
	case errors.As(err, &forgotten), errors.Is(err, ErrNoConfig):
		return codes.NotFound
	case errors.As(err, &passed), errors.Is(err, ErrInitialised), errors.Is(err, ErrHeardOfCluster),
		errors.Is(err, ErrOtherCluster), errors.Is(err, ErrNodeRemoved), errors.Is(err, ErrUnknownNode):
		return codes.FailedPrecondition
	case errors.Is(err, ErrTooManyNodes):
		return codes.ResourceExhausted
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	}
	return codes.Unavailable
}
