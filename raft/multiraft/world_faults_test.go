package multiraft

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/logstore"
)

func TestAMemberIsReplaced(t *testing.T) {
	w := newWorld(t, 4, nil)
	w.group(2, 1, 1, 2, 3)
	w.mustPropose(2, "a")
	leader := w.leader(2)
	voters := []raft.Member{{Replica: 1, Node: 1}, {Replica: 2, Node: 2}, {Replica: 3, Node: 3}}
	newcomer := raft.Member{Replica: 14, Node: 4}

	change := func(epoch uint64, voters, learners []raft.Member) (err error) {
		done := false
		w.nodes[w.leader(2)].host.ChangeMembership(2, epoch, voters, learners, func(e error) { err, done = e, true })
		w.until("the change is answered", func() bool { return done })
		return err
	}
	w.startOn(4, ReplicaSpec{Group: 2, Replica: 14})
	var epoch *EpochError
	if err := change(7, voters, []raft.Member{newcomer}); !errors.As(err, &epoch) || epoch.Have != 1 {
		t.Fatalf("change for another epoch: %v", err)
	}
	if err := change(1, voters, []raft.Member{newcomer}); err != nil {
		t.Fatal(err)
	}
	w.same(2, 1)
	w.until("the learner has caught up", func() bool {
		err := change(2, []raft.Member{voters[0], voters[1], newcomer}, nil)
		if err != nil && !errors.Is(err, raft.ErrNotCaughtUp) {
			t.Fatal(err)
		}
		return err == nil
	})
	s, _ := w.nodes[leader].host.Status(2)
	if s.Membership.Joint() || s.Membership.Epoch != 4 || s.Membership.IsVoter(3) || !s.Membership.IsVoter(14) {
		t.Fatalf("%+v", s.Membership)
	}
	w.until("the removed replica is told by its own log", func() bool { return len(w.nodes[3].gone) == 1 })
	key := raft.ReplicaKey{Group: 2, Replica: 3}
	if err := w.nodes[3].host.Remove(key); err != nil {
		t.Fatal(err)
	}
	delete(w.nodes[3].tally, 2)
	if err := w.nodes[3].host.Start(ReplicaSpec{Group: 2, Replica: 3}); !errors.Is(err, logstore.ErrOldReplica) {
		t.Fatalf("a removed replica starts again: %v", err)
	}
	if applied, _, _, _ := w.nodes[3].host.opts.States.Replica(key).Applied(); applied != 0 {
		t.Errorf("the removed replica left state at %d", applied)
	}
	w.mustPropose(2, "b")
	w.same(2, 2)
	w.crash(1) // 2 and 14 are a majority
	w.mustPropose(2, "c")
	w.same(2, 3)
}

func TestLeadershipIsHandedOver(t *testing.T) {
	w := newWorld(t, 3, nil)
	w.group(2, 1, 1, 2, 3)
	w.leader(2)
	if err := w.nodes[2].host.Transfer(2, 3); !errors.Is(err, ErrNotLeader) {
		t.Fatalf("transfer at a follower: %v", err)
	}
	// A proposal behind the transfer waits for the new leader to be known, and
	// is then refused with it, or still taken: never lost.
	if err := w.nodes[1].host.Transfer(2, 3); err != nil {
		t.Fatal(err)
	}
	res := w.propose(1, 2, "x")
	var nl *NotLeaderError
	if res.Err != nil && !errors.As(res.Err, &nl) {
		t.Fatalf("%+v", res)
	}
	w.until("3 leads", func() bool { return w.leader(2) == 3 })
	if err := w.nodes[3].host.Transfer(2, 0); err != nil {
		t.Fatal(err)
	}
	w.until("another leads", func() bool { return w.leader(2) != 3 })
}

