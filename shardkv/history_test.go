package shardkv

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/multiraft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// told is all that a history holds, by shard, read in pieces of a size.
func (h *history) told(t fataler, piece int) (all map[shardmap.ShardID][]event) {
	t.Helper()
	all = make(map[shardmap.ShardID][]event)
	h.sharpen()
	r := historyReader{history: h}
	buf := make([]byte, piece)
	for end := false; !end; {
		var b []byte
		before := r.offset
		b, end = r.read(buf, nil, nil)
		b = bytes.Clone(b)
		for whole := true; whole; {
			var e event
			var rest []byte
			if e, rest, whole = cutEvent(b); whole {
				r.offset += uint64(len(b) - len(rest))
				all[e.shard] = append(all[e.shard], e)
				b = rest
			}
		}
		if !end && r.offset == before {
			t.Fatalf("a reader with %d bytes does not come on", piece)
		}
	}
	return all
}

func (e event) String() string {
	return fmt.Sprintf("%v %q=%q@%d/%d large=%v", e.kind, e.key, e.value, e.version, e.expires, e.large)
}

// compareEvents requires that the history of a shard holds just the spec's
// events behind its beginning; if any may be bare, it may hold any value as too
// large.
func compareEvents(t fataler, shard shardmap.ShardID, now shardHistory, got, want []event, anyBare bool) {
	t.Helper()
	if now.through != uint64(len(want)) {
		t.Fatalf("shard %d: the history goes through %d, there were %d writes", shard, now.through, len(want))
	}
	got = slices.DeleteFunc(slices.Clone(got), func(e event) bool { return e.version <= now.begin })
	want = slices.Clone(want[now.begin:])
	for i := range max(len(got), len(want)) {
		if i < min(len(got), len(want)) && got[i].large && len(want[i].value) > 0 && anyBare {
			want[i].large, want[i].value = true, nil
		}
		if i >= len(got) || i >= len(want) {
			t.Fatalf("shard %d behind %d: %d events, not %d", shard, now.begin, len(got), len(want))
		}
		if g, w := got[i].String(), want[i].String(); g != w {
			t.Fatalf("shard %d event %d: %s, not %s", shard, i, g, w)
		}
	}
}

// TestEventsAreTheWrites gives one log to replicas in batches of different
// sizes, of which one is restarted. What each tells is what the spec did, write
// by write and under its version; and the events are the differences of the
// states: applied to nothing they lead to what is there.
func TestEventsAreTheWrites(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		log := newAuthor().log(t)
		s, restarted := new(spec), newRig(t)
		replicas := []*rig{newRig(t), newRig(t), restarted}
		for _, d := range log {
			s.apply(d.stamp, d.commands)
		}
		for _, r := range replicas {
			for rest := log; len(rest) > 0; {
				n := rapid.IntRange(1, len(rest)).Draw(t, "batch")
				var batch []entry
				for _, d := range rest[:n] {
					batch = append(batch, d.entry())
				}
				r.apply(t, batch...)
				if rest = rest[n:]; r == restarted && rapid.Bool().Draw(t, "restart") {
					r.restart(t)
				}
			}
			got := r.machine.history.told(t, rapid.IntRange(eventHead, 500).Draw(t, "piece"))
			for shard, sh := range s.shards {
				now, _, _ := r.machine.history.stand(shard)
				if r != restarted && now.begin != 0 {
					t.Fatalf("shard %d: the history begins at %d", shard, now.begin)
				}
				compareEvents(t, shard, now, got[shard], sh.events, false)
			}
		}
		for shard, sh := range s.shards {
			if got, want := fmt.Sprint(keysAfter(t, sh.events)), fmt.Sprint(sh.keys); got != want {
				t.Fatalf("shard %d: the events lead to\n  %s\n  and it holds\n  %s", shard, got, want)
			}
		}
	})
}

// keysAfter is what events make of no keys.
func keysAfter(t fataler, events []event) map[string]record {
	keys := make(map[string]record)
	for _, e := range events {
		switch e.kind {
		case flotillav1.WatchEvent_PUT:
			keys[string(e.key)] = record{version: e.version, expires: e.expires, value: e.value}
		case flotillav1.WatchEvent_CLEAR:
			span, err := decodeSpan(e.value)
			if err != nil {
				t.Fatalf("span: %v", err)
			}
			for key := range keys {
				if span.has(key) {
					delete(keys, key)
				}
			}
		default:
			delete(keys, string(e.key))
		}
	}
	return keys
}

