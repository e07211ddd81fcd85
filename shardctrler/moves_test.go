package shardctrler

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"pgregory.net/rapid"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// afterBringUp is a cluster of four nodes with four groups and 512 shards.
func afterBringUp(t testing.TB) *run {
	t.Helper()
	r := newRun()
	for _, c := range storyOfAGroup(t) {
		r.apply(c)
	}
	return r
}

func (r *run) must(t testing.TB, c Command) any {
	t.Helper()
	answer := r.apply(c)
	if err, refused := answer.(error); refused {
		t.Fatalf("%+v was refused: %v", c, err)
	}
	return answer
}

// refuses applies a command that must be refused, and change nothing.
func (r *run) refuses(t testing.TB, c Command, why string) {
	t.Helper()
	before := *r.state
	err, refused := r.apply(c).(error)
	switch {
	case !refused || !strings.Contains(err.Error(), why):
		t.Errorf("%+v was answered %v; it should say %q", c, err, why)
	case r.state.Revision != before.Revision || len(r.state.Moves) != len(before.Moves) || r.state.LastEvent != before.LastEvent:
		t.Errorf("%+v was refused and has changed something", c)
	}
}

func TestOrderMove(t *testing.T) {
	r := afterBringUp(t)
	from := r.state.Shards[7].Group
	to := from%5 + 1
	if to == raft.ConfigGroup {
		to = 2
	}
	r.refuses(t, OrderMove{Shard: 7, To: from}, "already")
	r.refuses(t, OrderMove{Shard: 512, To: to}, "the shards are 0 to 511")
	r.refuses(t, OrderMove{Shard: 7, To: 99}, "the groups are 2 to 5")
	r.refuses(t, OrderMove{Shard: 7, To: raft.ConfigGroup}, "config group")
	r.refuses(t, CancelMove{Move: 999}, "no move 999")

	ordered := r.must(t, OrderMove{Shard: 7, To: to}).(Ordered)
	m, ok := r.state.move(ordered.Move)
	if !ok || m.Shard != 7 || m.From != from || m.To != to || m.Generation != 1 || m.State != MoveOrdered {
		t.Fatalf("ordered %+v, the move is %+v", ordered, m)
	}
	if c := r.state.config(); c.Num != 2 || ordered.Config != 2 || c.Owners[7] != to || !slices.Equal(c.Pinned, []shardmap.ShardID{7}) {
		t.Errorf("config %d: owner %d, pinned %v", c.Num, c.Owners[7], c.Pinned)
	}
	if r.state.Shards[7].Group != from {
		t.Error("the table says that the shard has moved")
	}
	r.refuses(t, OrderMove{Shard: 7, To: from}, fmt.Sprintf("move cancel %d", m.ID))

	r.must(t, ReportMove{Move: m.ID, State: MoveServed, Pause: 1500, Bytes: 70})
	if at := r.state.Shards[7]; at.Group != to || at.Generation != 2 {
		t.Errorf("served by the target, the shard is %+v", at)
	}
	r.refuses(t, CancelMove{Move: m.ID}, fmt.Sprintf("flotilla shard move 7 %d", from))
	r.refuses(t, OrderMove{Shard: 7, To: from}, "not verified yet")
	r.must(t, ReportMove{Move: m.ID, State: MoveDone, Bytes: -1})
	m, _ = r.state.move(m.ID)
	if m.State != MoveDone || m.Ended == 0 || m.Pause != 1500 || m.Bytes != 70 {
		t.Errorf("%+v", m)
	}
	index := r.state.LastEvent
	r.must(t, ReportMove{Move: m.ID, State: MoveDone})
	if r.state.LastEvent != index {
		t.Error("what was reported already is an event")
	}
}

func TestCancelMove(t *testing.T) {
	for _, late := range []bool{false, true} {
		r := afterBringUp(t)
		from, to := r.state.Shards[0].Group, r.state.Shards[1].Group
		id := r.must(t, OrderMove{Shard: 0, To: to}).(Ordered).Move
		r.must(t, CancelMove{Move: id})
		r.must(t, CancelMove{Move: id})
		if c := r.state.config(); c.Num != 3 || c.Owners[0] != from {
			t.Errorf("config %d wants the shard at %d", c.Num, c.Owners[0])
		}
		end, wanted, generation := MoveCancelled, from, shardmap.Generation(1)
		if late {
			end, wanted, generation = MoveDone, to, 2
		}
		r.must(t, ReportMove{Move: id, State: end})
		if at := r.state.Shards[0]; at.Group != wanted || at.Generation != generation {
			t.Errorf("late %v: the shard is %+v", late, at)
		}
		if planned := Plan(r.state, allUp(r.state)); len(planned) != 0 {
			t.Errorf("late %v: what was decided is not left alone: %+v", late, planned)
		}
	}
}

func TestARefusedShardStays(t *testing.T) {
	r := afterBringUp(t)
	from, to := r.state.Shards[0].Group, r.state.Shards[1].Group
	id := r.must(t, OrderMove{Shard: 0, To: to}).(Ordered).Move
	r.must(t, ReportMove{Move: id, State: MoveFailed})
	if at := r.state.Shards[0]; at.Group != from || at.Generation != 3 {
		t.Errorf("the shard is %+v", at)
	}
	if planned := Plan(r.state, allUp(r.state)); len(planned) != 0 {
		t.Errorf("it is tried again: %+v", planned)
	}
}