// While the disk stands still the leader goes on leading, takes in no more
// than its limits, and says so at once; afterwards all is answered.
func TestADiskThatStandsStill(t *testing.T) {
	w := newWorld(t, 3, func(o *Options) {
		o.Limits.GroupBytes = 100_000
		o.Limits.LogQueueBytes = 20_000
	})
	w.group(2, 1, 1, 2, 3)
	w.mustPropose(2, "a")
	for _, id := range w.order {
		w.nodes[id].noSync = true
	}
	command := make([]byte, 1000)
	answers, busy := 0, 0
	propose := func() {
		w.nodes[1].host.Propose(2, command, func(r Result) {
			switch {
			case r.Err == nil:
				answers++
			case errors.Is(r.Err, ErrBusy):
				busy++
			default:
				t.Fatalf("%+v", r)
			}
		})
	}
	admitted := 0
	for busy == 0 {
		propose()
		admitted++
		w.step()
	}
	if admitted -= busy; admitted > 100 {
		t.Errorf("%d commands of 1000 bytes were admitted into 100,000", admitted)
	}
	w.run(4 * time.Second)
	if w.leader(2) != 1 || answers != 0 {
		t.Errorf("leader %d, %d answers", w.leader(2), answers)
	}
	if log := w.nodes[1].log.Queued(); log > 50 {
		t.Errorf("%d writes queued at the log", log)
	}
	urgent := false
	w.nodes[1].host.ProposeUrgent(2, command, func(r Result) { urgent = r.Err == nil })
	for _, id := range w.order {
		w.nodes[id].noSync = false
	}
	w.until("all are answered", func() bool { return answers == admitted && urgent })
	if in := w.nodes[1].host.Stats().InFlightBytes; in != 0 {
		t.Errorf("%d bytes are still counted", in)
	}
	if r, _ := w.nodes[1].host.find(2); r.inFlight.Load() != 0 {
		t.Errorf("%d bytes of the group are still counted", r.inFlight.Load())
	}
}

func TestACutLogMakesSuspect(t *testing.T) {
	w := newWorld(t, 3, nil)
	w.group(2, 1, 1, 2, 3)
	for i := range 10 {
		w.mustPropose(2, fmt.Sprint(i))
	}
	w.same(2, 10)
	n := w.nodes[3]
	n.log.CrashCut(raft.ReplicaKey{Group: 2, Replica: 3}, 4)
	n.states.Crash()
	n.host.Close()
	n.host = nil
	w.crash(2) // so that 3's vote would be needed
	w.up(3)
	if s, _ := n.host.Status(2); !s.Suspect {
		t.Fatal("a cut log and no suspicion")
	}
	from := w.now
	w.run(5 * time.Second)
	if s, _ := n.host.Status(2); !s.Suspect {
		t.Fatalf("trusted after %v although no majority without it confirmed its leader", w.now.Sub(from))
	}
	w.up(2)
	w.until("3 is trusted again", func() bool { s, _ := n.host.Status(2); return !s.Suspect })
	w.until("durably", func() bool { return !n.store.Replicas()[0].Suspect })
	w.mustPropose(2, "after")
	w.same(2, 11)
}

// A log may have lost its end so soon after the sync that its own evidence does
// not know of it. That the state is ahead of it tells all the same.
func TestAStateAheadOfItsLogMakesSuspect(t *testing.T) {
	w := newWorld(t, 3, nil)
	w.group(2, 1, 1, 2, 3)
	for i := range 10 {
		w.mustPropose(2, fmt.Sprint(i))
	}
	w.same(2, 10)
	n := w.nodes[3]
	id := raft.ReplicaKey{Group: 2, Replica: 3}
	n.states.Flush()
	w.crash(3)
	n.log.CrashCut(id, 4)
	store, err := n.log.Open()
	if err != nil {
		t.Fatal(err)
	}
	if err := store.ClearSuspect(id); err != nil { // the log itself noticed nothing
		t.Fatal(err)
	}
	store.Close()
	w.up(3)
	if s, _ := n.host.Status(2); !s.Suspect {
		t.Error("a state ahead of its log, and no suspicion")
	}
	w.until("it is trusted again", func() bool { s, _ := n.host.Status(2); return !s.Suspect })
	w.mustPropose(2, "after")
	w.same(2, 11)
}

