package multiraft

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
)

// cutBetween cuts all links between two sets of nodes, or mends them.
func (w *world) cutBetween(a, b []raft.NodeID, cut bool) {
	for _, x := range a {
		for _, y := range b {
			hx, hy := w.nodes[x].host, w.nodes[y].host
			if was := w.cut[[2]raft.NodeID{x, y}]; was == cut {
				continue
			}
			w.cut[[2]raft.NodeID{x, y}], w.cut[[2]raft.NodeID{y, x}] = cut, cut
			switch {
			case hx == nil || hy == nil:
			case cut:
				hx.PeerDown(y)
				hy.PeerDown(x)
			default:
				hx.PeerUp(y, w.nodes[y].boot)
				hy.PeerUp(x, w.nodes[x].boot)
			}
		}
	}
}

// staleRead asks and does not wait.
func (w *world) staleRead(id raft.NodeID, g raft.GroupID, bound time.Duration) (answered *bool, err *error) {
	answered, err = new(bool), new(error)
	w.nodes[id].host.ReadIndex(g, ReadOptions{Follower: true, Stale: bound}, func(_ raft.Index, e error) { *answered, *err = true, e })
	return answered, err
}

func (w *world) applied(id raft.NodeID, g raft.GroupID) raft.Index {
	r, ok := w.nodes[id].host.find(g)
	if !ok {
		return 0
	}
	return r.apply.appliedIndex()
}

func TestAStaleReadAsksOncePerBoundAndLetsAQuietGroupSleep(t *testing.T) {
	w := newWorld(t, 3, nil)
	w.group(2, 1, 1, 2, 3)
	w.mustPropose(2, "a")
	w.leader(2)
	for _, id := range w.order {
		if _, err := w.read(id, 2, ReadOptions{Follower: true, Stale: 10 * time.Second}); err != nil {
			t.Fatal(err)
		}
	}
	asleep := func() bool {
		for _, id := range w.order {
			if w.nodes[id].host.Stats().Awake > 0 {
				return false
			}
		}
		return true
	}
	w.until("all sleep", asleep)
	for _, id := range w.order {
		if answered, err := w.staleRead(id, 2, 10*time.Second); !*answered || *err != nil {
			t.Errorf("node %d, within the bound: answered at once %v, %v", id, *answered, *err)
		}
	}
	w.step()
	if !asleep() || len(w.wires) > 0 {
		t.Error("reads within the bound woke the group")
	}
	w.run(10 * time.Second)
	if answered, _ := w.staleRead(3, 2, 10*time.Second); *answered {
		t.Error("answered at once when the last answer was older than the bound")
	}
	w.until("it is answered", func() bool { a, _ := w.staleRead(3, 2, time.Second); return *a })
}

// Either clock may not have moved: the monotonic one while the machine slept,
// the wall clock when it was set back.
func TestTheAgeOfAnAnswerIsTheGreaterOfTwoClocks(t *testing.T) {
	r := &replica{}
	r.apply.init(7)
	at := time.Now()
	for _, test := range []struct {
		passed  time.Duration
		setWall time.Duration // beside what has passed
		want    bool
	}{
		{time.Second, 0, true},
		{3 * time.Second, 0, false},
		{time.Second, time.Hour, false},
		{3 * time.Second, -time.Hour, false},
	} {
		r.heardIndex.Store(&heardIndex{index: 7, at: at, wall: at.Add(-test.setWall).UnixMilli()})
		if _, ok := r.recent(at.Add(test.passed), 2*time.Second); ok != test.want {
			t.Errorf("%+v: recent %v", test, ok)
		}
	}
}

// A leader and its follower fall asleep, and are cut off from a majority that
// elects another and goes on: neither hears of it.
func TestStaleReadsBesideASleepingLeaderThatWasReplaced(t *testing.T) {
	w := newWorld(t, 5, nil)
	w.group(2, 1, 1, 2, 3, 4, 5)
	w.mustPropose(2, "a")
	w.until("2 sleeps", func() bool { s, _ := w.nodes[2].host.Status(2); return s.Asleep })
	if _, err := w.read(2, 2, ReadOptions{Follower: true, Stale: time.Second}); err != nil {
		t.Fatal(err)
	}
	w.until("2 sleeps again", func() bool { s, _ := w.nodes[2].host.Status(2); return s.Asleep })
	w.cutBetween([]raft.NodeID{1, 2}, []raft.NodeID{3, 4, 5}, true)
	var res Result
	w.until("the majority goes on", func() bool {
		leader, _, ok := w.nodes[3].host.Leader(2)
		if !ok || leader.Node < 3 {
			return false
		}
		res = w.propose(leader.Node, 2, "b")
		return res.Err == nil
	})
	w.run(2 * time.Second)
	if s, _ := w.nodes[2].host.Status(2); !s.Asleep || s.Leader.Node != 1 {
		t.Fatalf("2 does not sleep beside 1: %+v", s)
	}
	answered, err := w.staleRead(2, 2, time.Second)
	w.until("the read ends", func() bool { return *answered })
	if *err == nil {
		t.Fatalf("served at %d, %d was committed over two seconds ago", w.applied(2, 2), res.Index)
	}
}

