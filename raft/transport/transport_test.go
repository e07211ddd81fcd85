package transport

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
)

func TestMessagesArriveInOrder(t *testing.T) {
	a, b := pair(t)
	const n = 5000
	for i := 1; i <= n; i += 10 {
		var ms []raft.Message
		for j := i; j < i+10; j++ {
			ms = append(ms, numbered(j))
		}
		a.Send(2, ms)
	}
	eventually(t, "all messages arrive", func() bool { return b.got(1) == n })
	for i, m := range b.from(1) {
		if m.Term != raft.Term(i+1) {
			t.Fatalf("message %d came at place %d", m.Term, i+1)
		}
	}
	s := a.Stats()
	if s.MessagesSent != n || s.BatchesSent > n/10+10 {
		t.Errorf("%d messages in %d batches: they are not batched", s.MessagesSent, s.BatchesSent)
	}
}

func TestBothWaysAmongThree(t *testing.T) {
	nodes := []*testNode{startNode(t, nodeSpec{id: 1}), startNode(t, nodeSpec{id: 2}), startNode(t, nodeSpec{id: 3})}
	meet(t, nodes...)
	awaitUp(t, nodes...)
	for _, from := range nodes {
		for _, to := range nodes {
			from.Send(to.id, []raft.Message{numbered(int(from.id))})
		}
	}
	for _, to := range nodes {
		for _, from := range nodes {
			if from != to {
				eventually(t, "message arrives", func() bool { return to.got(from.id) == 1 })
			}
		}
		if to.got(to.id) != 0 {
			t.Errorf("node %d sent a message to itself", to.id)
		}
	}
	if got := len(nodes[0].Clocks()); got != 3 {
		t.Errorf("%d clocks, want 3", got)
	}
}

// A receiver that stands still must cost its sender no more than the queue, and
// never block it.
func TestStalledReceiverIsBounded(t *testing.T) {
	const queueBytes = 1 << 20
	a := startNode(t, nodeSpec{id: 1, change: func(o *Options) { o.Limits.QueueBytes = queueBytes; o.Limits.BatchBytes = 256 << 10 }})
	b := startNode(t, nodeSpec{id: 2})
	meet(t, a, b)
	awaitUp(t, a, b)
	gate := make(chan struct{})
	b.recorder.mu.Lock()
	b.gate = gate
	b.recorder.mu.Unlock()
	var open sync.Once
	release := func() { open.Do(func() { close(gate) }) }
	defer release()

	const n = 1000
	begun := time.Now()
	for i := 1; i <= n; i++ {
		a.Send(2, []raft.Message{heavy(i, 100<<10)})
		if q := a.Peers()[0]; q.QueueBytes > queueBytes {
			t.Fatalf("%d bytes wait, %d are allowed", q.QueueBytes, queueBytes)
		}
	}
	if took := time.Since(begun); took > patience {
		t.Errorf("Send blocked: %v for %d messages", took, n)
	}
	eventually(t, "old messages are dropped", func() bool { return a.Stats().DroppedQueueFull > n/2 })
	if !a.Alive(2) || !b.Alive(1) {
		t.Error("a slow handler must not look like a death: liveness has its own stream")
	}
	release()
	eventually(t, "the newest message arrives", func() bool {
		got := b.from(1)
		return len(got) > 0 && got[len(got)-1].Term == n
	})
}

func TestReconnectsToARestartedPeer(t *testing.T) {
	for _, newPort := range []bool{false, true} {
		t.Run(fmt.Sprintf("newPort=%v", newPort), func(t *testing.T) {
			a, b := pair(t)
			b.stop()
			eventually(t, "the death is noticed", func() bool { return !a.Alive(2) })
			spec := nodeSpec{id: 2, boot: 2}
			if !newPort {
				spec.addr = b.addr
			}
			b2 := startNode(t, spec)
			meet(t, a, b2)
			awaitUp(t, a, b2)
			a.Send(2, []raft.Message{numbered(7)})
			eventually(t, "message arrives at the new process", func() bool { return b2.got(1) > 0 })
			eventually(t, "events", func() bool { return a.eventLine() == "up 2/1, down 2, up 2/2" })
			if boot, _ := a.Boot(2); boot != 2 {
				t.Errorf("boot %d, want 2", boot)
			}
		})
	}
}

// A reset connection is a hint that saves an election timeout: it must not take
// SuspectAfter.
func TestResetConnectionIsADeathAtOnce(t *testing.T) {
	slow := func(o *Options) { o.Timing.SuspectAfter = time.Hour }
	a, b := startNode(t, nodeSpec{id: 1, change: slow}), startNode(t, nodeSpec{id: 2, change: slow})
	meet(t, a, b)
	awaitUp(t, a, b)
	b.stop()
	eventually(t, "the reset is noticed", func() bool { return a.eventLine() == "up 2/1, down 2" })
}