// A replica whose votes are lost does not come back, and the others go on as if
// it were down: its vote in particular is given to nobody.
func TestLostVotesKeepAReplicaDown(t *testing.T) {
	w := newWorld(t, 3, nil)
	w.group(2, 1, 1, 2, 3)
	for i := range 10 {
		w.mustPropose(2, fmt.Sprint(i))
	}
	w.same(2, 10)
	n := w.nodes[3]
	n.log.CrashLost()
	n.states.Crash()
	n.host.Close()
	n.host = nil
	w.up(3)
	if _, running := n.host.Status(2); running {
		t.Fatal("it runs")
	}
	if err := n.host.Start(ReplicaSpec{Group: 2, Replica: 3}); !errors.Is(err, logstore.ErrVotesLost) {
		t.Fatalf("it was started: %v", err)
	}
	w.mustPropose(2, "two of three")
	w.crash(2)
	var res Result
	w.nodes[1].host.Propose(2, []byte("one of three"), func(r Result) { res = r })
	w.run(5 * time.Second)
	if res.Value != nil {
		t.Fatalf("committed without a majority: %+v", res)
	}
	w.up(2)
	w.mustPropose(2, "two again")
	key := raft.ReplicaKey{Group: 2, Replica: 3}
	if err := n.host.Remove(key); err != nil || len(n.host.Recorded()) != 0 {
		t.Errorf("once it is replaced it can be removed: %v, left %+v", err, n.host.Recorded())
	}
}

// The state of a snapshot is in place and the log's new beginning is not yet
// durable: a crash there must not be taken for a cut log, nor lose anything.
func TestACrashBetweenInstallAndReset(t *testing.T) {
	w := newWorld(t, 3, func(o *Options) { o.Limits.LogKeepBytes = 1 })
	w.group(2, 1, 1, 2, 3)
	w.mustPropose(2, "first")
	w.crash(3)
	for i := range 30 {
		w.mustPropose(2, fmt.Sprint(i))
	}
	w.run(3 * time.Second)
	w.up(3)
	n := w.nodes[3]
	w.until("it knows its leader", func() bool { _, _, ok := n.host.Leader(2); return ok })
	n.noSync = true
	w.until("the snapshot is in place", func() bool { return n.host.Stats().SnapshotsInstalled == 1 })
	w.run(50 * time.Millisecond)
	w.crash(3)
	n.noSync = false
	w.up(3)
	if s, _ := n.host.Status(2); s.Suspect || s.Applied < 31 {
		t.Fatalf("after the crash: %+v", s)
	}
	w.mustPropose(2, "last")
	w.same(2, 32)
}

// The log begins behind a snapshot only when the state is in place, durably: a
// crash in between would find neither the state nor the entries that lead to it.
func TestTheLogIsResetBehindTheInstall(t *testing.T) {
	w := newWorld(t, 3, func(o *Options) { o.Limits.LogKeepBytes = 1 })
	w.group(2, 1, 1, 2, 3)
	w.mustPropose(2, "first")
	w.crash(3)
	for i := range 30 {
		w.mustPropose(2, fmt.Sprint(i))
	}
	w.run(3 * time.Second)
	w.up(3)
	n := w.nodes[3]
	log := n.store.Reader(raft.ReplicaKey{Group: 2, Replica: 3})
	var first, lost raft.Index
	n.tally[2].built = func() {
		first, lost = log.FirstIndex(), raft.Index(n.states.Unflushed())
	}
	w.until("the snapshot is in place", func() bool { return n.host.Stats().SnapshotsInstalled == 1 })
	if first != 1 || lost != 0 {
		t.Errorf("when the state was in place the log began at %d, and a crash would have lost %d commits", first, lost)
	}
	w.until("the log follows", func() bool { return log.FirstIndex() > 30 })
	w.same(2, 31)
}

// While a snapshot is being put in place, the core takes no step whatever
// comes: what it said of its state would not be so.
func TestTheCoreStandsStillWhileItsStateIsReplaced(t *testing.T) {
	w := newWorld(t, 3, func(o *Options) { o.Limits.LogKeepBytes = 1 })
	w.group(2, 1, 1, 2, 3)
	w.mustPropose(2, "first")
	w.crash(3)
	for i := range 30 {
		w.mustPropose(2, fmt.Sprint(i))
	}
	w.run(3 * time.Second)
	w.up(3)
	n := w.nodes[3]
	built := false
	n.tally[2].built = func() {
		built = true
		r, _ := n.host.find(2)
		before := r.core.Status()
		n.host.HandleMessages(2, []raft.Message{{Group: 2, From: 2, To: 3, Term: before.Term + 5, Body: &raft.RequestVote{Transfer: true, LastLogIndex: 1000, LastLogTerm: before.Term}}})
		w.now = w.now.Add(3 * time.Second)
		r.worker.turn()
		if after := r.core.Status(); after.Term != before.Term || after.Role != before.Role {
			t.Errorf("the core went from %+v to %+v", before, after)
		}
	}
	w.until("the snapshot is in place", func() bool { return n.host.Stats().SnapshotsInstalled == 1 })
	if !built {
		t.Error("not rebuilt")
	}
	w.same(2, 31)
}

