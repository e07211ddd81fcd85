package shardctrler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// settled tells whether the cluster is as init asked for: groups born with all
// the shards between them, and the config group grown.
func (f *fakeCluster) settled(nodes, groups, shards, voters int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	born, total := 0, 0
	for id, g := range f.groups {
		if id == raft.ConfigGroup {
			if len(g.membership.Voters) != voters || len(g.membership.Learners) != 0 {
				return fmt.Errorf("config group: %d voters %d learners", len(g.membership.Voters), len(g.membership.Learners))
			}
			continue
		}
		if g.born != nil {
			born++
			total += len(g.born)
		}
		if g.births > 1 {
			f.t.Errorf("group %d was born %d times", id, g.births)
		}
	}
	if born != groups || total != shards {
		return fmt.Errorf("%d groups born with %d shards", born, total)
	}
	for _, n := range f.nodes {
		if !n.alive {
			continue
		}
		m := n.ctrl.Maps().Current()
		if m == nil || len(m.Nodes) != nodes || m.Config != 1 {
			return fmt.Errorf("%s has no such map", n.reg.Name)
		}
		for _, a := range m.Shards {
			if a.Group < 2 || a.Generation != 1 {
				return fmt.Errorf("%s: a shard is %+v", n.reg.Name, a)
			}
		}
		g, _ := m.Group(raft.ConfigGroup)
		if len(g.Members) != voters || slices.ContainsFunc(g.Members, func(m shardmap.Member) bool { return m.Learner }) {
			return fmt.Errorf("%s sees config members %v", n.reg.Name, g.Members)
		}
	}
	return nil
}

func initRequest(shards, replicas, groups uint32) *flotillav1.InitRequest {
	return &flotillav1.InitRequest{Shards: shards, Replicas: replicas, Groups: groups}
}

func mustInit(t *testing.T, n *fakeNode, r *flotillav1.InitRequest) *flotillav1.InitResponse {
	t.Helper()
	answer, err := n.controller().Init(context.Background(), r)
	if err != nil {
		t.Fatalf("init: %v", err)
	}
	return answer
}

func waitSettled(t *testing.T, f *fakeCluster, limit time.Duration, nodes, groups, shards, voters int) time.Duration {
	t.Helper()
	var last error
	began := time.Now()
	for {
		if last = f.settled(nodes, groups, shards, voters); last == nil {
			return time.Since(began)
		}
		if time.Since(began) > limit {
			t.Fatalf("not settled after %v: %v\n%s", limit, last, f.describe())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// describe is what a failed test shows.
func (f *fakeCluster) describe() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b strings.Builder
	for id, g := range f.groups {
		fmt.Fprintf(&b, "group %d leader %d term %d %+v born %d\n", id, g.leader, g.term, g.membership, len(g.born))
	}
	for _, n := range f.nodes {
		fmt.Fprintf(&b, "%s alive %v id %v waits %v\n", n.reg.Name, n.alive, n.identity.Node, n.ctrl.WaitingFor())
		if n.machine != nil && n.alive {
			s := n.machine.State()
			for _, o := range s.Operations {
				fmt.Fprintf(&b, "  pending %+v\n", o)
			}
			for _, e := range s.Events {
				fmt.Fprintf(&b, "  %d %s %s: %s\n", e.ID, e.Kind, e.Subject, e.Reason)
			}
		}
	}
	return b.String()
}

func TestBringUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		defer f.close()
		a := f.add("a", "z1")
		f.add("b", "z2")
		f.add("c", "z3")
		answer := mustInit(t, a, initRequest(256, 3, 4))
		if answer.Warning == "" || len(answer.ClusterId) != 36 {
			t.Errorf("init answered %v", answer)
		}
		took := waitSettled(t, f, 5*time.Second, 3, 4, 256, 3)
		// Two elections of 100 ms are in it: of the config group and of the others.
		if took > 600*time.Millisecond {
			t.Errorf("bring-up took %v", took)
		}
		f.checkLeadersEven(t)
	})
}

