package peer

import (
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// gate is a persister whose Save stands still while it is shut.
type gate struct {
	disk
	inside atomic.Int32 // saves that stand still

	mu   sync.Mutex    // guards open
	open chan struct{} // closed: saves go through; nil: open too
}

func (g *gate) Save(state, snapshot []byte) {
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	if open != nil {
		g.inside.Add(1)
		<-open
		g.inside.Add(-1)
	}
	g.disk.Save(state, snapshot)
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = make(chan struct{})
}

// release opens the gate, again or not.
func (g *gate) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open != nil {
		close(g.open)
		g.open = nil
	}
}

// silence is the way to nobody.
type silence struct{}

func (silence) Call(string, any, any) bool { return false }

// A vote is answered when it is saved, not before; meanwhile the peer answers
// its own side, and other calls wait for their own turn.
func TestAnswersWaitForTheDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{}
		rf := Make([]ClientEnd{silence{}, silence{}, silence{}}, 1, g, make(chan ApplyMsg, 100))
		defer rf.Kill()
		g.shut()
		defer g.release()
		var reply DeliverReply
		var answered atomic.Bool
		go func() {
			rf.Deliver(&DeliverArgs{From: 0, To: 1, Requests: []Request{{Term: 7, RequestVote: &RequestVote{}}}}, &reply)
			answered.Store(true)
		}()
		synctest.Wait()
		if answered.Load() || g.inside.Load() != 1 {
			t.Fatalf("answered %t with %d saves under way", answered.Load(), g.inside.Load())
		}
		if term, leads := rf.GetState(); term != 7 || leads {
			t.Errorf("while it saves, GetState says term %d, leader %t", term, leads)
		}
		g.release()
		synctest.Wait()
		if !answered.Load() || len(reply.Answers) != 1 || reply.Answers[0].RequestVote == nil || !reply.Answers[0].RequestVote.Granted {
			t.Fatalf("answered %t with %+v", answered.Load(), reply.Answers)
		}
		p, _, err := decodeState(g.ReadRaftState())
		if err != nil || p.hard.Term != 7 || p.hard.Vote != idOf(0) {
			t.Errorf("granted, but what is saved is %+v, %v", p.hard, err)
		}
	})
}

// Start does not wait for the disk, and what is started while it is busy is
// saved as one.
func TestStartDoesNotWaitForTheDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{}
		applyCh := make(chan ApplyMsg, 1000)
		rf := Make([]ClientEnd{silence{}}, 0, g, applyCh)
		defer rf.Kill()
		time.Sleep(2 * electionTimeout)

		g.shut()
		defer g.release()
		before := g.count()
		for n := 1; n <= 100; n++ {
			if index, _, leads := rf.Start([]byte("x")); index != n || !leads {
				t.Fatalf("command %d is at index %d, leader %t", n, index, leads)
			}
		}
		synctest.Wait()
		g.release()
		synctest.Wait()
		if saves := g.count() - before; len(applyCh) != 100 || saves > 3 {
			t.Errorf("%d of 100 commands applied after %d saves", len(applyCh), saves)
		}
	})
}

// forgetful is a persister that keeps nothing.
type forgetful struct{ disk }

func (*forgetful) Save(_, _ []byte) {}

// What is under way is bounded, and what is applied makes room: more than the
// bound goes through.
func TestRoomIsMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		applyCh := make(chan ApplyMsg)
		rf := Make([]ClientEnd{silence{}}, 0, &forgetful{}, applyCh)
		defer rf.Kill()
		time.Sleep(2 * electionTimeout)
		started, applied := 0, 0
		command := make([]byte, 1<<20)
		for applied < 24 {
			for {
				index, _, leads := rf.Start(command)
				if !leads {
					break
				}
				if started++; index != started {
					t.Fatalf("command %d is at index %d", started, index)
				}
			}
			if started-applied > 20 {
				t.Fatalf("%d commands of a megabyte are under way", started-applied)
			}
			select {
			case m := <-applyCh:
				if applied++; m.CommandIndex != applied {
					t.Fatalf("command %d comes behind %d", m.CommandIndex, applied-1)
				}
			case <-time.After(time.Second):
				t.Fatalf("%d commands are started, %d applied, and nothing goes on", started, applied)
			}
			synctest.Wait()
		}
	})
}

// busy is a persister that lets nothing end: whenever something is saved it
// starts the next command.
type busy struct {
	disk
	rf atomic.Pointer[Raft]
}

func (b *busy) Save(state, snapshot []byte) {
	b.disk.Save(state, snapshot)
	if rf := b.rf.Load(); rf != nil {
		rf.Start([]byte("more"))
	}
}