func TestWhatCannotBeAppliedStopsTheHost(t *testing.T) {
	w := newWorld(t, 1, nil)
	w.group(2, 1, 1)
	n := w.nodes[1]
	w.until("it leads", func() bool { _, _, ok := n.host.Leader(2); return ok })
	var got []error
	n.host.opts.Limits.ApplyBatchBytes, n.host.opts.Limits.EntryBytes = 1, 1 // one entry, one batch each
	for _, c := range []string{"poison", "behind"} {
		n.host.Propose(2, []byte(c), func(r Result) { got = append(got, r.Err) })
	}
	w.until("both are answered", func() bool { return len(got) == 2 })
	for _, err := range got {
		if !errors.Is(err, ErrUnknown) && !errors.Is(err, ErrStopped) {
			t.Errorf("%v", err)
		}
	}
	n.host.Propose(2, []byte("later"), func(r Result) { got = append(got, r.Err) })
	if len(got) != 3 || !errors.Is(got[2], ErrStopped) {
		t.Errorf("after the stop: %v", got)
	}
}

func TestLeaseReadsEndWithTheLease(t *testing.T) {
	w := newWorld(t, 3, nil)
	m := raft.Membership{Epoch: 1, Voters: []raft.Member{{Replica: 1, Node: 1}, {Replica: 2, Node: 2}, {Replica: 3, Node: 3}}}
	for _, id := range w.order {
		w.startOn(id, ReplicaSpec{Group: 2, Replica: raft.ReplicaID(id), First: m, Preferred: 1, LeaseReads: true})
	}
	w.mustPropose(2, "a")
	leader := w.leader(2)
	w.run(300 * time.Millisecond)
	h := w.nodes[leader].host
	var index raft.Index
	h.ReadIndex(2, ReadOptions{Lease: true}, func(i raft.Index, err error) { index = i })
	sent := len(w.wires)
	h.RunOnce()
	if index == 0 || len(w.wires) > sent {
		t.Fatalf("a lease read took messages, or was not answered at once: index %d", index)
	}
	// Cut off and stood still for longer than a lease: the ticks that are due
	// come before the read.
	w.isolate(leader)
	w.now = w.now.Add(2 * time.Second)
	answered := false
	h.ReadIndex(2, ReadOptions{Lease: true}, func(_ raft.Index, err error) { answered = err == nil })
	w.run(6 * time.Second)
	if answered {
		t.Error("a lease read was served after the lease had run out")
	}
}

// A read that the lease covered had to wait for apply, and apply took longer
// than the lease: by then somebody else may lead.
func TestALeaseReadThatWaitedLooksAtTheLeaseAgain(t *testing.T) {
	w := newWorld(t, 3, nil)
	m := raft.Membership{Epoch: 1, Voters: []raft.Member{{Replica: 1, Node: 1}, {Replica: 2, Node: 2}, {Replica: 3, Node: 3}}}
	for _, id := range w.order {
		w.startOn(id, ReplicaSpec{Group: 2, Replica: raft.ReplicaID(id), First: m, Preferred: 1, LeaseReads: true})
	}
	w.mustPropose(2, "a")
	leader := w.leader(2)
	w.run(300 * time.Millisecond)
	n := w.nodes[leader]
	waiting, atStall, stalled := 0, 0, false
	n.tally[2].before = func() {
		n.tally[2].before = nil
		atStall, stalled = waiting, true
		w.isolate(leader)
		w.now = w.now.Add(2 * time.Second)
	}
	n.host.Propose(2, []byte("b"), func(Result) {})
	for !stalled { // one of these comes with the news that b is committed, and before b is applied
		waiting++
		n.host.ReadIndex(2, ReadOptions{Lease: true}, func(_ raft.Index, err error) {
			waiting--
			if err == nil && stalled {
				t.Error("answered by a lease that had run out while it waited")
			}
		})
		w.step()
	}
	if atStall == 0 {
		t.Fatal("no read had to wait: the test tests nothing")
	}
	w.run(6 * time.Second)
}

