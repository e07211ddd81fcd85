package peer

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
)

// ClientEnd is the way to one peer. Call delivers args to the method's handler
// there and fills reply in; false means that one or the other was lost, and
// that nothing is known of what the handler did. It may take seconds, but it
// returns. It is called by several goroutines at a time.
type ClientEnd interface {
	Call(method string, args, reply any) bool
}

// Persister holds what outlives a crash. Save replaces both at once, and they
// are durable when it returns; it is called by one goroutine at a time. The
// slices are not changed afterwards by either side. A snapshot that was never
// taken is empty.
type Persister interface {
	Save(state, snapshot []byte)
	ReadRaftState() []byte
	ReadSnapshot() []byte
	RaftStateSize() int
}

// ApplyMsg is a command that is committed, with CommandValid, or a state that
// takes the place of everything before it, with SnapshotValid: all commands
// through SnapshotIndex are in it, and the next is SnapshotIndex+1. Whatever it
// holds is the receiver's.
type ApplyMsg struct {
	CommandValid bool
	Command      []byte
	CommandIndex int

	SnapshotValid bool
	Snapshot      []byte
	SnapshotTerm  int // of the command at SnapshotIndex
	SnapshotIndex int
}

// The clock of a peer. A heartbeat every 120 ms stays below ten messages a
// second; an election timeout of 450 to 900 ms lets three of them get lost. A
// leader that hears no majority resigns within 1.8 s: on a slow way back most
// answers take longer than an election timeout.
const (
	tickInterval   = 30 * time.Millisecond
	heartbeatTicks = 4
	electionTicks  = 15
	quorumTicks    = 2 * electionTicks
)

// inflightMessagesMax is how many AppendEntries with entries one follower may
// owe an answer to. What is started meanwhile shares the next.
const inflightMessagesMax = 16

// Raft is one peer. All methods are safe for concurrent use.
type Raft struct {
	persister Persister
	lanes     []*lane // by peer; nil at our own place
	applier   *applier
	wake      chan struct{} // has an element if the loop has something to do

	mu      sync.Mutex // guards what follows; held for pure steps only
	replica *replica
	killed  bool

	stop    chan struct{} // closed by Kill
	killing sync.Once
	running sync.WaitGroup // the loop, the applier and the lanes; not the calls
}

// Make starts peer me of peers from what the persister holds, and returns at
// once. Commands and snapshots come through applyCh until Kill, beginning with
// the snapshot that the persister holds, if any.
//
// It panics if the persister holds what no peer of that number has saved: a
// peer that does not know what it has promised must not go on.
func Make(peers []ClientEnd, me int, persister Persister, applyCh chan ApplyMsg) *Raft {
	rp, err := openReplica(len(peers), me, rand.IntN, persister.ReadRaftState(), bytes.Clone(persister.ReadSnapshot()))
	if err != nil {
		panic(fmt.Sprintf("peer: peer %d of %d cannot start: %v", me, len(peers), err))
	}
	rf := &Raft{
		persister: persister,
		replica:   rp,
		wake:      make(chan struct{}, 1),
		stop:      make(chan struct{}),
	}
	rf.applier = newApplier(applyCh, rf.stop, rf.applied)
	if rp.snapshot.index > 0 {
		rf.applier.push(delivery{snapshot: rp.snapshot, through: rp.snapshot.index})
	}
	for i, end := range peers {
		if i == me {
			rf.lanes = append(rf.lanes, nil)
			continue
		}
		rf.lanes = append(rf.lanes, newLane(me, i, end, rf.stop, rf.answered))
		rf.running.Go(rf.lanes[i].run)
	}
	rf.running.Go(rf.applier.run)
	rf.running.Go(rf.loop)
	return rf
}

// Start begins agreement on a command and returns at once, with the index that
// it will have if it is ever committed, the present term, and whether this peer
// is the leader. If it is not, index is -1 and nothing was begun. A leader that
// has 16 MiB under way says so too: ask again. The command is copied.
func (rf *Raft) Start(command []byte) (index, term int, isLeader bool) {
	command = bytes.Clone(command)
	rf.mu.Lock()
	defer rf.mu.Unlock()
	if rf.killed {
		return -1, int(rf.replica.core.Term()), false
	}
	index, ok := rf.replica.start(command)
	if ok {
		rf.signal()
	}
	return index, int(rf.replica.core.Term()), ok
}