// Whatever is ordered, cancelled and reported: a shard has one move at a time,
// its generations only grow, no limit is passed, and what is under way stays so.
func TestMovesInAnyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := newRun()
		for _, c := range storyOfFewShards() {
			r.apply(c)
		}
		for range rapid.IntRange(1, 120).Draw(t, "steps") {
			before := r.state
			var c Command
			switch rapid.IntRange(0, 4).Draw(t, "kind") {
			case 0, 1:
				c = OrderMove{Shard: shardmap.ShardID(rapid.IntRange(0, 16).Draw(t, "shard")), To: raft.GroupID(rapid.IntRange(1, 6).Draw(t, "to"))}
			case 2:
				c = CancelMove{Move: anyMove(t, r.state)}
			default:
				c = ReportMove{Move: anyMove(t, r.state), State: MoveState(rapid.IntRange(0, 4).Draw(t, "state"))}
			}
			r.apply(c)
			checkMoves(t, before, r.state)
			if planned := Plan(r.state, allUp(r.state)); len(planned) > 0 {
				r.apply(Commit{Operations: planned})
				if again := Plan(r.state, allUp(r.state)); slices.ContainsFunc(again, func(o Operation) bool { _, is := o.Body.(StartMove); return is }) {
					t.Fatalf("planned %+v, and then %+v", planned, again)
				}
			}
		}
	})
}

func storyOfFewShards() []Command {
	story := []Command{initCommand(16, 1, 4)}
	r := newRun()
	r.apply(story[0])
	for range 8 {
		planned := Plan(r.state, allUp(r.state))
		if len(planned) == 0 {
			break
		}
		story = append(story, Commit{Operations: planned})
		r.apply(story[len(story)-1])
		for _, o := range r.state.Operations {
			done := Finish{Operation: o.ID, Done: true}
			story = append(story, done)
			r.apply(done)
		}
	}
	return story
}

func anyMove(t *rapid.T, s *State) OperationID {
	if len(s.Moves) == 0 {
		return 0
	}
	return s.Moves[rapid.IntRange(0, len(s.Moves)-1).Draw(t, "move")].ID
}

func checkMoves(t *rapid.T, before, after *State) {
	moving := make(map[shardmap.ShardID]OperationID)
	for _, m := range after.Moves {
		if other, is := moving[m.Shard]; is && m.active() {
			t.Fatalf("shard %d is in moves %d and %d", m.Shard, other, m.ID)
		}
		at := after.Shards[m.Shard]
		if m.active() {
			moving[m.Shard] = m.ID
			if m.State == MoveOrdered && (at.Group != m.From || at.Generation != m.Generation) || m.State == MoveServed && (at.Group != m.To || at.Generation != m.Generation+1) {
				t.Fatalf("the shard is %+v in %+v", at, m)
			}
		}
	}
	for i, at := range after.Shards {
		if was := before.Shards[i]; at.Generation < was.Generation || at.Generation == was.Generation && at.Group != was.Group {
			t.Fatalf("shard %d went from %+v to %+v", i, was, at)
		}
	}
	from, into := make(map[raft.GroupID]int), make(map[raft.GroupID]int)
	under := after.underWay()
	for _, m := range under {
		if from[m.From]++; from[m.From] > moveAtGroup {
			t.Fatalf("too many moves from group %d: %+v", m.From, under)
		}
		if into[m.To]++; into[m.To] > moveAtGroup {
			t.Fatalf("too many moves into group %d: %+v", m.To, under)
		}
	}
	for _, m := range before.underWay() {
		if now, ok := after.move(m.ID); ok && now.active() && !slices.ContainsFunc(under, func(u Move) bool { return u.ID == m.ID }) {
			t.Fatalf("move %d was under way and has to wait", m.ID)
		}
	}
}