// TestTheRing holds a history against a list: batches of any sizes, more than a
// ring holds among them, under a budget.
func TestTheRing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var budget atomic.Int64
		budget.Store(rapid.SampledFrom([]int64{0, 5 << 10, 1 << 30}).Draw(t, "budget"))
		given := budget.Load()
		h := &history{budget: &budget}
		shards := []*heldShard{{id: 0}, {id: 3}}
		for _, sh := range shards {
			sh.state, sh.incarnation = shardOwned, 1
		}
		h.restart(0, shards)
		all := make(map[shardmap.ShardID][]event)
		sizes := []int{0, 1, 100, 1000, 5000, historyValueMax, historyValueMax + 1}
		for range rapid.IntRange(1, 40).Draw(t, "batches") {
			for range rapid.IntRange(0, 7).Draw(t, "events") {
				sh := rapid.SampledFrom(shards).Draw(t, "shard")
				sh.writes++
				e := event{key: []byte(fmt.Sprint("key", sh.writes)), version: sh.writes, expires: int64(sh.writes)}
				e.value = bytes.Repeat([]byte{byte(sh.writes)}, rapid.SampledFrom(sizes).Draw(t, "size"))
				h.add(sh, e.kind, e.key, e.value, e.expires)
				if len(e.value) > historyValueMax {
					e.value, e.large = nil, true
				}
				all[sh.id] = append(all[sh.id], e)
			}
			h.publish(1, nil)
			got := h.told(t, rapid.IntRange(eventHead, 20_000).Draw(t, "piece"))
			for _, sh := range shards {
				now, _, _ := h.stand(sh.id)
				compareEvents(t, sh.id, now, got[sh.id], all[sh.id], true)
			}
			if taken := max(0, len(h.ring)-historyBytesMin); int64(taken) != given-budget.Load() || budget.Load() < 0 {
				t.Fatalf("the ring has %d bytes, and took %d of the budget", len(h.ring), given-budget.Load())
			}
		}
		if h.close(); budget.Load() != given {
			t.Fatalf("%d of %d bytes came back", budget.Load(), given)
		}
	})
}

// TestWhatIsKnownIsNotLookedFor: where histories begin is found once, unless
// something was dropped.
func TestWhatIsKnownIsNotLookedFor(t *testing.T) {
	h := new(history)
	shards := []*heldShard{{id: 0}, {id: 1}}
	for _, sh := range shards {
		sh.state, sh.incarnation = shardOwned, 1
	}
	h.restart(0, shards)
	write := func(sh *heldShard) {
		sh.writes++
		h.add(sh, flotillav1.WatchEvent_PUT, []byte("k"), make([]byte, historyValueMax), 0)
		h.publish(1, nil)
	}
	write(shards[0])
	write(shards[1])
	for range 14 {
		write(shards[0])
	}
	begins := func(want0, want1 uint64) {
		t.Helper()
		h.sharpen()
		if h.shards[0].begin != want0 || h.shards[1].begin != want1 {
			t.Fatalf("they begin at %d and %d, not %d and %d", h.shards[0].begin, h.shards[1].begin, want0, want1)
		}
	}
	begins(1, 0) // one was dropped
	h.shards[0].begin = 0
	begins(0, 0) // and none since
	h.shards[0].begin = 1
	write(shards[0])
	begins(1, 1)
	write(shards[1])
	begins(2, 1)
	if first := h.shards[0].first; first != h.start {
		t.Errorf("the first event is at %d, not %d", first, h.start)
	}
	h.shards[1].begin = 0
	write(shards[0])
	begins(3, 0) // none of shard 1
}

