package peer

import (
	"testing"

	"github.com/flotilla-kv/flotilla/raft"
)

// prompt is a follower that has everything, lagging one that needs a snapshot.
const (
	prompt  = 1
	lagging = 2
)

// laggard is a leader of three, one of whose followers needs a snapshot, which
// has just been sent.
func laggard(t *testing.T) *replica {
	t.Helper()
	rp, err := openReplica(3, 0, func(int) int { return 0 }, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for rp.core.Role() != raft.Leader {
		rp.tick()
		for _, r := range requestsOf(rp) {
			if v := r.RequestVote; v != nil {
				hear(rp, prompt, Answer{Term: r.Term, RequestVote: &RequestVoteReply{PreVote: v.PreVote, Granted: true}})
			}
		}
	}
	for _, command := range []string{"a", "b", "c"} {
		if _, ok := rp.start([]byte(command)); !ok {
			t.Fatal("the leader takes no command")
		}
	}
	requestsOf(rp)
	hear(rp, prompt, Answer{Term: 1, AppendEntries: &AppendEntriesReply{Success: true, MatchIndex: 4}})
	requestsOf(rp)
	if !rp.compact(3, []byte("abc")) {
		t.Fatal("no snapshot is taken")
	}
	requestsOf(rp)
	if n := ticksUntilSnapshot(rp, 10*heartbeatTicks); n < 0 {
		t.Fatalf("a follower without a log is sent no snapshot: %+v", rp.core.Status())
	}
	return rp
}

// hear lets the leader hear an answer.
func hear(rp *replica, from int, a Answer) {
	rp.answered(from, &DeliverArgs{}, &DeliverReply{Answers: []Answer{a}}, true)
}

// requestsOf runs all turns and collects what is said to the one that lags, and
// the questions to the other.
func requestsOf(rp *replica) (list []Request) {
	for rp.ready() {
		t := rp.turn()
		for _, o := range t.requests {
			if o.to == lagging || o.request.RequestVote != nil {
				list = append(list, o.request)
			}
		}
		if t.save {
			rp.saved(&t)
		}
		for _, d := range t.deliveries {
			rp.core.Applied(d.through)
		}
	}
	return list
}

// ticksUntilSnapshot lets time pass, with every heartbeat answered by one who
// has nothing, until a snapshot is sent; -1: none is, within that many ticks.
func ticksUntilSnapshot(rp *replica, limit int) int {
	for n := range limit {
		rp.tick()
		for _, r := range requestsOf(rp) {
			if r.InstallSnapshot != nil {
				return n
			}
			if a := r.AppendEntries; a != nil {
				hear(rp, lagging, Answer{Term: r.Term, AppendEntries: &AppendEntriesReply{Success: a.PrevLogIndex == 0, RejectedPrev: a.PrevLogIndex, ConflictIndex: 1}})
			}
		}
	}
	return -1
}

// A snapshot whose call hangs is sent again after a second, and then after ever
// longer, up to eight: it may only be slow.
func TestSnapshotThatHangsIsSentAgain(t *testing.T) {
	rp := laggard(t)
	for _, patience := range []int{1, 2, 4, 8, 8} {
		n := ticksUntilSnapshot(rp, 10*snapshotPatience)
		if want := patience * snapshotPatience; n < want-1 || n > want+heartbeatTicks {
			t.Fatalf("sent again after %d ticks, not %d", n, want)
		}
	}
}

// One whose call failed is sent again with the next heartbeat that is answered,
// and not before.
func TestSnapshotThatIsLostIsSentAgain(t *testing.T) {
	rp := laggard(t)
	lost := &DeliverArgs{To: lagging, Requests: []Request{{InstallSnapshot: &InstallSnapshot{LastIncludedIndex: 4}}}}
	rp.answered(lagging, lost, &DeliverReply{}, false)
	for range heartbeatTicks {
		rp.tick()
		for _, r := range requestsOf(rp) {
			if r.InstallSnapshot != nil {
				t.Fatal("sent again to one of whom nothing is heard")
			}
		}
	}
	if n := ticksUntilSnapshot(rp, snapshotPatience/2); n < 0 {
		t.Fatal("not sent again to one who is heard")
	}
}

// One that is in place is not sent again; entries go on behind it.
func TestSnapshotThatArrived(t *testing.T) {
	rp := laggard(t)
	arrived := &DeliverArgs{To: lagging, Requests: []Request{{InstallSnapshot: &InstallSnapshot{LastIncludedIndex: 4}}}}
	rp.answered(lagging, arrived, &DeliverReply{Installed: true}, true)
	for _, r := range requestsOf(rp) {
		if r.InstallSnapshot != nil {
			t.Error("sent again")
		}
	}
	if _, ok := rp.start([]byte("d")); !ok {
		t.Fatal("the leader takes no command")
	}
	requests := requestsOf(rp)
	if len(requests) != 1 || requests[0].AppendEntries == nil || requests[0].AppendEntries.PrevLogIndex != 4 || len(requests[0].AppendEntries.Entries) != 1 {
		t.Errorf("behind a snapshot at 4 the follower is sent %+v", requests)
	}
}

// What waits for a reader that stands still does not grow with snapshots.
func TestSnapshotTakesThePlaceOfWhatWaits(t *testing.T) {
	a := newApplier(make(chan ApplyMsg), make(chan struct{}), func(raft.Index) {})
	for n := 1; n <= 10; n++ {
		a.push(delivery{entries: make([]raft.Entry, 5), through: raft.Index(10 * n)})
		a.push(delivery{snapshot: &snapshot{index: raft.Index(10*n + 1)}, through: raft.Index(10*n + 1)})
	}
	if d, ok := a.pop(); !ok || d.snapshot == nil || d.through != 101 {
		t.Errorf("first comes %+v", d)
	}
	if d, ok := a.pop(); ok {
		t.Errorf("behind the last snapshot comes %+v", d)
	}
}