// A peer that is never idle has its ticks all the same: heartbeats, elections
// and the check for a quorum hang on them.
func TestTicksGoOnUnderLoad(t *testing.T) {
	b := &busy{}
	applyCh := make(chan ApplyMsg)
	rf := Make([]ClientEnd{silence{}}, 0, b, applyCh)
	defer rf.Kill()
	b.rf.Store(rf)
	for n := 1; ; n++ {
		m := <-applyCh
		if m.CommandIndex%1000 == 0 {
			rf.Snapshot(m.CommandIndex, nil)
		}
		rf.mu.Lock()
		ticks := rf.replica.asked.age
		rf.mu.Unlock()
		if ticks > 50 {
			return
		}
		if m.CommandIndex > 10_000_000 {
			t.Fatalf("%d ticks in the time of %d commands", ticks, n)
		}
	}
}

// nosy asks the peer whose call it is: with a lock held over the call it would
// wait for itself.
type nosy struct{ rf atomic.Pointer[Raft] }

func (n *nosy) Call(string, any, any) bool {
	if rf := n.rf.Load(); rf != nil {
		rf.GetState()
		rf.Start([]byte("from within a call"))
		rf.Snapshot(1, nil)
		rf.Deliver(&DeliverArgs{From: 1, Requests: []Request{{Term: 1, AppendEntries: &AppendEntries{}}}}, &DeliverReply{})
	}
	return false
}

func TestNoLockIsHeldInCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		end := &nosy{}
		rf := Make([]ClientEnd{nil, end, end}, 0, &disk{}, make(chan ApplyMsg))
		end.rf.Store(rf)
		time.Sleep(time.Minute)
		if term, _ := rf.GetState(); term < 1 {
			t.Errorf("after a minute the term is %d", term)
		}
		rf.Kill()
	})
}

// never is a ClientEnd whose calls do not return before it is closed.
type never struct {
	out    atomic.Int32
	closed chan struct{}
}

func (n *never) Call(string, any, any) bool {
	n.out.Add(1)
	<-n.closed
	return false
}

// Calls that never return are bounded in number, and Kill does not wait for
// them.
func TestCallsThatNeverReturnAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		end := &never{closed: make(chan struct{})}
		rf := Make([]ClientEnd{nil, end, end}, 0, &disk{}, make(chan ApplyMsg))
		time.Sleep(5 * time.Minute)
		if n := end.out.Load(); n != 2*callsMax {
			t.Errorf("after five minutes %d calls to two peers are out, the bound is %d each", n, callsMax)
		}
		rf.Kill()
		close(end.closed)
	})
}

// Kill leaves no goroutine behind, at any moment.
func TestKillStopsEverything(t *testing.T) {
	for round := range 50 {
		rf := Make([]ClientEnd{silence{}, silence{}, silence{}}, 1, &disk{}, make(chan ApplyMsg))
		time.Sleep(time.Duration(round) * 100 * time.Microsecond)
		rf.Kill()
		rf.Kill()
	}
	var left string
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		stacks := make([]byte, 1<<20)
		left = string(stacks[:runtime.Stack(stacks, true)])
		if !strings.Contains(left, "peer.(*Raft).loop") && !strings.Contains(left, "peer.(*applier).run") && !strings.Contains(left, "peer.(*lane).run") {
			return
		}
	}
	t.Errorf("goroutines after Kill:\n%s", left)
}

// What waits for a peer is bounded, the newest kept; a heartbeat takes the place
// of the one before it, a snapshot that of any other.
func TestLaneQueue(t *testing.T) {
	var queue []Request
	for n := range 3 * laneMax {
		queue = enqueue(queue, Request{Term: uint64(n + 1), AppendEntries: &AppendEntries{}})
	}
	if len(queue) != laneMax || queue[laneMax-1].Term != 3*laneMax {
		t.Errorf("%d requests wait, the last of term %d", len(queue), queue[len(queue)-1].Term)
	}
	queue = nil
	for n := range 10 {
		queue = enqueue(queue, Request{Term: 1, AppendEntries: &AppendEntries{LeaderCommit: uint64(n)}})
		queue = enqueue(queue, Request{Term: 1, AppendEntries: &AppendEntries{LeaderCommit: uint64(n)}})
		queue = enqueue(queue, Request{Term: 1, InstallSnapshot: &InstallSnapshot{LastIncludedIndex: uint64(n)}})
	}
	if len(queue) != 3 || queue[2].AppendEntries.LeaderCommit != 9 || queue[1].InstallSnapshot.LastIncludedIndex != 9 {
		t.Errorf("waiting are %+v", queue)
	}
}