// checkLeadersEven waits until leaders are where they are preferred.
func (f *fakeCluster) checkLeadersEven(t *testing.T) {
	t.Helper()
	waitFor(t, "leaders within one of each other", 10*time.Second, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		led := make(map[raft.NodeID]int)
		for _, n := range f.nodes {
			led[n.identity.Node] = 0
		}
		for id, g := range f.groups {
			if id != raft.ConfigGroup {
				led[g.leader]++
			}
		}
		least, most := 1<<30, 0
		for _, n := range led {
			least, most = min(least, n), max(most, n)
		}
		return most-least <= 1
	})
}

func TestBringUpGrowsToFive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		defer f.close()
		a := f.add("a", "z1")
		mustInit(t, a, initRequest(64, 1, 2))
		waitSettled(t, f, 5*time.Second, 1, 2, 64, 1)
		for i, name := range []string{"b", "c"} {
			f.add(name, fmt.Sprint("z", i))
		}
		waitSettled(t, f, 5*time.Second, 3, 2, 64, 3)
		f.add("d", "z1")
		waitFor(t, "four nodes", time.Second, func() bool { return f.settled(4, 2, 64, 3) == nil })
		time.Sleep(3 * time.Second)
		if err := f.settled(4, 2, 64, 3); err != nil {
			t.Fatalf("four nodes: %v", err)
		}
		f.add("e", "z2")
		waitSettled(t, f, 5*time.Second, 5, 2, 64, 5)
	})
}

// TestBringUpCrashingTheLeader crashes the config group's leader before or
// after each proposal of the bring-up, and later ones once more.
func TestBringUpCrashingTheLeader(t *testing.T) {
	for number := range 24 {
		for _, applied := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d-%v", number, applied), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFakeCluster(t)
					f.crash = func(proposal int, after bool) bool {
						return (proposal == number || proposal == number+3) && after == applied
					}
					defer f.close()
					a := f.add("a", "z1")
					f.add("b", "z2")
					f.add("c", "z3")
					for began := time.Now(); ; {
						_, err := a.controller().Init(context.Background(), initRequest(32, 3, 4))
						if err == nil || status.Code(err) == codes.FailedPrecondition {
							break
						}
						if time.Since(began) > 30*time.Second {
							t.Fatalf("init: %v", err)
						}
						time.Sleep(50 * time.Millisecond)
					}
					waitSettled(t, f, 30*time.Second, 3, 4, 32, 3)
					f.checkHistory(t)
				})
			})
		}
	}
}

// checkHistory holds all replicas' states to be the same, with one config and
// growing operation ids.
func (f *fakeCluster) checkHistory(t *testing.T) {
	t.Helper()
	waitFor(t, "all operations finished", 10*time.Second, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, n := range f.nodes {
			if n.machine != nil && n.alive && len(n.machine.State().Operations) > 0 {
				return false
			}
		}
		return true
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	var states []*State
	for _, n := range f.nodes {
		if n.machine != nil && n.alive && n.isMember(f.groups[raft.ConfigGroup]) {
			n.catchUp()
			states = append(states, n.machine.State())
		}
	}
	for _, s := range states {
		if len(s.Configs) != 1 {
			t.Errorf("%d configs", len(s.Configs))
		}
		if !slices.Equal(encodedState(s), encodedState(states[0])) {
			t.Errorf("replicas differ")
		}
	}
}

func TestInitIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		defer f.close()
		a, b := f.add("a", ""), f.add("b", "")
		ctx := context.Background()
		for _, wrong := range []*flotillav1.InitRequest{initRequest(100, 3, 4), initRequest(256, 0, 4), initRequest(256, 10, 4), initRequest(4, 3, 5), initRequest(0, 3, 1), initRequest(1<<20, 3, 1)} {
			if _, err := a.controller().Init(ctx, wrong); status.Code(err) != codes.InvalidArgument {
				t.Errorf("%v: %v", wrong, err)
			}
		}
		if _, err := a.controller().GetStatus(ctx, &flotillav1.GetStatusRequest{}); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "flotilla init") {
			t.Errorf("status before init: %v", err)
		}
		mustInit(t, a, initRequest(256, 3, 4))
		for _, n := range []*fakeNode{a, b} {
			if _, err := n.controller().Init(ctx, initRequest(256, 3, 4)); status.Code(err) != codes.FailedPrecondition {
				t.Errorf("a second init at %s: %v", n.reg.Name, err)
			}
		}
		if got := a.machine.State(); len(got.Nodes) > 2 || got.Policy.Groups != 4 || len(got.Shards) != 256 {
			t.Errorf("a refused init changed the state: %+v", got.Policy)
		}
	})
}

func TestRegisterIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		defer f.close()
		a, b := f.add("a", ""), f.add("b", "")
		mustInit(t, a, initRequest(16, 3, 2))
		waitFor(t, "b registered", time.Second, func() bool { _, ok := b.controller().Identity(); return ok })
		ctx := context.Background()
		_, err := b.controller().Register(ctx, &flotillav1.RegisterRequest{RandomId: "other", Name: "a", Addr: "x:1"})
		if status.Code(err) != codes.AlreadyExists || !strings.Contains(err.Error(), "flotilla node remove a") {
			t.Errorf("a known name with another random id: %v", err)
		}
		again, err := b.controller().Register(ctx, &flotillav1.RegisterRequest{RandomId: "random-b", Name: "b", Addr: "b:7000"})
		if err != nil || again.NodeId != 2 {
			t.Errorf("register again: %v %v", again, err)
		}
		_, err = b.controller().Register(ctx, &flotillav1.RegisterRequest{RandomId: "random-b", Name: "b", Addr: "b:7000", ClusterId: "another"})
		if status.Code(err) != codes.FailedPrecondition {
			t.Errorf("another cluster: %v", err)
		}
		_, err = b.controller().Register(ctx, &flotillav1.RegisterRequest{RandomId: "new", Name: "new", Addr: "b:7000", NodeId: 9})
		if status.Code(err) != codes.FailedPrecondition {
			t.Errorf("an unknown node id: %v", err)
		}
		if got := len(a.machine.State().Nodes); got != 2 {
			t.Errorf("%d nodes", got)
		}
	})
}

// TestRestartElsewhere: all nodes stop; they start again at new addresses,
// with gossip as the only help, and the table has the new ones.
func TestRestartElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		defer f.close()
		nodes := []*fakeNode{f.add("a", ""), f.add("b", ""), f.add("c", "")}
		mustInit(t, nodes[0], initRequest(16, 3, 2))
		waitSettled(t, f, 5*time.Second, 3, 2, 16, 3)
		for _, n := range nodes {
			n.crash()
		}
		for _, n := range nodes {
			f.mu.Lock()
			delete(f.nodes, n.addr)
			n.addr = "moved-" + n.addr
			n.reg.Addr = n.addr
			f.nodes[n.addr] = n
			f.mu.Unlock()
			n.start()
		}
		waitFor(t, "new addresses in every map", 5*time.Second, func() bool {
			for _, n := range nodes {
				m := n.controller().Maps().Current()
				for _, entry := range m.Nodes {
					if !strings.HasPrefix(entry.Addr, "moved-") {
						return false
					}
				}
			}
			return true
		})
	})
}

// TestRestartRemembers: a node that starts when nobody else is there still
// knows the map.
func TestRestartRemembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		defer f.close()
		nodes := []*fakeNode{f.add("a", ""), f.add("b", ""), f.add("c", "")}
		mustInit(t, nodes[0], initRequest(16, 3, 2))
		waitSettled(t, f, 5*time.Second, 3, 2, 16, 3)
		time.Sleep(2 * saveEvery)
		for _, n := range nodes {
			n.crash()
		}
		nodes[1].start()
		m := nodes[1].controller().Maps().Current()
		if m == nil || len(m.Nodes) != 3 || m.Config != 1 || m.Shards[0].Group == 0 {
			t.Fatalf("remembered %+v", m)
		}
	})
}

