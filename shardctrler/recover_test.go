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

// TestRecoverGroup: a group without its majority goes on from one replica, and then
// it gets new ones; the nodes of the others may come back.
func TestRecoverGroup(t *testing.T) {
	r := afterBringUp(t)
	down := func(ids ...raft.NodeID) {
		for _, id := range ids {
			r.must(t, Commit{Operations: []Operation{{Body: SetNodeState{id, shardmap.NodeDown}}}})
		}
	}
	down(2, 3)
	r.refuses(t, RecoverGroup{Group: raft.ConfigGroup, Node: 1, Replica: 1}, "config group")
	r.refuses(t, RecoverGroup{Group: 99, Node: 1, Replica: 1}, "no group 99")
	before, _ := r.state.group(2)
	replicaAt := func(node raft.NodeID) raft.ReplicaID {
		return before.Members[slices.IndexFunc(before.Members, func(m shardmap.Member) bool { return m.Node == node })].Replica
	}
	r.refuses(t, RecoverGroup{Group: 2, Node: 3, Replica: replicaAt(3)}, "not up")
	r.refuses(t, RecoverGroup{Group: 2, Node: 1, Replica: 77}, "no replica 77")
	order := RecoverGroup{Group: 2, Node: 1, Replica: replicaAt(1)}

	r.must(t, order)
	o, pending := r.state.pendingFor(2)
	b, recovers := o.Body.(Recover)
	if !pending || !recovers || b.Node != 1 || b.Epoch <= before.Epoch || b.Floor <= before.LastReplica {
		t.Fatalf("pending is %+v", o)
	}
	events := len(r.state.Events)
	r.must(t, order) // again
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
	r.must(t, Observe{Group: 2, Epoch: before.Epoch + 2, Members: before.Members}) // of a moment ago
	if _, pending := r.state.pendingFor(2); !pending {
		t.Error("what was observed before has ended it")
	}
	d := r.state.Decisions[len(r.state.Decisions)-1]
	if differs, err := d.Replay(); err != nil || differs != "" {
		t.Errorf("taken again: %v, %v", differs, err)
	}

	r.must(t, Commit{Operations: []Operation{{Body: SetNodeState{2, shardmap.NodeUp}}}})
	r.must(t, RecoverGroup{Group: 2, Node: 2, Replica: replicaAt(2)}) // node 1 cannot carry it out
	again, _ := r.state.pendingFor(2)
	if other := again.Body.(Recover); other.Node != 2 || other.Epoch <= b.Epoch {
		t.Fatalf("pending is %+v, not beyond %+v", other, b)
	}
	b = again.Body.(Recover)
	r.must(t, Observe{Group: 2, Epoch: b.Epoch, Members: []shardmap.Member{{Replica: b.Replica, Node: 2}}})
	after, _ := r.state.group(2)
	if _, pending := r.state.pendingFor(2); pending || len(after.Members) != 1 || after.Epoch != b.Epoch {
		t.Fatalf("afterwards it is %+v", after)
	}
	if last := r.state.Events[len(r.state.Events)-1]; last.Kind != "recover-done" {
		t.Errorf("the last event is %+v", last)
	}
	learners := func(o Operation) bool {
		c, is := o.Body.(ChangeMembership)
		return is && c.Group == 2 && len(c.Members) == 3
	}
	if planned := Plan(r.state, allUp(r.state)); !slices.ContainsFunc(planned, learners) {
		t.Errorf("planned is %+v", planned)
	}
}

// TestWhatAGroupIsRecoveredFrom: the longest log by the rule of elections, of a
// voter and not cut if there is one; and nothing as long as a leader could be
// elected, or while somebody does not answer.
func TestWhatAGroupIsRecoveredFrom(t *testing.T) {
	r := afterBringUp(t)
	r.must(t, Commit{Operations: []Operation{{Body: SetNodeState{3, shardmap.NodeDown}}}})
	type local = flotillav1.LocalReplica
	report := func(node uint64, l *local) *flotillav1.NodeReport {
		l.Group, l.NodeId, l.ReplicaId = 2, node, node
		if l.Voters == nil {
			l.Voters = []uint64{1, 2, 3, 4, 5}
		}
		return &flotillav1.NodeReport{NodeId: node, Replica: l}
	}
	none := &flotillav1.NodeReport{NodeId: 2} // its log is lost
	for _, x := range []struct {
		name    string
		reports []*flotillav1.NodeReport
		from    uint64
		node    uint64
		refused string
	}{
		{"a later term", []*flotillav1.NodeReport{report(1, &local{LastTerm: 3, LastIndex: 50}), report(2, &local{LastTerm: 4, LastIndex: 10})}, 0, 2, ""},
		{"a longer log", []*flotillav1.NodeReport{report(2, &local{LastTerm: 4, LastIndex: 10}), report(1, &local{LastTerm: 4, LastIndex: 11})}, 0, 1, ""},
		{"a whole log", []*flotillav1.NodeReport{report(1, &local{LastTerm: 9, Suspect: true}), report(2, &local{LastTerm: 4})}, 0, 2, ""},
		{"a voter", []*flotillav1.NodeReport{report(1, &local{LastTerm: 9, Voters: []uint64{2, 3, 4, 5}}), report(2, &local{LastTerm: 4})}, 0, 2, ""},
		{"whom the operator says", []*flotillav1.NodeReport{report(1, &local{LastTerm: 9}), report(2, &local{LastTerm: 4})}, 2, 2, ""},
		{"the last, though it was cut", []*flotillav1.NodeReport{none, report(1, &local{Voters: []uint64{1}, Suspect: true})}, 0, 1, ""},
		{"nobody", nil, 0, 0, "bring one back"},
		{"one leads", []*flotillav1.NodeReport{report(1, &local{Leads: true}), none}, 0, 0, "needs no recovery"},
		{"a majority", []*flotillav1.NodeReport{report(1, &local{Voters: []uint64{1, 2, 3}}), report(2, &local{Voters: []uint64{1, 2, 3}})}, 0, 0, "needs no recovery"},
		{"a majority of the old ones only", []*flotillav1.NodeReport{report(1, &local{Epoch: 4, Voters: []uint64{4, 5, 6}, Outgoing: []uint64{1, 2, 3}}), report(2, &local{Epoch: 3, Voters: []uint64{1, 2, 3}})}, 0, 2, ""},
		{"one does not answer", []*flotillav1.NodeReport{report(1, &local{})}, 0, 0, "do not answer"},
		{"one does not answer, and need not", []*flotillav1.NodeReport{report(1, &local{})}, 1, 1, ""},
		{"of one without it", []*flotillav1.NodeReport{report(1, &local{}), none}, 2, 0, "does not answer that it has"},
	} {
		found, command, err := recovery(r.state, x.reports, &flotillav1.RecoverGroup{Group: 2, Node: x.from})
		switch {
		case x.refused != "" && (err == nil || !strings.Contains(err.Error(), x.refused)):
			t.Errorf("%s: %v, %v", x.name, found, err)
		case x.refused == "" && (err != nil || found.Node != x.node || uint64(command.Node) != x.node || uint64(command.Replica) != x.node):
			t.Errorf("%s: %v, %+v, %v", x.name, found, command, err)
		}
	}
}
