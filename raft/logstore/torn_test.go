package logstore

import (
	"bytes"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/flotilla-kv/flotilla/raft"
)

// tornImage is what a power cut right before a sync left: each block that was
// written since the last one with a chance of its own.
type tornImage struct {
	fs      *vfs.MemFS
	percent int
	acked   raft.Index // acknowledged by then
}

// powerCuts takes images right before syncs.
type powerCuts struct {
	mem    *vfs.MemFS
	rng    *rand.Rand // the log's writer and its keeper sync at the same time
	busy   chan struct{}
	acked  atomic.Uint64
	images []tornImage
}

func (c *powerCuts) String() string { return "power cuts" }

// tornImagesMost bounds what the test holds in memory.
const tornImagesMost = 99

// MaybeError implements errorfs.Injector.
func (c *powerCuts) MaybeError(op errorfs.Op) error {
	if !isSync(op) || c.acked.Load() == 0 {
		return nil
	}
	c.busy <- struct{}{}
	defer func() { <-c.busy }()
	if len(c.images) < tornImagesMost && c.rng.IntN(3) == 0 {
		percent := 1 + len(c.images)
		acked := raft.Index(c.acked.Load())
		fs := c.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: c.rng})
		c.images = append(c.images, tornImage{fs, percent, acked})
	}
	return nil
}

// TestAnyPartOfWhatWasNotSynced: a power cut during a sync leaves any of the
// blocks that were on their way. All that was acknowledged is there, what was
// not is there whole and in order or not at all, and none of it passes for a
// cut log.
func TestAnyPartOfWhatWasNotSynced(t *testing.T) {
	mem := vfs.NewCrashableMem()
	cuts := &powerCuts{mem: mem, rng: rand.New(rand.NewPCG(1, 2)), busy: make(chan struct{}, 1)}
	o := testOptions(t, errorfs.Wrap(mem, cuts))
	o.SegmentBytes, o.EvidenceEvery = 128<<10, time.Millisecond
	s := openTest(t, o)
	id := key(2, 1)
	createTest(t, s, id)
	data := func(i raft.Index) []byte {
		return bytes.Repeat([]byte{byte(i), byte(i >> 8), 0xA5}, 1+int(i*i*37%5000))
	}
	const last = 400
	for i := raft.Index(1); i <= last; i++ {
		w := raft.Write{Entries: []raft.Entry{{Index: i, Term: 1, Data: data(i)}}}
		if i == 1 {
			w.HardState = &raft.HardState{Term: 1, Vote: 1}
		}
		if err := appendWait(s, Write{ID: id, Write: w}); err != nil {
			t.Fatal(err)
		}
		cuts.acked.Store(uint64(i))
		if i%50 == 0 {
			s.Compact(id, i-40)
		}
	}
	closeTest(t, s)
	if len(cuts.images) < 50 {
		t.Fatalf("only %d power cuts", len(cuts.images))
	}
	whole := 0
	for _, image := range cuts.images {
		whole += checkTorn(t, image, id, data)
	}
	if whole == 0 {
		t.Error("no write that was not acknowledged was there: nothing was tried")
	}
}

// checkTorn opens what a power cut left; it returns how many entries are there
// beyond those acknowledged.
func checkTorn(t *testing.T, image tornImage, id raft.ReplicaKey, data func(raft.Index) []byte) (more int) {
	t.Helper()
	s := openTest(t, testOptions(t, image.fs))
	defer closeTest(t, s)
	state, err := s.Load(id)
	if err != nil {
		t.Fatalf("%d %% of the blocks, %d acknowledged: %v", image.percent, image.acked, err)
	}
	if state.Suspect || s.Cut() {
		t.Fatalf("%d %% of the blocks, %d acknowledged: the log passes for cut", image.percent, image.acked)
	}
	if state.Last < image.acked {
		t.Fatalf("%d %% of the blocks: the log ends at %d, %d was acknowledged", image.percent, state.Last, image.acked)
	}
	entries, err := s.Reader(id).Entries(state.First, state.Last+1, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	for i := range entries {
		if e := &entries[i]; !bytes.Equal(e.Data, data(e.Index)) {
			t.Fatalf("%d %% of the blocks: entry %d is not what was written", image.percent, e.Index)
		}
	}
	return int(state.Last - image.acked)
}