// The peer's stream to us may be the only one that tells.
func TestResetOfTheirConnectionIsADeath(t *testing.T) {
	slow := func(o *Options) { o.Timing.SuspectAfter = time.Hour }
	var network faultyNet
	a := startNode(t, nodeSpec{id: 1, change: func(o *Options) { slow(o); o.Dial = network.dial }})
	b := startNode(t, nodeSpec{id: 2, change: slow})
	meet(t, a, b)
	awaitUp(t, a, b)
	network.refuse(true)
	network.cut() // a's connections; b's own stand
	eventually(t, "b notices", func() bool { return b.eventLine() == "up 1/1, down 1" })
	network.refuse(false)
	eventually(t, "b sees a again", func() bool { return b.eventLine() == "up 1/1, down 1, up 1/1" })
}

func TestSilenceIsADeath(t *testing.T) {
	var network faultyNet
	a := startNode(t, nodeSpec{id: 1, change: func(o *Options) { o.Dial = network.dial }})
	b := startNode(t, nodeSpec{id: 2})
	meet(t, a, b)
	awaitUp(t, a, b)
	heal := network.stall() // a's own connections: b hears nothing of a, and a hears b
	defer heal()
	eventually(t, "b suspects a, which is silent", func() bool { return !b.Alive(1) })
	eventually(t, "a suspects b, which is deaf", func() bool { return !a.Alive(2) })
	heal()
	awaitUp(t, a, b)
}

// A connection that passes nothing any more, with no word to either side, must
// not keep the pair apart until keepalive notices.
func TestHalfOpenConnections(t *testing.T) {
	var network faultyNet
	dial := func(o *Options) { o.Dial = network.dial }
	a, b := startNode(t, nodeSpec{id: 1, change: dial}), startNode(t, nodeSpec{id: 2, change: dial})
	meet(t, a, b)
	awaitUp(t, a, b)
	begun := time.Now()
	network.strand()
	eventually(t, "the silence is noticed", func() bool { return !a.Alive(2) && !b.Alive(1) })
	awaitUp(t, a, b)
	if took := time.Since(begun); took > keepaliveTime/2 {
		t.Errorf("apart for %v", took)
	}
	a.Send(2, []raft.Message{numbered(1)})
	eventually(t, "messages flow again", func() bool { return b.got(1) > 0 })
}

// One that learns of the other's death by a reset, and not by silence, has a
// half-open connection of its own to give up.
func TestHalfOpenAfterAReset(t *testing.T) {
	var ofA, ofB faultyNet
	a := startNode(t, nodeSpec{id: 1, change: func(o *Options) { o.Dial = ofA.dial }})
	b := startNode(t, nodeSpec{id: 2, change: func(o *Options) { o.Dial = ofB.dial }})
	meet(t, a, b)
	awaitUp(t, a, b)
	begun := time.Now()
	ofB.strand()
	ofA.cut()
	eventually(t, "b notices", func() bool { return b.eventLine() == "up 1/1, down 1" })
	awaitUp(t, a, b)
	if took := time.Since(begun); took > keepaliveTime*3/4 {
		t.Errorf("apart for %v", took)
	}
}

// A peer is alive only if it hears us: here b can send to a, but a cannot reach
// b.
func TestOneWayIsNotAlive(t *testing.T) {
	var network faultyNet
	network.refuse(true)
	a := startNode(t, nodeSpec{id: 1, change: func(o *Options) { o.Dial = network.dial }})
	b := startNode(t, nodeSpec{id: 2})
	meet(t, a, b)
	eventually(t, "a hears b", func() bool { l, _ := a.Liveness(2); return l.Boot == 1 && a.Stats().PingsReceived > 10 })
	if a.Alive(2) || b.Alive(1) {
		t.Fatalf("alive: a says %v, b says %v; only b's messages arrive", a.Alive(2), b.Alive(1))
	}
	if got := a.eventLine() + b.eventLine(); got != "" {
		t.Errorf("events %q", got)
	}
	network.refuse(false)
	awaitUp(t, a, b)
}

// A Send that hangs on a peer that is not up must not hold up the peer's
// return.
func TestSuspicionCancelsABlockedSend(t *testing.T) {
	var network faultyNet
	a := startNode(t, nodeSpec{id: 1, change: func(o *Options) { o.Dial = network.dial }})
	b := startNode(t, nodeSpec{id: 2})
	meet(t, a, b)
	awaitUp(t, a, b)
	heal := network.stall()
	defer heal()
	for i := 1; i <= 100; i++ {
		a.Send(2, []raft.Message{heavy(i, 200<<10)})
	}
	eventually(t, "the stream is cancelled", func() bool { return a.Stats().StreamsCancelled > 0 })
	eventually(t, "what waited is dropped", func() bool { return a.Peers()[0].QueueMessages == 0 })
	heal()
	awaitUp(t, a, b)
	eventually(t, "messages flow again", func() bool {
		a.Send(2, []raft.Message{numbered(1000)})
		got := b.from(1)
		return len(got) > 0 && got[len(got)-1].Term == 1000
	})
}