// TestSeeds lets crashes, cuts and leadership changes happen at random and
// checks what was promised of each proposal: acknowledged is applied once,
// refused never, unknown at most once; and all replicas agree.
func TestSeeds(t *testing.T) {
	seeds := 40
	if testing.Short() {
		seeds = 5
	}
	done, ran := 0, 0
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			defer func() {
				if t.Failed() {
					t.Logf("replay: go test ./raft/multiraft -run '^%s$'", t.Name())
				}
			}()
			done += runSeed(t, uint64(seed))
			ran++
		})
	}
	if done < 50*ran {
		t.Errorf("only %d proposals succeeded in %d seeds: the world is too hard to tell anything", done, ran)
	}
}

// runSeed returns how many proposals succeeded.
func runSeed(t *testing.T, seed uint64) (acknowledged int) {
	rng := rand.New(rand.NewPCG(seed, 99))
	keep := int64(1) << 30
	if seed%2 == 0 {
		keep = 1
	}
	w := newWorld(t, 3, func(o *Options) {
		o.Limits.LogKeepBytes = keep
		o.Timing.ProposalTimeout = 3 * time.Second
		o.Timing.FlushAfter = time.Second
		o.Limits.ApplyBatchBytes, o.Limits.EffectBytes = 200, int(seed%5)*20 // now and then several batches for that
	})
	w.rand = rand.New(rand.NewPCG(seed, 7))
	for g := raft.GroupID(2); g < 5; g++ {
		w.group(g, raft.NodeID(g%3+1), 1, 2, 3)
	}
	type outcome struct {
		group raft.GroupID
		err   error
		done  int
	}
	outcomes := map[string]*outcome{}
	down, isolated := raft.NodeID(0), raft.NodeID(0)
	for i := range 6000 {
		w.step()
		if rng.IntN(4) == 0 {
			n := w.nodes[raft.NodeID(rng.IntN(3)+1)]
			if n.host != nil {
				command := fmt.Sprintf("#%d", i)
				o := &outcome{group: raft.GroupID(rng.IntN(3) + 2)}
				outcomes[command] = o
				n.host.Propose(o.group, []byte(command), func(r Result) { o.err = r.Err; o.done++ })
			}
		}
		switch rng.IntN(600) {
		case 0:
			if down == 0 && isolated == 0 {
				down = raft.NodeID(rng.IntN(3) + 1)
				w.crash(down)
			}
		case 1, 2:
			if down != 0 {
				w.up(down)
				down = 0
			}
		case 3:
			if down == 0 && isolated == 0 {
				isolated = raft.NodeID(rng.IntN(3) + 1)
				w.isolate(isolated)
			}
		case 4, 5:
			if isolated != 0 {
				w.heal(isolated)
				isolated = 0
			}
		case 6:
			if n := w.nodes[raft.NodeID(rng.IntN(3)+1)]; n.host != nil {
				_ = n.host.Transfer(raft.GroupID(rng.IntN(3)+2), 0)
			}
		case 7:
			n := w.nodes[raft.NodeID(rng.IntN(3)+1)]
			n.noSync = !n.noSync
			w.trace = append(w.trace, fmt.Sprint(w.now.UnixMilli()-1_700_000_000_000, " nosync ", n.id, n.noSync))
		case 8:
			w.nodes[raft.NodeID(rng.IntN(3)+1)].states.FlushSome(rng.IntN(20))
		}
	}
	for _, id := range w.order {
		w.nodes[id].noSync = false
	}
	if down != 0 {
		w.up(down)
	}
	if isolated != 0 {
		w.heal(isolated)
	}
	for g := raft.GroupID(2); g < 5; g++ {
		w.same(g, w.mustPropose(g, "end").Value.(uint64))
	}
	w.run(4 * time.Second)
	for command, o := range outcomes {
		v, _, err := w.nodes[1].tally[o.group].state.Get([]byte(command))
		if err != nil {
			t.Fatal(err)
		}
		switch times := len(v); {
		case o.done != 1:
			t.Errorf("%s was answered %d times", command, o.done)
		case times > 1:
			t.Errorf("%s is applied %d times", command, times)
		case o.err == nil && times != 1:
			t.Errorf("%s is acknowledged and not applied", command)
		case o.err != nil && !errors.Is(o.err, ErrUnknown) && times != 0:
			t.Errorf("%s is applied although it was refused: %v", command, o.err)
		case o.err == nil:
			acknowledged++
		}
	}
	if t.Failed() {
		w.dump()
	}
	return acknowledged
}