// GetState tells the current term, and whether this peer takes itself for its
// leader.
func (rf *Raft) GetState() (term int, isLeader bool) {
	rf.mu.Lock()
	defer rf.mu.Unlock()
	return int(rf.replica.core.Term()), rf.replica.core.Role() == raft.Leader && !rf.killed
}

// Snapshot says that data, which is copied, is the state after the command at
// index, which must have come through applyCh. When it returns, the log through
// index is gone and the persister holds data. One that is not later than the
// last, or later than what was handed out, changes nothing. It may be called by
// the reader of applyCh.
func (rf *Raft) Snapshot(index int, data []byte) {
	data = bytes.Clone(data)
	rf.mu.Lock()
	if rf.killed || !rf.replica.compact(index, data) {
		rf.mu.Unlock()
		return
	}
	w := rf.replica.wait(0)
	rf.mu.Unlock()
	rf.await(w)
}

// Deliver is the handler of the peers' one RPC: the other peer's requests come
// in, and the answers go back in reply, once everything that they promise is
// saved. Whatever no peer would say is dropped.
func (rf *Raft) Deliver(args *DeliverArgs, reply *DeliverReply) {
	rf.mu.Lock()
	if rf.killed || !rf.replica.admits(args) {
		rf.mu.Unlock()
		return
	}
	w := rf.replica.deliver(args)
	rf.mu.Unlock()
	if rf.await(w) {
		*reply = w.reply
	}
}

// Kill stops the peer for good. When it returns, nothing is saved or sent to
// applyCh any more; calls that are still out end when their Call returns, and
// nobody listens. The persister holds all that a new peer needs. It must not be
// called by the persister.
func (rf *Raft) Kill() {
	rf.killing.Do(func() {
		rf.mu.Lock()
		rf.killed = true
		rf.mu.Unlock()
		close(rf.stop)
	})
	rf.running.Wait()
}

// await waits until the loop is done with w; false: the peer was killed before.
func (rf *Raft) await(w *waiter) bool {
	rf.signal()
	select {
	case <-w.done:
		return true
	case <-rf.stop:
		return false
	}
}

func (rf *Raft) signal() {
	select {
	case rf.wake <- struct{}{}:
	default:
	}
}

// loop is the only one who takes out what the core wants done. It never waits
// for a Call nor for applyCh. However much there is to do, ticks come between
// the turns.
func (rf *Raft) loop() {
	ticker := time.NewTicker(tickInterval)
	defer ticker.Stop()
	atOnce := make(chan struct{})
	close(atOnce)
	for {
		next := rf.wake
		if rf.turn() {
			next = atOnce
		}
		select {
		case <-next:
		case <-ticker.C:
			rf.mu.Lock()
			rf.replica.tick()
			rf.mu.Unlock()
		case <-rf.stop:
			return
		}
	}
}

// turn runs one turn, and tells whether there may be another. Requests leave
// before the state is saved, for the core holds back those that must not;
// answers and what is to be applied leave after it.
func (rf *Raft) turn() bool {
	rf.mu.Lock()
	if rf.killed || !rf.replica.ready() {
		rf.mu.Unlock()
		return false
	}
	t := rf.replica.turn()
	rf.mu.Unlock()

	for _, r := range t.requests {
		rf.lanes[r.to].send(r.request)
	}
	if t.save {
		rf.persister.Save(t.state, t.snapshot)
		rf.mu.Lock()
		rf.replica.saved(&t)
		rf.mu.Unlock()
	}
	for _, d := range t.deliveries {
		rf.applier.push(d)
	}
	for _, w := range t.done {
		close(w.done)
	}
	return true
}

// answered takes in what came of a call.
func (rf *Raft) answered(to int, args *DeliverArgs, reply *DeliverReply, ok bool) {
	rf.mu.Lock()
	defer rf.mu.Unlock()
	if rf.killed {
		return
	}
	rf.replica.answered(to, args, reply, ok)
	rf.signal()
}

// applied makes room for more to be handed out.
func (rf *Raft) applied(through raft.Index) {
	rf.mu.Lock()
	defer rf.mu.Unlock()
	rf.replica.core.Applied(through)
	if rf.replica.core.HasReady() {
		rf.signal()
	}
}