// TestStaleReadsStayWithinTheirBound lets nodes crash and be cut off in any
// combination, messages take their time, and groups fall asleep in between. A
// stale read must have applied all that was acknowledged before it was asked
// less its bound.
func TestStaleReadsStayWithinTheirBound(t *testing.T) {
	seeds := 60
	if testing.Short() {
		seeds = 8
	}
	var sum staleTally
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { sum.add(runStaleSeed(t, uint64(seed))) })
	}
	t.Logf("%+v", sum)
	if sum.atOnce < 100*seeds || sum.asked < 50*seeds || sum.behind < seeds {
		t.Errorf("%+v in %d seeds: the world is too hard, or too easy, to tell anything", sum, seeds)
	}
}

// staleTally counts the reads that were served.
type staleTally struct{ atOnce, asked, behind int }

func (a *staleTally) add(b staleTally) {
	a.atOnce += b.atOnce
	a.asked += b.asked
	a.behind += b.behind
}

type staleWorld struct {
	*world
	rng   *rand.Rand
	acked []ackedWrite // in the order of time
	sum   staleTally
}

type ackedWrite struct {
	at    time.Time
	index raft.Index
}

// known is the highest index that was acknowledged by then.
func (s *staleWorld) known(by time.Time) (highest raft.Index) {
	for _, a := range s.acked {
		if !a.at.After(by) {
			highest = max(highest, a.index)
		}
	}
	return highest
}

func runStaleSeed(t *testing.T, seed uint64) staleTally {
	s := &staleWorld{world: newWorld(t, 5, nil), rng: rand.New(rand.NewPCG(seed, 123))}
	s.world.rand = rand.New(rand.NewPCG(seed, 8))
	s.slow = time.Duration(1+s.rng.IntN(300)) * time.Millisecond
	s.group(2, 1, 1, 2, 3, 4, 5)
	var away []raft.NodeID // cut off from the others
	down := raft.NodeID(0)
	busy := true
	for range 8000 {
		s.step()
		if busy && s.rng.IntN(20) == 0 {
			s.write()
		}
		if s.rng.IntN(10) == 0 {
			s.stale()
		}
		switch s.rng.IntN(1000) {
		case 0, 1:
			s.cutBetween(away, s.without(away), false)
			away = s.some()
			s.cutBetween(away, s.without(away), true)
		case 2:
			s.cutBetween(away, s.without(away), false)
			away = nil
		case 3:
			if down == 0 {
				down = s.anyNode()
				s.crash(down)
			} else {
				s.up(down)
				down = 0
			}
		case 4, 5:
			busy = !busy
		}
	}
	if t.Failed() {
		s.dump()
	}
	return s.sum
}

func (s *staleWorld) anyNode() raft.NodeID { return s.order[s.rng.IntN(len(s.order))] }

// some are one or two nodes.
func (s *staleWorld) some() []raft.NodeID {
	i := s.rng.IntN(len(s.order) - 1)
	return s.order[i : i+1+s.rng.IntN(2)]
}

func (s *staleWorld) without(away []raft.NodeID) (rest []raft.NodeID) {
	for _, id := range s.order {
		if len(away) == 0 || id < away[0] || id > away[len(away)-1] {
			rest = append(rest, id)
		}
	}
	return rest
}

func (s *staleWorld) write() {
	h := s.nodes[s.anyNode()].host
	if h == nil {
		return
	}
	h.Propose(2, []byte("w"), func(r Result) {
		if r.Err == nil {
			s.acked = append(s.acked, ackedWrite{s.now, r.Index})
		}
	})
}

func (s *staleWorld) stale() {
	id := s.anyNode()
	h := s.nodes[id].host
	if h == nil {
		return
	}
	asked := s.now
	bound := []time.Duration{50, 300, 1000, 3000}[s.rng.IntN(4)] * time.Millisecond
	returned := false
	h.ReadIndex(2, ReadOptions{Follower: true, Stale: bound}, func(_ raft.Index, err error) {
		if err != nil {
			return
		}
		applied := s.applied(id, 2)
		if need := s.known(asked.Add(-bound)); applied < need {
			s.t.Errorf("node %d, bound %v: answered %v after the question at %d, before %v of it %d was acknowledged", id, bound, s.now.Sub(asked), applied, bound, need)
		}
		if returned {
			s.sum.asked++
			return
		}
		s.sum.atOnce++
		if applied < s.known(s.now) {
			s.sum.behind++
		}
	})
	returned = true
}
