package transport

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
)

// memoryWorld is a Memory with a clock and recorders.
type memoryWorld struct {
	*Memory
	clock time.Time
	node  map[raft.NodeID]*MemoryNode
	heard map[raft.NodeID]*recorder
}

func newMemoryWorld(seed uint64, ids ...raft.NodeID) *memoryWorld {
	w := &memoryWorld{clock: at(0), node: make(map[raft.NodeID]*MemoryNode), heard: make(map[raft.NodeID]*recorder)}
	w.Memory = NewMemory(func() time.Time { return w.clock }, rand.New(rand.NewPCG(seed, 0)), Timing{})
	for _, id := range ids {
		w.boot(id, 1)
	}
	return w
}

func (w *memoryWorld) boot(id raft.NodeID, boot uint64) {
	w.node[id], w.heard[id] = w.Join(Identity{ClusterID: "c", Self: id, Boot: boot}), newRecorder()
	w.node[id].Start(w.heard[id])
}

// run lets d pass, from one event to the next.
func (w *memoryWorld) run(d time.Duration) {
	for end := w.clock.Add(d); w.clock.Before(end); {
		w.Turn()
		next := w.Next()
		if !next.After(w.clock) {
			next = w.clock.Add(ms)
		}
		w.clock = next
		if w.clock.After(end) {
			w.clock = end
		}
	}
	w.Turn()
}

func (w *memoryWorld) terms(to, from raft.NodeID) (terms []int) {
	for _, m := range w.heard[to].from(from) {
		terms = append(terms, int(m.Term))
	}
	return terms
}

func TestMemoryLiveness(t *testing.T) {
	w := newMemoryWorld(1, 1, 2, 3)
	w.run(time.Second)
	for _, id := range []raft.NodeID{1, 2, 3} {
		if !w.node[1].Alive(id) || len(w.node[id].Clocks()) != 3 {
			t.Fatalf("node %d: alive %v, clocks %v", id, w.node[1].Alive(id), w.node[id].Clocks())
		}
	}
	w.SetFaults(2, 1, Faults{Cut: true}) // 1 hears nothing of 2; 2 is told so by the echo
	w.run(2 * time.Second)
	if w.node[1].Alive(2) || w.node[2].Alive(1) || !w.node[3].Alive(2) {
		t.Error("one direction is cut: neither of the pair is alive to the other, all else is")
	}
	w.Heal()
	w.run(time.Second)
	w.Crash(2)
	if w.node[1].Alive(2) {
		t.Error("a crash resets the connections: the peers know at once")
	}
	w.boot(2, 2)
	w.run(time.Second)
	if got := w.heard[1].eventLine(); got != "up 2/1, up 3/1, down 2, up 2/1, down 2, up 2/2" {
		t.Errorf("events %q", got)
	}
	w.Partition([]raft.NodeID{1, 3}, []raft.NodeID{2})
	w.run(time.Second)
	if w.node[1].Alive(2) || !w.node[1].Alive(3) {
		t.Error("the partition does not divide")
	}
}

func TestMemoryMessages(t *testing.T) {
	w := newMemoryWorld(7, 1, 2)
	slow := Faults{DelayMax: 50 * time.Millisecond}
	w.SetFaults(1, 2, slow)
	want := make([]int, 200)
	for i := range want {
		want[i] = i + 1
		w.node[1].Send(2, []raft.Message{numbered(i + 1)})
		w.run(ms)
	}
	w.run(time.Second)
	if got := w.terms(2, 1); !slices.Equal(got, want) {
		t.Errorf("out of order: %v", got)
	}
	slow.Reorder, slow.Drop, slow.Duplicate = true, 0.3, 0.3
	w.SetFaults(1, 2, slow)
	w.boot(2, 2)
	for i := range want {
		w.node[1].Send(2, []raft.Message{numbered(i + 1)})
		w.run(ms)
	}
	w.run(time.Second)
	got := w.terms(2, 1)
	if slices.IsSorted(got) {
		t.Error("nothing overtook")
	}
	slices.Sort(got)
	distinct := slices.Compact(slices.Clone(got))
	if len(distinct) > 180 || len(distinct) < 100 || len(got) == len(distinct) {
		t.Errorf("of 200 messages %d came, %d with repetitions: want about 140 and more", len(distinct), len(got))
	}
}

// A parcel shares no memory with its sender and does not outlive a process.
func TestMemoryIsAWire(t *testing.T) {
	w := newMemoryWorld(1, 1, 2)
	w.SetFaults(1, 2, Faults{DelayMin: 10 * ms, DelayMax: 11 * ms})
	m := heavy(1, 3)
	w.node[1].Send(2, []raft.Message{m})
	m.Body.(*raft.AppendEntries).Entries[0].Data[0] = 9
	w.run(20 * ms)
	if got := w.heard[2].from(1)[0].Body.(*raft.AppendEntries).Entries[0].Data[0]; got != 0 {
		t.Error("sender and receiver share memory")
	}
	w.node[1].Send(2, []raft.Message{numbered(2)})
	w.boot(2, 2)
	w.run(time.Second)
	if w.heard[2].got(1) != 0 {
		t.Error("a message to the old process reached the new one")
	}
}

func TestMemoryReplays(t *testing.T) {
	history := func(seed uint64) string {
		w := newMemoryWorld(seed, 1, 2, 3)
		for _, a := range []raft.NodeID{1, 2, 3} {
			for _, b := range []raft.NodeID{1, 2, 3} {
				w.SetFaults(a, b, Faults{Drop: 0.2, Duplicate: 0.1, DelayMax: 30 * ms, Reorder: true})
			}
		}
		for i := range 100 {
			w.node[raft.NodeID(i%3+1)].Send(raft.NodeID((i+1)%3+1), []raft.Message{numbered(i + 1)})
			w.run(5 * ms)
		}
		return fmt.Sprint(w.terms(2, 1), w.terms(3, 2), w.terms(1, 3), w.heard[1].eventLine(), w.Dropped())
	}
	if a, b := history(5), history(5); a != b {
		t.Errorf("one seed, two histories:\n%s\n%s", a, b)
	}
	if history(5) == history(6) {
		t.Error("two seeds, one history")
	}
}

func TestMemorySnapshot(t *testing.T) {
	w := newMemoryWorld(1, 1, 2)
	var got []byte
	w.heard[2].onSnapshot(readInto(&got))
	next, whole := pieces(5, 100)
	if err := w.node[1].SendSnapshot(t.Context(), 2, testHeader(), next); err != nil || string(got) != string(whole) {
		t.Errorf("%v, %d bytes of %d", err, len(got), len(whole))
	}
	next, _ = pieces(50, 100)
	calls := 0
	err := w.node[1].SendSnapshot(t.Context(), 2, testHeader(), func() ([]byte, error) {
		if calls++; calls == 10 {
			w.SetFaults(1, 2, Faults{Cut: true})
		}
		return next()
	})
	if !errors.Is(err, ErrSnapshotBroken) {
		t.Errorf("cut in the middle: %v", err)
	}
}
