package shardctrler

import (
	"context"
	"fmt"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// ChangeCluster records what an operator wants of groups and nodes, or tells
// what would come of it.
func (c *Controller) ChangeCluster(ctx context.Context, r *flotillav1.ChangeClusterRequest) (*flotillav1.ChangeClusterResponse, error) {
	return forward(ctx, c, func(ctx context.Context) (*flotillav1.ChangeClusterResponse, error) {
		at, leads := c.leads()
		if !leads {
			return nil, errElsewhere
		}
		state, err := c.current(ctx)
		if err != nil {
			return nil, err
		}
		seen := c.assumed(state)
		if change, recovers := r.Change.(*flotillav1.ChangeClusterRequest_RecoverGroup); recovers {
			return c.recoverGroup(ctx, state, change.RecoverGroup, r.DryRun)
		}
		if r.DryRun {
			return foreseen(state, seen, r)
		}
		command, err := changeFromWire(state, seen, r)
		if err != nil {
			return nil, err
		}
		if command == nil {
			return nil, invalid("there is nothing to be changed")
		}
		answer, err := c.propose(ctx, command)
		if err != nil {
			return nil, err
		}
		return changed(at.machine.State(), command, answer), nil
	}, func(ctx context.Context, client flotillav1.ClusterClient) (*flotillav1.ChangeClusterResponse, error) {
		return client.ChangeCluster(ctx, r)
	})
}

// assumed is the cluster as a leader may take it to be that has not asked: the
// nodes as they are heard of, and the groups well.
func (c *Controller) assumed(s *State) Observed {
	var o Observed
	for _, n := range s.Nodes {
		seen := ObservedNode{ID: n.ID, Alive: n.ID == c.self() || c.options.Alive(n.ID)}
		if seen.Ready = seen.Alive; !seen.Alive {
			seen.Silent = downAfter
			if n.State == shardmap.NodeDown {
				seen.Silent += max(0, time.Since(time.UnixMilli(n.Since)))
			}
		}
		o.Nodes = append(o.Nodes, seen)
	}
	return o
}

// changeFromWire makes a command of a request; nil: it names no change.
func changeFromWire(s *State, seen Observed, r *flotillav1.ChangeClusterRequest) (Command, error) {
	switch change := r.Change.(type) {
	case *flotillav1.ChangeClusterRequest_AddGroups:
		return Join(s, seen, int(change.AddGroups), shardmap.ConfigNum(r.Config))
	case *flotillav1.ChangeClusterRequest_RemoveGroup:
		return RemoveGroup{Group: raft.GroupID(change.RemoveGroup)}, nil
	case *flotillav1.ChangeClusterRequest_DrainNode:
		return DrainNode{Node: raft.NodeID(change.DrainNode)}, nil
	case *flotillav1.ChangeClusterRequest_UndrainNode:
		return DrainNode{Node: raft.NodeID(change.UndrainNode), Back: true}, nil
	case *flotillav1.ChangeClusterRequest_RemoveNode:
		return RemoveNode{Node: raft.NodeID(change.RemoveNode)}, nil
	}
	return nil, nil
}

// Join is the command that adds n groups, on the nodes that have the least to
// carry of those that are up and heard of; it is for a config, 0 for any.
func Join(s *State, seen Observed, n int, config shardmap.ConfigNum) (Command, error) {
	sites := (&planner{state: s, observed: seen}).liveSites()
	want := int(s.Policy.Replicas)
	if len(sites) < want {
		return nil, stale("%d nodes are up, and a group has %d replicas: add nodes first", len(sites), want)
	}
	if n <= 0 || n > groupsAddedMax {
		return nil, invalid("%d groups: it must be 1 to %d at once", n, groupsAddedMax)
	}
	return AddGroups{Groups: placeGroups(sites, n, want), Config: config}, nil
}

// changed is what was made of a command.
func changed(s *State, command Command, answer any) *flotillav1.ChangeClusterResponse {
	w := new(flotillav1.ChangeClusterResponse)
	switch a := answer.(type) {
	case Added:
		w.ConfigNum = uint64(a.Config)
		for _, g := range a.Groups {
			w.Groups = append(w.Groups, uint64(g))
		}
	case Left:
		w.ConfigNum = uint64(a.Config)
		w.Groups = []uint64{uint64(command.(RemoveGroup).Group)}
	}
	return w
}

const addedNodesMax = 64 // that one dry run thinks of

func foreseen(s *State, seen Observed, r *flotillav1.ChangeClusterRequest) (*flotillav1.ChangeClusterResponse, error) {
	if len(r.AddNodes) > addedNodesMax {
		return nil, invalid("%d nodes that join: at most %d", len(r.AddNodes), addedNodesMax)
	}
	what := WhatIf{Add: r.AddNodes}
	var err error
	if groups, adds := r.Change.(*flotillav1.ChangeClusterRequest_AddGroups); adds {
		what.Groups = int(groups.AddGroups)
	} else if what.Command, err = changeFromWire(s, seen, r); err != nil {
		return nil, err
	}
	for _, id := range r.LoseNodes {
		what.Lose = append(what.Lose, raft.NodeID(id))
	}
	ahead, err := Foresee(s, seen, what)
	if err != nil {
		return nil, err
	}
	return &flotillav1.ChangeClusterResponse{Foresight: foresightToWire(ahead)}, nil
}

func foresightToWire(f Foresight) *flotillav1.Foresight {
	w := &flotillav1.Foresight{WaitingFor: f.Waits}
	for _, s := range f.Shards {
		w.Shards = append(w.Shards, &flotillav1.ShardChange{Shard: uint64(s.Shard), From: uint64(s.From), To: uint64(s.To)})
	}
	for _, r := range f.Replicas {
		w.Replicas = append(w.Replicas, &flotillav1.ReplicaChange{Group: uint64(r.Group), Before: nodesToWire(r.Before), After: nodesToWire(r.After)})
	}
	for _, l := range f.Leaders {
		w.Leaders = append(w.Leaders, &flotillav1.LeaderChange{Group: uint64(l.Group), From: uint64(l.From), To: uint64(l.To)})
	}
	for _, o := range f.Steps {
		w.Steps = append(w.Steps, fmt.Sprintf("%s: %s", o.Body.kind(), o.Reason))
	}
	return w
}

func nodesToWire(nodes []raft.NodeID) []uint64 {
	w := make([]uint64, len(nodes))
	for i, n := range nodes {
		w[i] = uint64(n)
	}
	return w
}

// Explain says why something is where it is.
func (c *Controller) Explain(ctx context.Context, r *flotillav1.ExplainRequest) (*flotillav1.Explanation, error) {
	return forward(ctx, c, func(ctx context.Context) (*flotillav1.Explanation, error) {
		if _, leads := c.leads(); !leads {
			return nil, errElsewhere
		}
		s, err := c.current(ctx)
		if err != nil {
			return nil, err
		}
		x, err := c.explain(ctx, s, r)
		if err != nil {
			return nil, err
		}
		return explanationToWire(x), nil
	}, func(ctx context.Context, client flotillav1.ClusterClient) (*flotillav1.Explanation, error) {
		return client.Explain(ctx, r)
	})
}

func (c *Controller) explain(ctx context.Context, s *State, r *flotillav1.ExplainRequest) (*Explanation, error) {
	switch what := r.What.(type) {
	case *flotillav1.ExplainRequest_Shard:
		return ExplainShard(s, c.asked(ctx, s), shardmap.ShardID(what.Shard))
	case *flotillav1.ExplainRequest_Group:
		return ExplainGroup(s, c.asked(ctx, s), raft.GroupID(what.Group))
	case *flotillav1.ExplainRequest_Node:
		return ExplainNode(s, c.asked(ctx, s), raft.NodeID(what.Node))
	case *flotillav1.ExplainRequest_Decision:
		return ExplainDecision(s, DecisionID(what.Decision))
	}
	return nil, invalid("what is to be explained? A shard, a group, a node or a decision")
}

// asked is the cluster as the leaders of the groups see it.
func (c *Controller) asked(ctx context.Context, s *State) Observed {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	o := c.assumed(s)
	o.Groups = observedGroups(answered(c.collect(ctx, s.Map(), new(flotillav1.GetNodeReportRequest))))
	return o
}

func explanationToWire(x *Explanation) *flotillav1.Explanation {
	w := &flotillav1.Explanation{Subject: x.Subject, Facts: x.Facts}
	for _, c := range x.Candidates {
		w.Candidates = append(w.Candidates, &flotillav1.Candidate{Id: c.ID, Name: c.Name, Chosen: c.Chosen, For: c.For, Against: c.Against})
	}
	for _, e := range x.Events {
		w.Events = append(w.Events, eventToWire(e))
	}
	for _, part := range x.Parts {
		w.Parts = append(w.Parts, explanationToWire(part))
	}
	return w
}