// TestWatchFollowsWithoutReplica: a node without a replica of the config group
// gets maps by stream, also after the node it watched has crashed.
func TestWatchFollowsWithoutReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		defer f.close()
		a := f.add("a", "")
		f.add("b", "")
		f.add("c", "")
		mustInit(t, a, initRequest(16, 3, 2))
		waitSettled(t, f, 5*time.Second, 3, 2, 16, 3)
		d := f.add("d", "")
		waitSettled(t, f, 5*time.Second, 4, 2, 16, 3)
		if d.machine != nil {
			t.Fatal("d has a replica of the config group")
		}
		a.crash()
		waitFor(t, "node 1 down in d's map", 15*time.Second, func() bool {
			m := d.controller().Maps().Current()
			n, _ := m.Node(1)
			return n.State == shardmap.NodeDown
		})
		a.start()
		waitFor(t, "node 1 up in d's map", 5*time.Second, func() bool {
			n, _ := d.controller().Maps().Current().Node(1)
			return n.State == shardmap.NodeUp
		})
		// d forwards what it cannot answer.
		ctx := context.Background()
		linear, err := d.controller().GetMap(ctx, &flotillav1.GetMapRequest{Linearizable: true})
		if err != nil || len(linear.Nodes) != 4 {
			t.Errorf("linearizable map at d: %v", err)
		}
		config, err := d.controller().GetConfig(ctx, &flotillav1.GetConfigRequest{})
		if err != nil || config.Num != 1 || len(config.Shards) != 16 || len(config.Groups) != 2 {
			t.Errorf("config at d: %v %v", config, err)
		}
		if _, err := d.controller().GetConfig(ctx, &flotillav1.GetConfigRequest{Num: 2}); status.Code(err) != codes.NotFound {
			t.Errorf("config 2: %v", err)
		}
		events, err := d.controller().ListEvents(ctx, &flotillav1.ListEventsRequest{Limit: 3})
		if err != nil || len(events.Events) != 3 {
			t.Errorf("events at d: %v %v", events, err)
		}
		for _, want := range []struct {
			key            raft.ReplicaKey
			removed, known bool
		}{{raft.ReplicaKey{Group: 2, Replica: 1}, false, true}, {raft.ReplicaKey{Group: 2, Replica: 9}, false, false}, {raft.ReplicaKey{Group: 99, Replica: 1}, false, false}} {
			got, err := d.controller().ReplicaState(ctx, &flotillav1.ReplicaStateRequest{Group: uint64(want.key.Group), ReplicaId: uint64(want.key.Replica)})
			if err != nil || got.Removed != want.removed || got.Known != want.known {
				t.Errorf("%v: %v %v", want.key, got, err)
			}
		}
	})
}

// TestALaggingReplicaDoesNotSayWhatIsGone: whether a replica was removed is
// answered from the state as of now, also by a node that has not applied it yet.
func TestALaggingReplicaDoesNotSayWhatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		defer f.close()
		a := f.add("a", "")
		b := f.add("b", "")
		f.add("c", "")
		mustInit(t, a, initRequest(16, 3, 2))
		waitSettled(t, f, 5*time.Second, 3, 2, 16, 3)
		f.mu.Lock()
		leader, other := a, b
		if f.groups[raft.ConfigGroup].leader == b.identity.Node {
			leader, other = b, a
		}
		other.lags = true
		f.mu.Unlock()
		g, _ := leader.machine.State().group(2)
		kept := slices.DeleteFunc(slices.Clone(g.Members), func(m shardmap.Member) bool { return m.Replica == 1 })
		if _, err := leader.controller().propose(t.Context(), Observe{Group: 2, Epoch: g.Epoch + 1, Members: kept}); err != nil {
			t.Fatal(err)
		}
		if removed, _ := other.machine.State().Removed(raft.ReplicaKey{Group: 2, Replica: 1}); removed {
			t.Fatal("the replica does not lag: the test tests nothing")
		}
		got, err := other.controller().ReplicaState(t.Context(), &flotillav1.ReplicaStateRequest{Group: 2, ReplicaId: 1})
		if err != nil || !got.Removed || !got.Known {
			t.Errorf("a replica that was removed: %v, %v", got, err)
		}
		got, err = other.controller().ReplicaState(t.Context(), &flotillav1.ReplicaStateRequest{Group: 2, ReplicaId: uint64(g.LastReplica) + 1})
		if err != nil || got.Removed || got.Known {
			t.Errorf("a replica that nobody knows yet: %v, %v", got, err)
		}
	})
}