// TestASlowDiskGivesWay: a leader whose disk is slow hands over to one whose
// is not, and does not get the leadership back at once. Where all disks are
// slow it stays.
func TestASlowDiskGivesWay(t *testing.T) {
	w := newWorld(t, 3, nil)
	w.group(2, 1, 1, 2, 3)
	w.mustPropose(2, "a")
	w.run(6 * time.Second)
	if w.leader(2) != 1 {
		t.Fatalf("node %d leads", w.leader(2))
	}
	load := func(d time.Duration) {
		for end := w.now.Add(d); w.now.Before(end); {
			for _, id := range w.order {
				if h := w.nodes[id].host; h != nil {
					h.Propose(2, []byte("x"), func(Result) {})
				}
			}
			w.run(10 * time.Millisecond)
		}
	}
	w.nodes[1].slow = 500 * time.Millisecond
	load(3 * time.Second)
	leader := w.leader(2)
	if leader == 1 || !w.nodes[1].host.SlowDisk() {
		t.Fatalf("node %d leads, slow %t", leader, w.nodes[1].host.SlowDisk())
	}
	w.crash(leader) // the slow node stands behind the other one
	load(3 * time.Second)
	if next := w.leader(2); next == 1 {
		t.Errorf("node %d leads", next)
	}
	w.up(leader)
	w.nodes[1].slow = 0
	load(40 * time.Second)
	if w.nodes[1].host.SlowDisk() {
		t.Error("the disk is still held for slow")
	}

	for _, id := range w.order {
		w.nodes[id].slow = 400 * time.Millisecond
	}
	leader = w.leader(2)
	load(30 * time.Second)
	if next := w.leader(2); next != leader {
		t.Errorf("all disks are slow and leadership went from node %d to node %d", leader, next)
	}
}

// A follower that was alone for ten election timeouts, while it campaigned in
// vain, comes back and disturbs nobody: not the leader of a group that is
// written to, nor that of one that sleeps, nor the term of either.
func TestAnIsolatedFollowerChangesNoLeader(t *testing.T) {
	w := newWorld(t, 3, nil)
	for g := raft.GroupID(2); g < 4; g++ {
		w.group(g, 1, 1, 2, 3)
		w.mustPropose(g, "before")
	}
	const quiet, busy = 2, 3
	writes := uint64(1)
	run := func(d time.Duration) {
		for end := w.now.Add(d); w.now.Before(end); w.run(20 * time.Millisecond) {
			w.nodes[1].host.Propose(busy, []byte("x"), func(r Result) {
				if r.Err != nil {
					t.Fatalf("after %d writes: %v", writes, r.Err)
				}
				writes++
			})
		}
	}
	run(3 * time.Second)
	before := w.nodes[1].host.Statuses()
	w.isolate(3)
	run(10 * 2 * w.nodes[3].host.opts.Timing.Election) // the longest that is drawn
	if s, _ := w.nodes[3].host.Status(busy); s.Role == raft.Follower {
		t.Fatalf("alone for so long it has not campaigned: the test tests nothing")
	}
	w.heal(3)
	run(3 * time.Second)
	w.same(quiet, 1)
	w.same(busy, writes)
	for i, after := range w.nodes[1].host.Statuses() {
		if after.Role != raft.Leader || after.Term != before[i].Term {
			t.Errorf("group %d: it was the leader of term %d and is %v of term %d", after.Key.Group, before[i].Term, after.Role, after.Term)
		}
	}
	for i, s := range w.nodes[3].host.Statuses() {
		if s.Leader.Node != 1 || s.Term != before[i].Term {
			t.Errorf("group %d: who came back follows node %d in term %d", s.Key.Group, s.Leader.Node, s.Term)
		}
	}
}