// TestABatchThatIsTooLargeLosesItsValues and not the history of all shards. Only
// one that is too large without them does that.
func TestABatchThatIsTooLargeLosesItsValues(t *testing.T) {
	for _, c := range []struct {
		name   string
		events int
		value  int
		budget int64
		key    string
		begin  uint64 // of the history then
		last   string
	}{
		{"it fits", 15, historyValueMax, 1 << 30, "k", 0, "large=false"},
		{"more than the largest ring", 16, historyValueMax, 1 << 30, "k", 0, "large=true"},
		{"more than the budget", 2, historyBytesMin / 2, 0, "k", 0, "large=true"},
		{"keys of more than the ring", 17, 10, 1 << 30, strings.Repeat("k", 62_000), 18, ""},
		{"keys of more than the budget", 2, 10, 0, strings.Repeat("k", historyBytesMin/2), 3, ""},
	} {
		var budget atomic.Int64
		budget.Store(c.budget)
		h := &history{budget: &budget}
		sh := &heldShard{}
		sh.state, sh.incarnation = shardOwned, 1
		h.restart(0, []*heldShard{sh})
		add := func(key string, value int) {
			sh.writes++
			h.add(sh, flotillav1.WatchEvent_PUT, []byte(key), make([]byte, value), 0)
		}
		add("before", 10)
		h.publish(1, nil)
		for range c.events {
			add(c.key, c.value)
		}
		h.publish(2, nil)
		got := h.told(t, 1000)[0]
		if now, _, _ := h.stand(0); now.begin != c.begin || len(got) != int(now.through-c.begin) {
			t.Errorf("%s: the history begins at %d and has %d events", c.name, now.begin, len(got))
		}
		for i, e := range got {
			if i > 0 && !strings.HasSuffix(e.String(), c.last) || i == 0 && e.large {
				t.Errorf("%s: event %d has %d bytes, large=%v", c.name, i, len(e.value), e.large)
			}
		}
	}
}

// TestNothingIsToldBeforeItIsCommitted: what entries change is told by nobody
// until their batch is in the store, and of one that never gets there nothing is.
func TestNothingIsToldBeforeItIsCommitted(t *testing.T) {
	r := newRig(t)
	r.born(t, epoch, 1)
	r.one(t, epoch, plain(0, put("k", "a")))
	h := &r.machine.history
	woken := make(chan struct{}, 1)
	h.subscribe(woken)
	b := r.replica.NewBatch()
	e := newEntry(epoch, plain(0, put("k", "b")), plain(0, del("k")))
	if err := r.machine.Apply(b, multiraft.Applied{Index: r.index + 1, Stamp: e.stamp, Commands: e.commands}, make([]any, 2)); err != nil {
		t.Fatal(err)
	}
	r.machine.Finish(b)
	b.SetApplied(r.index+1, 1, raft.Membership{})
	if now, _, _ := h.stand(0); now.through != 1 || len(h.told(t, 100)[0]) != 1 || len(woken) != 0 {
		t.Fatalf("through %d, %v before the commit", now.through, h.told(t, 100))
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	r.machine.Committed(r.index + 1)
	if now, _, _ := h.stand(0); now.through != 3 || len(h.told(t, 100)[0]) != 3 || len(woken) != 1 {
		t.Fatalf("through %d, %v after it", now.through, h.told(t, 100))
	}
}

// TestAnIdleGroupKeepsNothing: a history has memory from the first write on.
func TestAnIdleGroupKeepsNothing(t *testing.T) {
	r := newRig(t)
	r.born(t, epoch, 4)
	if h := &r.machine.history; h.ring != nil || h.staged != nil {
		t.Fatalf("%d bytes before a write", len(h.ring))
	}
	r.one(t, epoch, plain(0, put("k", "v")))
	if h := &r.machine.history; len(h.ring) != historyBytesMin {
		t.Fatalf("%d bytes for one write", len(h.ring))
	}
}

// TestWhatASpanMeets compares with keys tried one by one.
func TestWhatASpanMeets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		keys := []string{"a", "aa", "ab", "ab\x00", "abc", "ac", "b", "\xff", "\xff\xff"}
		s := drawSpan(t, opClear)
		w := watched{prefix: []byte(rapid.SampledFrom([]string{"", "a", "ab", "\xff"}).Draw(t, "prefix"))}
		if rapid.Bool().Draw(t, "one key") {
			w = watched{key: drawKey(t)}
			keys = append(keys, string(w.key))
		}
		for _, key := range keys {
			if w.has([]byte(key)) && s.has(key) && !w.meets(&s) {
				t.Fatalf("%q is watched by %+v and in %+v, which do not meet", key, w, s)
			}
		}
		if len(w.key) > 0 && w.meets(&s) && !s.has(string(w.key)) {
			t.Fatalf("%q meets %+v", w.key, s)
		}
	})
}