func TestStatusAnswersAnyway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		defer f.close()
		nodes := []*fakeNode{f.add("a", ""), f.add("b", ""), f.add("c", "")}
		mustInit(t, nodes[0], initRequest(16, 3, 4))
		waitSettled(t, f, 5*time.Second, 3, 4, 16, 3)
		f.checkLeadersEven(t)
		ctx := context.Background()
		s, err := nodes[2].controller().GetStatus(ctx, &flotillav1.GetStatusRequest{Shards: true})
		if err != nil || len(s.Nodes) != 3 || len(s.Groups) != 5 || len(s.Shards) != 16 || len(s.WaitingFor) != 0 {
			t.Fatalf("status: %v %v", s, err)
		}
		for _, shard := range s.Shards {
			if shard.Keys != 7 || shard.State != "owned" {
				t.Errorf("shard %v", shard)
			}
		}
		for _, g := range s.Groups {
			if g.LeaderNode == 0 || g.Term <= 0 || len(g.Replicas) != 3 {
				t.Errorf("group %v", g)
			}
		}
		nodes[1].crash()
		began := time.Now()
		s, err = nodes[2].controller().GetStatus(ctx, &flotillav1.GetStatusRequest{})
		if took := time.Since(began); err != nil || took > statusTimeout {
			t.Fatalf("status with a dead node: %v after %v", err, took)
		}
		if down := s.Nodes[nodes[1].identity.Node-1]; down.Leaders != -1 || down.Replicas != -1 || down.Node.State != "down" {
			t.Errorf("the dead node: %v", down)
		}
		for _, g := range s.Groups {
			if g.LeaderNode == 0 && (g.Term != -1 || g.Replicas[0].MatchLag != -1) {
				t.Errorf("a group without a leader: %v", g)
			}
		}
	})
}

// TestTransferOnRequest: what an operator asks for lasts.
func TestTransferOnRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		defer f.close()
		nodes := []*fakeNode{f.add("a", ""), f.add("b", ""), f.add("c", "")}
		mustInit(t, nodes[0], initRequest(16, 3, 1))
		waitSettled(t, f, 5*time.Second, 3, 1, 16, 3)
		ctx := context.Background()
		wish := func(to uint64) *flotillav1.ExecuteRequest {
			return &flotillav1.ExecuteRequest{Group: 2, Operation: &flotillav1.ExecuteRequest_TransferLeader{TransferLeader: &flotillav1.TransferLeader{ToNode: to}}}
		}
		if _, err := nodes[1].controller().Execute(ctx, wish(9)); status.Code(err) != codes.InvalidArgument {
			t.Errorf("to a node that has no replica: %v", err)
		}
		if answer, err := nodes[1].controller().Execute(ctx, wish(3)); err != nil || !answer.Accepted {
			t.Fatalf("wish: %v %v", answer, err)
		}
		leads := func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.groups[2].leader == 3 }
		waitFor(t, "node 3 leads group 2", 10*time.Second, leads)
		time.Sleep(time.Minute)
		if !leads() {
			t.Error("the leader went elsewhere")
		}
	})
}