func TestStrangersAreRefused(t *testing.T) {
	for _, c := range []struct {
		name string
		spec nodeSpec
		as   raft.NodeID // what a takes it for
		say  string
	}{
		{"another cluster", nodeSpec{id: 2, cluster: "another"}, 2, "cluster"},
		{"another node at the address", nodeSpec{id: 3}, 2, "this is node 3"},
		{"a second node with our id", nodeSpec{id: 1, boot: 9}, 2, "node 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := startNode(t, nodeSpec{id: 1}), startNode(t, c.spec)
			if err := errors.Join(a.SetAddr(c.as, b.addr), b.SetAddr(1, a.addr)); err != nil {
				t.Fatal(err)
			}
			a.Send(c.as, []raft.Message{numbered(1)})
			eventually(t, "b refuses", func() bool { return b.Stats().StreamsRefused >= 2 })
			eventually(t, "a knows why", func() bool {
				l := a.peer(c.as).currentLine()
				l.mu.Lock()
				defer l.mu.Unlock()
				return strings.Contains(l.complaint, c.say)
			})
			if b.got(1) != 0 || a.Alive(c.as) || a.eventLine() != "" {
				t.Errorf("%d messages passed, alive %v, events %q", b.got(1), a.Alive(c.as), a.eventLine())
			}
		})
	}
}

func TestRemovedPeer(t *testing.T) {
	a, b := pair(t)
	a.RemovePeer(2)
	eventually(t, "the handler is told", func() bool { return a.eventLine() == "up 2/1, down 2" })
	before := a.Stats().DroppedUnknownPeer
	a.Send(2, []raft.Message{numbered(1)})
	if a.Stats().DroppedUnknownPeer != before+1 {
		t.Error("a message to a removed peer was not dropped")
	}
	eventually(t, "b hears nothing any more", func() bool { return !b.Alive(1) })
	if a.Alive(2) || len(a.Peers()) != 0 {
		t.Error("a removed peer is still there")
	}
	meet(t, a, b)
	awaitUp(t, a, b)
	eventually(t, "it can come back", func() bool { return a.eventLine() == "up 2/1, down 2, up 2/1" })
}

func TestTooLargeForAnyPeer(t *testing.T) {
	a, b := pair(t)
	a.Send(2, []raft.Message{numbered(1), heavy(2, messageBytesMax+1), numbered(3), heavy(4, 12<<20)})
	eventually(t, "the others arrive", func() bool { return b.got(1) == 3 })
	if a.Stats().DroppedTooLarge != 1 {
		t.Errorf("%d dropped as too large, want 1", a.Stats().DroppedTooLarge)
	}
}

func TestLifeCycle(t *testing.T) {
	tr, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	tr.Send(2, []raft.Message{numbered(1)}) // before Start: dropped
	if err := tr.SetAddr(2, "127.0.0.1:1"); !errors.Is(err, ErrNotStarted) {
		t.Errorf("SetAddr before Start: %v", err)
	}
	for _, id := range []Identity{{}, {ClusterID: "x", Self: 1}, {ClusterID: "x", Boot: 1}, {Self: 1, Boot: 1}} {
		if tr.Start(id, newRecorder()) == nil {
			t.Errorf("identity %+v was accepted", id)
		}
	}
	id := Identity{ClusterID: "x", Self: 1, Boot: 1}
	if err := tr.Start(id, newRecorder()); err != nil {
		t.Fatal(err)
	}
	if tr.Start(id, newRecorder()) == nil {
		t.Error("started twice")
	}
	tr.Close()
	tr.Close()
	if err := tr.SetAddr(2, "127.0.0.1:1"); !errors.Is(err, ErrClosed) {
		t.Errorf("SetAddr after Close: %v", err)
	}
	if err := tr.SendSnapshot(t.Context(), 2, SnapshotHeader{}, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("SendSnapshot after Close: %v", err)
	}
	for _, bad := range []Options{
		{Limits: Limits{QueueBytes: -1}},
		{Limits: Limits{BatchBytes: 16 << 20}},
		{Timing: Timing{SuspectAfter: 150 * time.Millisecond}},
		{Timing: Timing{PingInterval: -1}},
	} {
		if _, err := New(bad); err == nil {
			t.Errorf("options %+v were accepted", bad)
		}
	}
}

func TestNoGoroutineIsLeft(t *testing.T) {
	noGoroutineLeft(t, func() {
		a, b, c := startNode(t, nodeSpec{id: 1}), startNode(t, nodeSpec{id: 2}), startNode(t, nodeSpec{id: 3})
		meet(t, a, b, c)
		awaitUp(t, a, b, c)
		a.SetAddr(4, "127.0.0.1:1") // nobody there
		a.Send(2, []raft.Message{numbered(1)})
		a.Send(4, []raft.Message{numbered(1)})
		eventually(t, "arrival", func() bool { return b.got(1) == 1 })
		c.Close() // its server still runs
		eventually(t, "the end of c is noticed", func() bool { return !a.Alive(3) && !b.Alive(3) })
		a.RemovePeer(2)
		a.stop()
		b.stop()
		c.stop()
	})
}
