package shardctrler

import (
	"slices"
	"strings"
	"testing"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// TestRecoverGroup: a group without its majority goes on from one replica, the
// nodes of the others are removed, and then it gets new replicas.
func TestRecoverGroup(t *testing.T) {
	r := afterBringUp(t)
	down := func(ids ...raft.NodeID) {
		for _, id := range ids {
			r.must(t, Commit{Operations: []Operation{{Body: SetNodeState{id, shardmap.NodeDown}}}})
		}
	}
	r.refuses(t, RecoverGroup{Group: raft.ConfigGroup, Node: 1}, "config group")
	r.refuses(t, RecoverGroup{Group: 99, Node: 1}, "no group 99")
	r.refuses(t, RecoverGroup{Group: 2, Node: 1}, "a majority")
	down(2, 3)
	r.refuses(t, RecoverGroup{Group: 2, Node: 3}, "not up")
	r.refuses(t, RecoverGroup{Group: 2, Node: 77}, "no voting replica")
	before, _ := r.state.group(2)

	r.must(t, RecoverGroup{Group: 2, Node: 1})
	for _, id := range []raft.NodeID{2, 3} {
		if n, _ := r.state.node(id); n.State != shardmap.NodeRemoved {
			t.Errorf("node %d is %v", id, n.State)
		}
	}
	o, pending := r.state.pendingFor(2)
	b, recovers := o.Body.(Recover)
	if !pending || !recovers || b.Node != 1 || b.Epoch <= before.Epoch || b.Floor <= before.LastReplica {
		t.Fatalf("pending is %+v", o)
	}
	events := len(r.state.Events)
	r.must(t, RecoverGroup{Group: 2, Node: 1}) // again
	if len(r.state.Events) != events {
		t.Errorf("the same order again is noted: %+v", r.state.Events[events:])
	}

	out := newReconciler().turn(turnInput{now: time.Now(), state: r.state, observed: Observed{}})
	i := slices.IndexFunc(out.sends, func(s send) bool { return s.operation.ID == o.ID })
	if i < 0 || out.sends[i].to != 1 {
		t.Fatalf("sent is %+v", out.sends)
	}
	if q := out.sends[i].request("c").GetRecover(); q.GetReplica() != uint64(b.Replica) || q.GetEpoch() != b.Epoch || q.GetFloor() != uint64(b.Floor) {
		t.Errorf("asked is %+v", q)
	}
	r.must(t, Observe{Group: 2, Epoch: b.Epoch, Members: []shardmap.Member{{Replica: b.Replica, Node: 1}}})
	after, _ := r.state.group(2)
	if _, pending := r.state.pendingFor(2); pending || len(after.Members) != 1 || after.Epoch != b.Epoch {
		t.Fatalf("afterwards it is %+v", after)
	}
	if last := r.state.Events[len(r.state.Events)-1]; last.Kind != "recover-done" {
		t.Errorf("the last event is %+v", last)
	}
	d := r.state.Decisions[len(r.state.Decisions)-1]
	if differs, err := d.Replay(); err != nil || differs != "" {
		t.Errorf("taken again: %v, %v", differs, err)
	}

	for _, name := range []string{"new1", "new2"} {
		r.must(t, Register{Registration: registrationOf(name)})
	}
	learners := func(o Operation) bool {
		c, is := o.Body.(ChangeMembership)
		return is && c.Group == 2 && len(c.Members) == 3
	}
	if planned := Plan(r.state, allUp(r.state)); !slices.ContainsFunc(planned, learners) {
		t.Errorf("planned is %+v", planned)
	}
}

// TestRecoverLosesNoOtherGroup: a node that has the last there is of another group
// is not removed for it; and who was to be recovered from, and died, is another
// matter than who lives.
func TestRecoverLosesNoOtherGroup(t *testing.T) {
	r := afterBringUp(t)
	for _, name := range []string{"new1", "new2", "new3"} {
		r.must(t, Register{Registration: registrationOf(name)})
	}
	far := r.must(t, AddGroups{Groups: []NewGroup{{Nodes: []raft.NodeID{2, 3, 4}, Preferred: 2}}}).(Added).Groups[0]
	down := func(ids ...raft.NodeID) {
		for _, id := range ids {
			r.must(t, Commit{Operations: []Operation{{Body: SetNodeState{id, shardmap.NodeDown}}}})
		}
	}
	removed := func(id raft.NodeID) {
		r.must(t, RemoveNode{Node: id})
	}
	down(4)
	removed(4) // the group at 2, 3 and 4 has a majority without it
	down(2, 3)
	r.refuses(t, RecoverGroup{Group: 2, Node: 1}, "bring one back")
	if n, _ := r.state.node(2); n.State != shardmap.NodeDown {
		t.Errorf("the refusal has made node 2 %v", n.State)
	}
	r.must(t, Commit{Operations: []Operation{{Body: SetNodeState{3, shardmap.NodeUp}}}})
	r.must(t, RecoverGroup{Group: far, Node: 3})
	r.refuses(t, RecoverGroup{Group: far, Node: 2}, "already")
}

// TestRecoveryChoosesTheLongestLog by the rule of elections, and no cut one if
// there is another.
func TestRecoveryChoosesTheLongestLog(t *testing.T) {
	r := afterBringUp(t)
	report := func(node, term, last uint64, suspect bool) *flotillav1.NodeReport {
		return &flotillav1.NodeReport{NodeId: node, Replica: &flotillav1.LocalReplica{Group: 2, ReplicaId: node, NodeId: node, LastTerm: term, LastIndex: last, Suspect: suspect}}
	}
	for _, x := range []struct {
		reports []*flotillav1.NodeReport
		best    uint64
	}{
		{[]*flotillav1.NodeReport{report(1, 3, 50, false), report(2, 4, 10, false)}, 2},
		{[]*flotillav1.NodeReport{report(2, 4, 10, false), report(1, 4, 11, false)}, 1},
		{[]*flotillav1.NodeReport{report(1, 9, 99, true), report(3, 4, 11, false)}, 3},
		{[]*flotillav1.NodeReport{report(1, 9, 99, true)}, 1},
	} {
		found, err := recovery(r.state, x.reports, &flotillav1.RecoverGroup{Group: 2})
		if err != nil || found.Node != x.best || len(found.Replicas) != len(x.reports) {
			t.Errorf("of %v: %v, %v", x.reports, found, err)
		}
	}
	if _, err := recovery(r.state, nil, &flotillav1.RecoverGroup{Group: 2}); err == nil || !strings.Contains(err.Error(), "bring one back") {
		t.Errorf("without any: %v", err)
	}
}