// TestStoppingNodeGetsNothingBack: leaderships that a stopping node has handed
// over are not handed back to it, also when it led the config group.
func TestStoppingNodeGetsNothingBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		defer f.close()
		nodes := []*fakeNode{f.add("a", ""), f.add("b", ""), f.add("c", "")}
		mustInit(t, nodes[0], initRequest(16, 3, 3))
		waitSettled(t, f, 5*time.Second, 3, 3, 16, 3)
		f.checkLeadersEven(t)
		time.Sleep(10 * time.Second)
		nodes[0].controller().BeginStop()
		f.mu.Lock()
		for _, g := range f.groups {
			if g.leader == 1 {
				g.leader, g.term = 2, g.term+1
			}
		}
		f.mu.Unlock()
		f.changed()
		for range 200 {
			time.Sleep(100 * time.Millisecond)
			f.mu.Lock()
			for id, g := range f.groups {
				if g.leader == 1 {
					t.Errorf("group %d was handed back", id)
				}
			}
			f.mu.Unlock()
		}
	})
}

func TestExecuteRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		defer f.close()
		a := f.add("a", "")
		mustInit(t, a, initRequest(16, 1, 1))
		waitSettled(t, f, 5*time.Second, 1, 1, 16, 1)
		ctx := context.Background()
		transfer := &flotillav1.ExecuteRequest_TransferLeader{TransferLeader: &flotillav1.TransferLeader{ToNode: 1}}
		if _, err := a.controller().Execute(ctx, &flotillav1.ExecuteRequest{ClusterId: "another", OperationId: 1, Group: 2, Operation: transfer}); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("another cluster: %v", err)
		}
		if _, err := a.controller().Execute(ctx, &flotillav1.ExecuteRequest{OperationId: 1, Group: 2, Operation: transfer}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("no cluster: %v", err)
		}
		if answer, err := a.controller().Execute(ctx, &flotillav1.ExecuteRequest{ClusterId: a.identity.ClusterID, OperationId: 1, Group: 77, Operation: transfer}); err != nil || answer.Accepted {
			t.Errorf("no such group: %v %v", answer, err)
		}
		stale := &flotillav1.ExecuteRequest_ChangeMembership{ChangeMembership: &flotillav1.ChangeMembership{Members: []*flotillav1.GroupMember{{ReplicaId: 1, NodeId: 1}, {ReplicaId: 2, NodeId: 2}}}}
		if answer, err := a.controller().Execute(ctx, &flotillav1.ExecuteRequest{ClusterId: a.identity.ClusterID, OperationId: 1, Group: 2, Epoch: 0, Operation: stale}); err != nil || answer.Accepted {
			t.Errorf("a passed epoch: %v %v", answer, err)
		}
		done := &flotillav1.ExecuteRequest_ChangeMembership{ChangeMembership: &flotillav1.ChangeMembership{Members: []*flotillav1.GroupMember{{ReplicaId: 1, NodeId: 1}}}}
		if answer, err := a.controller().Execute(ctx, &flotillav1.ExecuteRequest{ClusterId: a.identity.ClusterID, OperationId: 1, Group: 2, Epoch: 0, Operation: done}); err != nil || !answer.Accepted {
			t.Errorf("a change that was made: %v %v", answer, err)
		}
	})
}

// TestForwardingIsBounded: a call that has been passed on often enough ends.
func TestForwardingIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		defer f.close()
		a, b := f.add("a", ""), f.add("b", "")
		mustInit(t, a, initRequest(16, 1, 1))
		waitSettled(t, f, 5*time.Second, 2, 1, 16, 1)
		a.crash()
		began := time.Now()
		_, err := b.controller().GetConfig(context.Background(), &flotillav1.GetConfigRequest{})
		if took := time.Since(began); status.Code(err) != codes.Unavailable || took > callTimeout+time.Second {
			t.Errorf("%v after %v", err, took)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		defer cancel()
		if _, err := b.controller().GetConfig(ctx, &flotillav1.GetConfigRequest{}); err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("with a deadline: %v", err)
		}
	})
}
