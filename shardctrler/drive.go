package shardctrler

import (
	"slices"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Drive is the reconciler as a value that is stepped, for one term in which a
// node leads the config group: what is known goes in, what is to be committed
// and sent comes out. The Controller's loop turns it with real nodes, a
// simulator with those of its world. All it remembers can be lost.
type Drive struct {
	reconciler *reconciler
	heard      map[raft.NodeID]time.Time // when each node was last heard of
}

// NewDrive remembers nothing.
func NewDrive() *Drive {
	return &Drive{reconciler: newReconciler(), heard: make(map[raft.NodeID]time.Time)}
}

// DriveInput is what a turn decides from.
type DriveInput struct {
	Now   time.Time
	State *State // the config group's as applied here; initialised
	Self  raft.NodeID
	// Config is the config group as its replica here, the leader, sees it.
	Config GroupStatus
	// Alive tells whether a node is heard of.
	Alive func(raft.NodeID) bool
	// Reports are the last that came, at most one of each node.
	Reports []*flotillav1.NodeReport
	// Results of sends, and hints about leaders, since the last turn.
	Results []SendResult
	Hints   []LeaderHint
}

// DriveOutput is what a turn wants done.
type DriveOutput struct {
	Commands []Command // to be decided by the config group
	Sends    []Send    // attempts to be made; each ends in a Result
	Next     time.Time // turn again then, if nothing happens; zero: no need
}

// Send is one attempt to have an operation carried out: a request for CarryOut
// at a node.
type Send struct {
	To      raft.NodeID
	Request *flotillav1.ExecuteRequest
}

// Result is how the attempt ended: with an answer, or an error.
func (s Send) Result(answer *flotillav1.ExecuteResponse, err error) SendResult {
	result := SendResult{Operation: OperationID(s.Request.OperationId)}
	if err != nil {
		result.Detail = err.Error()
		return result
	}
	result.Accepted, result.Leader, result.Detail, result.Move = answer.Accepted, raft.NodeID(answer.LeaderNode), answer.Message, answer.Move
	return result
}

// Turn is one step.
func (d *Drive) Turn(in DriveInput) DriveOutput {
	turn := d.reconciler.turn(turnInput{now: in.Now, state: in.State, observed: d.observe(in), results: in.Results, hints: in.Hints})
	out := DriveOutput{Commands: turn.commands, Next: turn.next}
	for _, s := range turn.sends {
		out.Sends = append(out.Sends, Send{To: s.to, Request: s.request(in.State.ClusterID)})
	}
	return out
}

// Waits says what the pending operations wait for, with their age.
func (d *Drive) Waits(s *State, now time.Time) []string { return d.reconciler.waits(s, now) }

// observe puts together what is known now: which nodes are heard of, what the
// leaders reported last, and the config group from its own replica.
func (d *Drive) observe(in DriveInput) Observed {
	var o Observed
	for _, n := range in.State.Nodes {
		o.Nodes = append(o.Nodes, d.heardOf(in, n.ID))
		o.Nodes[len(o.Nodes)-1].Ready = isReady(in.Reports, n.ID)
	}
	st := in.Config
	config := ObservedGroup{ID: raft.ConfigGroup, Leader: st.Leader.Node, Term: st.Term,
		Epoch: st.Membership.Epoch, Joint: st.changing(), Members: observedMembers(st)}
	o.Groups = put(observedGroups(in.Reports), config, func(a, b ObservedGroup) int { return compare(a.ID, b.ID) })
	return o
}

// isReady tells whether a node's last report says that it is ready.
func isReady(reports []*flotillav1.NodeReport, node raft.NodeID) bool {
	i := slices.IndexFunc(reports, func(r *flotillav1.NodeReport) bool { return raft.NodeID(r.GetNodeId()) == node })
	return i >= 0 && reports[i].GetReady()
}

// heardOf counts a node as alive until it has been silent for a while; one
// that is new here has just been heard of: it registered, or this node has
// only begun to listen.
func (d *Drive) heardOf(in DriveInput, id raft.NodeID) ObservedNode {
	last, known := d.heard[id]
	if !known || id == in.Self || in.Alive(id) {
		last = in.Now
		d.heard[id] = in.Now
	}
	silent := in.Now.Sub(last)
	if silent < aliveFor {
		return ObservedNode{ID: id, Alive: true}
	}
	return ObservedNode{ID: id, Silent: silent}
}

// observedGroup is a group as its leader reported it.
func observedGroup(g *flotillav1.GroupStatus) ObservedGroup {
	o := ObservedGroup{ID: raft.GroupID(g.Id), Leader: raft.NodeID(g.LeaderNode), Term: raft.Term(max(0, g.Term)), Epoch: g.Epoch, Joint: g.Joint}
	for _, m := range g.Replicas {
		o.Members = append(o.Members, ObservedMember{Lag: m.MatchLag, Member: shardmap.Member{
			Replica: raft.ReplicaID(m.ReplicaId), Node: raft.NodeID(m.NodeId), Learner: m.Role == "learner"}})
	}
	return o
}
