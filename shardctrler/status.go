package shardctrler

import (
	"context"
	"fmt"
	"sync"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// statusTimeout is for how long a status waits for reports; it answers anyway.
const statusTimeout = 500 * time.Millisecond

// GetNodeReport is what this node knows of itself and the groups it leads.
func (c *Controller) GetNodeReport(_ context.Context, r *flotillav1.GetNodeReportRequest) (*flotillav1.NodeReport, error) {
	id, host, _ := c.parts()
	if host == nil {
		return nil, toStatus(ErrNotInitialised)
	}
	report := Report(id.Node, host, c.options.Shards, r)
	report.Ready, report.WaitingFor = c.options.Ready()
	if c.stopping.Load() {
		report.Ready, report.WaitingFor = false, []string{"the node is stopping"}
	}
	return report, nil
}

// Report is what a node knows of the groups that it leads, with what else is
// asked for. Whether the node is ready is left to be filled in.
func Report(node raft.NodeID, groups Groups, shards Shards, r *flotillav1.GetNodeReportRequest) *flotillav1.NodeReport {
	report := &flotillav1.NodeReport{NodeId: uint64(node)}
	for _, st := range groups.Statuses() {
		report.Replicas++
		if raft.GroupID(r.ReplicaOf) == st.Group {
			report.Replica = localReplica(node, st)
		}
		if !st.IsLeader {
			continue
		}
		report.Led = append(report.Led, uint64(st.Group))
		report.Groups = append(report.Groups, groupReport(st, st.Group == raft.ConfigGroup || shards.Born(st.Group)))
		report.Moves = append(report.Moves, shards.MoveReports(st.Group)...)
		if load := shards.Load(st.Group, st.Term, r.HotKeys); load != nil {
			report.Loads = append(report.Loads, load)
		}
		if r.Shards && st.Group != raft.ConfigGroup {
			report.Shards = append(report.Shards, shards.ShardStatuses(st.Group)...)
		}
	}
	return report
}

// groupReport is a group as its leader shows it.
func groupReport(st GroupStatus, born bool) *flotillav1.GroupStatus {
	g := &flotillav1.GroupStatus{Id: uint64(st.Group), LeaderNode: uint64(st.Leader.Node), Term: int64(st.Term),
		Born: born, Epoch: st.Membership.Epoch, Joint: st.changing()}
	for _, m := range observedMembers(st) {
		g.Replicas = append(g.Replicas, &flotillav1.ReplicaStatus{ReplicaId: uint64(m.Replica), NodeId: uint64(m.Node),
			Role: roleOf(m, st.Leader.Replica), MatchLag: m.Lag})
	}
	return g
}

func roleOf(m ObservedMember, leader raft.ReplicaID) string {
	switch {
	case m.Replica == leader:
		return "leader"
	case m.Learner:
		return "learner"
	}
	return "follower"
}

// report is what one node answered; nil if it did not in time.
type report struct {
	node   raft.NodeID
	report *flotillav1.NodeReport
}

// answered are the reports that came.
func answered(all []report) []*flotillav1.NodeReport {
	var came []*flotillav1.NodeReport
	for _, r := range all {
		if r.report != nil {
			came = append(came, r.report)
		}
	}
	return came
}

// collect asks all nodes of the map for their reports, all at once, and
// returns what has come when ctx ends.
func (c *Controller) collect(ctx context.Context, m *shardmap.Map, r *flotillav1.GetNodeReportRequest) []report {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	reports := make([]report, len(m.Nodes))
	var asked sync.WaitGroup
	for i, n := range m.Nodes {
		reports[i].node = n.ID
		asked.Add(1)
		go func() {
			defer asked.Done()
			reports[i].report = c.askReport(ctx, n.ID, r)
		}()
	}
	asked.Wait() // every call ends with ctx
	return reports
}

func (c *Controller) askReport(ctx context.Context, node raft.NodeID, r *flotillav1.GetNodeReportRequest) *flotillav1.NodeReport {
	if node == c.self() {
		report, err := c.GetNodeReport(ctx, r)
		if err != nil {
			return nil
		}
		return report
	}
	for _, client := range c.clients(node) {
		report, err := client.GetNodeReport(ctx, r)
		if err == nil && raft.NodeID(report.NodeId) == node {
			return report
		}
	}
	return nil
}

// GetStatus collects what the nodes report within 500 ms and answers with what
// there is by then.
func (c *Controller) GetStatus(ctx context.Context, r *flotillav1.GetStatusRequest) (*flotillav1.ClusterStatus, error) {
	m, err := c.currentMap()
	if err != nil {
		return nil, toStatus(err)
	}
	collecting, cancel := context.WithTimeout(ctx, statusTimeout)
	reports := c.collect(collecting, m, &flotillav1.GetNodeReportRequest{Shards: r.Shards, HotKeys: r.Loads})
	cancel()
	s := &flotillav1.ClusterStatus{ClusterId: m.ClusterID, ConfigNum: uint64(m.Config), ShardsTotal: uint64(len(m.Shards))}
	for i, n := range m.Nodes {
		s.Nodes = append(s.Nodes, nodeStatus(n, reports[i].report))
	}
	s.Groups = groupStatuses(m, reports)
	s.WaitingFor = append(missing(m, s.Groups), c.operationsWait()...)
	if len(s.WaitingFor) == 0 {
		s.WaitingFor = nodesWait(reports)
	}
	if r.Shards {
		s.Shards = shardStatuses(m, reports)
	}
	if r.Loads {
		s.Loads = groupLoads(m, reports)
	}
	s.Moves = c.movesUnderWay(ctx, reports)
	return s, nil
}

func (c *Controller) operationsWait() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.waits
}

