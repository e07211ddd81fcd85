package shardctrler

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

func smallMap(revision uint64, generation shardmap.Generation) *shardmap.Map {
	return &shardmap.Map{ClusterID: "c", Revision: revision, Config: 1,
		Shards: []shardmap.Assignment{{Group: 2, Generation: generation}},
		Nodes:  []shardmap.Node{{ID: 1, Name: "a", Addr: "a:1"}}}
}

func TestSourceTakesWhatIsNewer(t *testing.T) {
	s := newMapSource(nil, nil, slog.New(slog.DiscardHandler))
	if s.offer(smallMap(1, 1)) {
		t.Error("a map was taken before it is known whose")
	}
	s.belong("c")
	changed := s.Changed()
	if !s.offer(smallMap(5, 1)) || s.Current().Revision != 5 {
		t.Error("the first map was not taken")
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was told")
	}
	foreign := smallMap(99, 9)
	foreign.ClusterID = "another"
	if s.offer(foreign) || s.offer(nil) || s.offer(smallMap(4, 1)) || s.offer(smallMap(5, 1)) {
		t.Error("an old map, or one of another cluster, was news")
	}
	if !s.offer(smallMap(4, 2)) || s.Current().Revision != 5 || s.Current().Shards[0].Generation != 2 {
		t.Errorf("a higher generation of a lower revision: %+v", s.Current())
	}
	s.Refresh(4)
	if len(s.kick) != 0 {
		t.Error("a refresh for what is known")
	}
	s.Refresh(5)
	s.Refresh(5)
	if len(s.kick) != 1 {
		t.Error("no refresh for what is not known")
	}
	s.belong("another")
	if s.Current() != nil {
		t.Error("the map of another cluster was kept")
	}
}

// TestSourceRemembersSparingly: at once where somebody is, now and then what
// only concerns shards.
func TestSourceRemembersSparingly(t *testing.T) {
	saves := 0
	s := newMapSource(nil, func([]byte) error { saves++; return nil }, slog.New(slog.DiscardHandler))
	s.belong("c")
	now := time.Unix(1_000, 0)
	step := func(what string, m *shardmap.Map, after time.Duration, want int) {
		t.Helper()
		s.offer(m)
		now = now.Add(after)
		s.remember(now)
		if saves != want {
			t.Errorf("%s: saved %d times, want %d", what, saves, want)
		}
	}
	step("the first", smallMap(1, 1), 0, 1)
	step("nothing new", nil, saveEvery, 1)
	step("a shard, long after", smallMap(2, 2), 0, 2)
	step("a shard, at once", smallMap(3, 3), time.Millisecond, 2)
	step("later", nil, saveEvery, 3)
	moved := smallMap(4, 3)
	moved.Nodes[0].Addr = "b:1"
	step("a node, at once", moved, time.Millisecond, 4)
	grown := smallMap(5, 3)
	grown.Nodes[0].Addr = "b:1"
	grown.Groups = []shardmap.Group{{ID: 1, Members: []shardmap.Member{{Replica: 1, Node: 1}}}}
	step("a group, at once", grown, time.Millisecond, 5)
}

// TestOnlyOriginsServeOtherSources: a node without the config group ends the
// watch of another node's source, and serves a client's.
func TestOnlyOriginsServeOtherSources(t *testing.T) {
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
		conn, err := a.dial(d.addr)
		if err != nil {
			t.Fatal(err)
		}
		for origin, want := range map[bool]codes.Code{true: codes.Unavailable, false: codes.DeadlineExceeded} {
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
			defer cancel()
			stream, err := flotillav1.NewClusterClient(conn).WatchMap(ctx, &flotillav1.WatchMapRequest{Origin: origin})
			if err != nil {
				t.Fatal(err)
			}
			if m, err := stream.Recv(); err != nil || len(m.Nodes) != 4 {
				t.Fatalf("origin %v: %v", origin, err)
			}
			began := time.Now()
			for err = nil; err == nil; { // the map may still change
				_, err = stream.Recv()
			}
			if origin && status.Code(err) != want || !origin && time.Since(began) < time.Second {
				t.Errorf("origin %v: %v after %v", origin, err, time.Since(began))
			}
		}
	})
}

// TestImpatienceBringsTheMapNoLater: those who want a newer map ask again and
// again, faster than it can come.
func TestImpatienceBringsTheMapNoLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		f.latency = 20 * time.Millisecond
		defer f.close()
		nodes := []*fakeNode{f.add("a", ""), f.add("b", ""), f.add("c", "")}
		mustInit(t, nodes[0], initRequest(16, 3, 2))
		waitSettled(t, f, 5*time.Second, 3, 2, 16, 3)
		d := f.add("d", "") // has no replica of the config group
		waitSettled(t, f, 5*time.Second, 4, 2, 16, 3)
		maps := d.controller().Maps()
		ctx, stop := context.WithCancel(context.Background())
		var asking sync.WaitGroup
		defer asking.Wait()
		defer stop()
		asking.Go(func() {
			for ctx.Err() == nil {
				maps.Refresh(maps.Current().Revision)
				time.Sleep(time.Millisecond)
			}
		})
		time.Sleep(time.Second)
		before := maps.Current().Revision
		if _, err := nodes[0].controller().ChangeCluster(ctx, &flotillav1.ChangeClusterRequest{
			Change: &flotillav1.ChangeClusterRequest_AddGroups{AddGroups: 1}}); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the map has come", 2*time.Second, func() bool { return maps.Current().Revision > before })
	})
}

// TestInitTwiceAtOnce: one of them makes the cluster.
func TestInitTwiceAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		defer f.close()
		a := f.add("a", "")
		var done sync.WaitGroup
		errs := make([]error, 4)
		for i := range errs {
			done.Add(1)
			go func() {
				defer done.Done()
				_, errs[i] = a.controller().Init(context.Background(), initRequest(16, 1, uint32(i+1)))
			}()
		}
		done.Wait()
		made := 0
		for i, err := range errs {
			switch {
			case err == nil:
				made++
				if got := a.machine.State().Policy.Groups; got != uint64(i+1) {
					t.Errorf("the policy is that of another init: %d groups", got)
				}
			case status.Code(err) != codes.FailedPrecondition:
				t.Errorf("init %d: %v", i, err)
			}
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if made != 1 || a.founded != 1 {
			t.Errorf("%d of %d were made, the node was founded %d times", made, len(errs), a.founded)
		}
	})
}

// TestReportOfAnotherNode: who answers at an address may not be who is meant.
func TestReportOfAnotherNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		defer f.close()
		nodes := []*fakeNode{f.add("a", ""), f.add("b", ""), f.add("c", "")}
		mustInit(t, nodes[0], initRequest(16, 3, 2))
		waitSettled(t, f, 5*time.Second, 3, 2, 16, 3)
		nodes[1].crash()
		f.mu.Lock()
		f.nodes["b:7000"] = nodes[2]
		f.mu.Unlock()
		time.Sleep(10 * time.Second)
		s, err := nodes[0].controller().GetStatus(context.Background(), &flotillav1.GetStatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range s.Nodes {
			if n.Node.Name == "b" && (n.Leaders != -1 || n.Node.State != "down") {
				t.Errorf("b is reported by somebody else: %v", n)
			}
		}
	})
}