// The whole way: an operator's call, the reconciler, the group leaders, and back.
func TestAnOperatorMovesShards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeCluster(t)
		defer f.close()
		a, b := f.add("a", "z1"), f.add("b", "z2")
		f.add("c", "z3")
		mustInit(t, a, initRequest(16, 3, 4))
		waitSettled(t, f, 5*time.Second, 3, 4, 16, 3)
		ctx := context.Background()
		move := func(shard uint64) uint64 {
			to := uint64(a.controller().Maps().Current().Shards[shard].Group)%4 + 2
			answer, err := b.controller().MoveShard(ctx, &flotillav1.MoveShardRequest{Shard: shard, ToGroup: to})
			if err != nil {
				t.Fatal(err)
			}
			return answer.MoveId
		}
		list := func() map[uint64]*flotillav1.Move {
			answer, err := b.controller().ListMoves(ctx, &flotillav1.ListMovesRequest{})
			if err != nil {
				t.Fatal(err)
			}
			byID := make(map[uint64]*flotillav1.Move)
			for _, m := range answer.Moves {
				byID[m.Id] = m
			}
			return byID
		}
		id := move(3)
		waitFor(t, "the move is done", 5*time.Second, func() bool { return list()[id].Phase == "done" })
		m := list()[id]
		if !m.Verified || m.PauseUs != 900 || m.Ended == "" || m.BytesDone != m.BytesTotal {
			t.Errorf("%+v", m)
		}
		waitFor(t, "all know the new owner", 5*time.Second, func() bool {
			at := b.controller().Maps().Current().Shards[3]
			return uint64(at.Group) == m.To && at.Generation == 2
		})

		f.mu.Lock()
		f.stuck = true
		f.mu.Unlock()
		id = move(4)
		waitFor(t, "its progress shows", 5*time.Second, func() bool { m := list()[id]; return m.BytesDone == 5 && m.BytesTotal == 10 })
		if _, err := b.controller().CancelMove(ctx, &flotillav1.CancelMoveRequest{MoveId: id}); err != nil {
			t.Errorf("cancel: %v", err)
		}
		if m := list()[id]; m.Phase != "cancelled" || m.Verified {
			t.Errorf("cancelled, it is %+v", m)
		}
		var all []uint64
		for shard := range uint64(16) {
			all = append(all, move(shard))
		}
		time.Sleep(time.Second)
		waiting := 0
		for _, m := range list() {
			if strings.HasPrefix(m.WaitingFor, "its turn") {
				waiting++
			}
		}
		if waiting != 16-4*moveAtGroup {
			t.Errorf("%d of 16 moves wait for their turn", waiting)
		}
		f.mu.Lock()
		f.stuck = false
		f.mu.Unlock()
		for _, id := range all {
			for began := time.Now(); list()[id].Phase != "done"; time.Sleep(5 * time.Millisecond) {
				if time.Since(began) > 20*time.Second {
					t.Fatalf("move %d is %+v\n%s", id, list()[id], f.describe())
				}
			}
		}
		now, err := a.controller().GetStatus(ctx, &flotillav1.GetStatusRequest{})
		if err != nil || len(now.Moves) != 0 {
			t.Errorf("%v %v", now.GetMoves(), err)
		}
	})
}

// The config group's leader dies at each proposal of a move, before it is
// committed or after: the move is carried out once.
func TestMovesSurviveTheControllersLeader(t *testing.T) {
	for number := range 6 {
		for _, applied := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d-%v", number, applied), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFakeCluster(t)
					defer f.close()
					a := f.add("a", "z1")
					f.add("b", "z2")
					c := f.add("c", "z3")
					mustInit(t, a, initRequest(16, 3, 4))
					waitSettled(t, f, 5*time.Second, 3, 4, 16, 3)
					f.mu.Lock()
					base := f.proposals
					f.mu.Unlock()
					f.crash = func(proposal int, after bool) bool { return proposal == base+number && after == applied }
					from := c.controller().Maps().Current().Shards[5].Group
					to := uint64(from)%4 + 2
					order := func() error {
						_, err := c.controller().MoveShard(context.Background(), &flotillav1.MoveShardRequest{Shard: 5, ToGroup: to})
						return err
					}
					err := order()
					for status.Code(err) == codes.Unavailable { // as an operator does; it may have been recorded
						err = order()
					}
					var at shardmap.Assignment
					var answer *flotillav1.ListMovesResponse
					for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
						at = c.controller().Maps().Current().Shards[5]
						answer, err = c.controller().ListMoves(context.Background(), &flotillav1.ListMovesRequest{})
						if uint64(at.Group) == to && at.Generation == 2 && err == nil && len(answer.Moves) == 1 && answer.Moves[0].Phase == "done" {
							return
						}
						if time.Since(began) > 30*time.Second {
							t.Fatalf("the shard is %+v, it was to go to %d; moves %v, %v\n%s", at, to, answer.GetMoves(), err, f.describe())
						}
					}
				})
			})
		}
	}
}

func TestExplainShard(t *testing.T) {
	r := afterBringUp(t)
	text := func(x *Explanation) string { return strings.Join(x.Facts, "\n") }
	x, err := ExplainShard(r.state, Observed{}, 7)
	if err != nil || !strings.Contains(text(x), "since config 1") || len(x.Candidates) != 4 {
		t.Fatalf("%+v, %v", x, err)
	}
	from := r.state.Shards[7].Group
	to := r.state.Shards[8].Group
	id := r.must(t, OrderMove{Shard: 7, To: to}).(Ordered).Move
	x, _ = ExplainShard(r.state, Observed{}, 7)
	for _, want := range []string{fmt.Sprintf("group %d serves it", from), fmt.Sprintf("wished at group %d since config 2", to), "pinned", fmt.Sprintf("move %d takes it", id)} {
		if !strings.Contains(text(x), want) {
			t.Errorf("it does not say %q:\n%s", want, text(x))
		}
	}
	if len(x.Events) != 1 || x.Events[0].Kind != "move" {
		t.Errorf("events %+v", x.Events)
	}
	if _, err := ExplainShard(r.state, Observed{}, 9999); err == nil {
		t.Error("a shard that is none is explained")
	}
}