// nodeStatus is a node with its own report. One that does not answer is shown
// as down though the controller may not have recorded it yet.
func nodeStatus(n shardmap.Node, r *flotillav1.NodeReport) *flotillav1.NodeStatus {
	if r == nil {
		if n.State == shardmap.NodeUp {
			n.State = shardmap.NodeDown
		}
		return &flotillav1.NodeStatus{Node: nodeToWire(n), Leaders: -1, Replicas: -1}
	}
	return &flotillav1.NodeStatus{Node: nodeToWire(n), Leaders: int64(len(r.Led)), Replicas: int64(r.Replicas)}
}

// groupStatuses are the groups of the map, each as the leader of the highest
// term reports it, or with what the map knows if none does.
func groupStatuses(m *shardmap.Map, reports []report) []*flotillav1.GroupStatus {
	led := make(map[uint64]*flotillav1.GroupStatus)
	for _, r := range reports {
		for _, g := range r.report.GetGroups() {
			if before := led[g.Id]; before == nil || before.Term < g.Term {
				led[g.Id] = g
			}
		}
	}
	has := make(map[raft.GroupID]uint64)
	for _, a := range m.Shards {
		has[a.Group]++
	}
	statuses := make([]*flotillav1.GroupStatus, 0, len(m.Groups))
	for _, g := range m.Groups {
		s := led[uint64(g.ID)]
		if s == nil {
			s = &flotillav1.GroupStatus{Id: uint64(g.ID), Term: -1, Epoch: g.Epoch}
			for _, member := range g.Members {
				s.Replicas = append(s.Replicas, &flotillav1.ReplicaStatus{ReplicaId: uint64(member.Replica), NodeId: uint64(member.Node),
					Role: roleOf(ObservedMember{Member: member}, 0), MatchLag: -1})
			}
		}
		s.Shards = has[g.ID]
		statuses = append(statuses, s)
	}
	return statuses
}

// groupLoads are what the leaders of the highest terms counted, of the shards
// that are theirs.
func groupLoads(m *shardmap.Map, reports []report) []*flotillav1.GroupLoad {
	var loads []*flotillav1.GroupLoad
	for _, l := range latestLoads(reports) {
		own := &flotillav1.GroupLoad{Group: l.Group, MeasuredMs: l.MeasuredMs}
		for _, s := range l.Shards {
			if s.Shard < uint64(len(m.Shards)) && uint64(m.Shards[s.Shard].Group) == l.Group {
				own.Shards = append(own.Shards, s)
			}
		}
		loads = append(loads, own)
	}
	return loads
}

// missing says what is not as it should be.
func missing(m *shardmap.Map, groups []*flotillav1.GroupStatus) []string {
	var waits []string
	if m.Config == 0 {
		waits = append(waits, fmt.Sprintf("more nodes: groups are made when there are as many as replicas; there are %d", len(m.Nodes)))
	}
	for _, g := range groups {
		voters := 0
		for _, r := range g.Replicas {
			if r.Role != "learner" {
				voters++
			}
		}
		switch {
		case g.LeaderNode == 0:
			waits = append(waits, fmt.Sprintf("a leader of group %d", g.Id))
		case !g.Born:
			waits = append(waits, fmt.Sprintf("the birth of group %d", g.Id))
		case raft.GroupID(g.Id) == raft.ConfigGroup && voters < configSizes[0]:
			waits = append(waits, fmt.Sprintf("the config group to have %d replicas; it has %d", configSizes[0], voters))
		}
	}
	return waits
}

// nodesWait says what single nodes wait for: of interest once the groups do not
// wait for anything.
func nodesWait(reports []report) (waits []string) {
	for _, r := range reports {
		for _, what := range r.report.GetWaitingFor() {
			waits = append(waits, fmt.Sprintf("node %d: %s", r.node, what))
		}
	}
	return waits
}

// shardStatuses are all shards with their owners of the map and the numbers of
// the owners' leaders.
func shardStatuses(m *shardmap.Map, reports []report) []*flotillav1.ShardStatus {
	reported := make(map[uint64]*flotillav1.ShardStatus)
	for _, r := range reports {
		for _, s := range r.report.GetShards() {
			if s.Shard < uint64(len(m.Shards)) && raft.GroupID(s.Group) == m.Shards[s.Shard].Group {
				reported[s.Shard] = s
			}
		}
	}
	statuses := make([]*flotillav1.ShardStatus, len(m.Shards))
	for i, a := range m.Shards {
		s := &flotillav1.ShardStatus{Shard: uint64(i), Group: uint64(a.Group), Generation: uint64(a.Generation), State: "absent", Keys: -1, Bytes: -1}
		if a.Group != 0 {
			s.State = "owned"
		}
		if r := reported[s.Shard]; r != nil {
			s.State, s.Keys, s.Bytes = r.State, r.Keys, r.Bytes
		}
		statuses[i] = s
	}
	return statuses
}
