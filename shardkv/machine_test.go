package shardkv

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft/multiraft"
)

// TestOverPebble runs a made-up log over the product's store: it holds the same
// as over the model.
func TestOverPebble(t *testing.T) {
	model, real := newRig(t), newPebbleRig(t)
	for _, r := range []*rig{model, real} {
		r.born(t, epoch, 2)
		for i := range 200 {
			key := fmt.Sprint("key", i%20)
			stamp := epoch + int64(i)*10
			r.apply(t,
				newEntry(stamp, numbered(0, alice, uint64(i+1), uint64(max(1, i-3)), put(key, fmt.Sprint(i)), incr("n", 1), get(key))),
				newEntry(stamp, plain(1, appendTo("log", "x"), expireIn("log", 55)), plain(0, expireIn(key, int64(i)), scanAll())))
			if i%50 == 49 {
				r.one(t, stamp, plain(0, op{kind: opClear, span: span{prefix: []byte("key1")}}))
				r.restart(t)
			}
		}
	}
	want, keys := model.contents(t)
	if got, gotKeys := real.contents(t); got != want {
		t.Fatalf("over Pebble:\n%q\nover the model:\n%q", gotKeys, keys)
	}
	for shard := range 2 {
		a, err := Digest(model.replica, 0)
		b, err2 := Digest(real.replica, 0)
		if err != nil || err2 != nil || a != b || a.Keys == 0 || a.Answers == 0 {
			t.Fatalf("digests of shard %d: %+v %v, %+v %v", shard, a, err, b, err2)
		}
	}
}

// TestSmallEntriesWithLargeEffects appends to many large values in one entry: what
// passes the bound is answered BUSY, has no effect, and may come again.
func TestSmallEntriesWithLargeEffects(t *testing.T) {
	for _, r := range []*rig{newRig(t), newPebbleRig(t)} {
		r.born(t, epoch, 1)
		const keys = 40
		var commands []command
		for i := range uint64(keys) {
			key := fmt.Sprint("key", i)
			r.one(t, epoch, plain(0, put(key, strings.Repeat("v", ValueBytesMax-keys))))
			commands = append(commands, numbered(0, alice, i+1, 1, appendTo(key, "x")))
		}
		for round := 1; len(commands) > 0; round++ {
			var busy []command
			for i, a := range r.apply(t, newEntry(epoch, commands...)) {
				switch {
				case a.refused == flotillav1.Code_BUSY:
					busy = append(busy, commands[i])
				case a.refused != flotillav1.Code_OK || a.results[0].number != ValueBytesMax-keys+1:
					t.Fatalf("round %d, command %d: %v %s %+v", round, i, a.refused, a.message, a.results)
				case len(busy) > 0:
					t.Fatalf("round %d: command %d was carried out behind one that was too much", round, i)
				}
			}
			if len(busy) == len(commands) || round == 1 && len(busy) == 0 {
				t.Fatalf("round %d: %d of %d are busy", round, len(busy), len(commands))
			}
			commands = busy
		}
	}
}

// TestSmallEntriesWithLargeAnswers: what is read and recorded counts too, also when
// the next write frees the place.
func TestSmallEntriesWithLargeAnswers(t *testing.T) {
	r := newPebbleRig(t)
	r.born(t, epoch, 1)
	r.one(t, epoch, plain(0, put("big", strings.Repeat("v", ValueBytesMax-100))))
	var commands []command
	for i := range uint64(42) {
		id := alice
		id.client += i + 1000
		ops := append([]op{put("k", "x")}, slices.Repeat([]op{get("big")}, 2)...)
		commands = append(commands, numbered(0, id, 1, 1, ops...), numbered(0, id, 2, 2, put("k", "x")))
	}
	b := r.replica.NewBatch()
	defer b.Close()
	e := newEntry(epoch, commands...)
	results := make([]any, len(commands))
	if err := r.machine.Apply(b, multiraft.Applied{Index: r.index + 1, Term: 1, Stamp: epoch, Commands: e.commands, Waited: true}, results); err != nil {
		t.Fatal(err)
	}
	if a := results[len(results)-1].(*answer); a.refused != flotillav1.Code_BUSY {
		t.Errorf("the last of %d commands was carried out: %v", len(commands), a.refused)
	}
	if most := entryBytesMax + answerBytesMax; b.Bytes() > most {
		t.Errorf("the batch holds %d bytes, at most %d", b.Bytes(), most)
	}
}

// TestTheDigestSeesEverything that is stored of a shard, and nothing else.
func TestTheDigestSeesEverything(t *testing.T) {
	base := func() *rig {
		r := newRig(t)
		r.born(t, epoch, 2)
		r.one(t, epoch, plain(0, put("a", "1"), put("b", "2")))
		return r
	}
	digest := func(r *rig) ShardDigest {
		d, err := Digest(r.replica, 0)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	want := digest(base())
	if want.Keys != 2 || want.Writes != 2 {
		t.Fatalf("digest %+v", want)
	}
	for name, w := range map[string]*write{
		"value":   plain(0, put("a", "2")),
		"version": plain(0, put("a", "1")),
		"expiry":  plain(0, expireIn("a", 1000)),
		"key":     plain(0, put("c", "1")),
		"delete":  plain(0, del("a")),
		"answer":  numbered(0, alice, 1, 1, get("a")),
		"writes":  plain(0, put("c", ""), del("c")),
	} {
		r := base()
		r.one(t, epoch, w)
		if digest(r) == want {
			t.Errorf("another %s has the same digest", name)
		}
	}
	r := base()
	r.one(t, epoch+5, plain(1, put("elsewhere", "1")))
	if digest(r) != want {
		t.Error("a write to another shard changes the digest")
	}
}

func TestKeysGoWhenGroupTimeSaysSo(t *testing.T) {
	r := newRig(t)
	r.born(t, epoch, 1)
	r.one(t, epoch, plain(0, put("k", "v"), expireIn("k", 100)))
	if due := r.machine.NextDue(); due != epoch+100 {
		t.Fatalf("next due %d", due-epoch)
	}
	at := func(stamp int64) status { return r.one(t, stamp, plain(0, get("k"))).results[0].status }
	if at(epoch+99) != statusDone || at(epoch+50) != statusDone {
		t.Fatal("the key went too early")
	}
	stored := func() bool {
		_, ok, err := r.replica.Get(valueKey(0, 1, []byte("k")))
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	if !stored() || at(epoch+100) != statusAbsent || at(epoch+1) != statusAbsent {
		t.Fatal("the key did not go, or came back")
	}
	if stored() {
		t.Fatal("the key was not removed")
	}
	if r.machine.NextDue() != math.MaxInt64 {
		t.Fatalf("something is due: %d", r.machine.NextDue()-epoch)
	}
}

// TestManyKeysExpireOverSeveralEntries: each removes a bounded number, and all
// of them are absent from the first on.
func TestManyKeysExpireOverSeveralEntries(t *testing.T) {
	r := newRig(t)
	r.born(t, epoch, 1)
	n := 2*expiredAtOnce + 10
	for i := range n {
		r.one(t, epoch, plain(0, op{kind: opPut, key: fmt.Append(nil, i), ttl: 50}))
	}
	step := int64(epoch+50)/expiryStep*expiryStep + expiryStep
	count := func(stamp int64) uint64 {
		return r.one(t, stamp, plain(0, op{kind: opScan, span: span{countOnly: true}})).results[0].count
	}
	if seen := count(step - 1); seen != 0 {
		t.Fatalf("%d expired keys are seen", seen)
	}
	if d, _ := Digest(r.replica, 0); d.Keys != uint64(n) || r.machine.NextDue() != step {
		t.Fatalf("%d keys of %d are left within the step, the rest is due at %d instead of %d", d.Keys, n, r.machine.NextDue(), step)
	}
	entries := 0
	for r.machine.NextDue() != math.MaxInt64 {
		if seen := count(step); seen != 0 {
			t.Fatalf("%d expired keys are seen", seen)
		}
		if entries++; entries > 3 {
			t.Fatal("it does not come to an end")
		}
	}
	if entries != 3 {
		t.Fatalf("%d entries removed %d keys", entries, n)
	}
	if d, _ := Digest(r.replica, 0); d.Keys != 0 {
		t.Fatalf("%d keys are left", d.Keys)
	}
}

func TestBirthHappensOnce(t *testing.T) {
	r := newRig(t)
	wantCode(t, r.one(t, epoch, plain(0, put("k", "v"))), flotillav1.Code_UNAVAILABLE)
	if r.machine.Born() {
		t.Fatal("born before it was")
	}
	r.born(t, epoch, 1)
	r.one(t, epoch, plain(0, put("k", "v")))
	wantCode(t, r.one(t, epoch, &birth{generation: 3, shards: nil}), flotillav1.Code_OK)
	r.born(t, epoch, 4)
	if a := r.one(t, epoch, plain(0, get("k"))); string(a.results[0].value) != "v" || !r.machine.Born() {
		t.Fatalf("the second birth changed something: %s", show(a))
	}
	wantCode(t, r.one(t, epoch, plain(3, put("k", "v"))), flotillav1.Code_MOVED)
}

// TestAShardThatWentChangesNothing: ownership is checked when an entry is
// applied, nothing is recorded, and what was answered before is not repeated
// here either.
func TestAShardThatWentChangesNothing(t *testing.T) {
	r := newRig(t)
	r.born(t, epoch, 1)
	before := numbered(0, alice, 1, 1, put("k", "v"))
	r.one(t, epoch, before)
	for _, state := range []shardState{shardAbsent, shardImporting, shardHandedOff} {
		r.machine.shards[0].state = state
		sum, _ := r.contents(t)
		for _, c := range []command{before, numbered(0, alice, 2, 1, put("k", "w")), plain(0, del("k")), &outcome{shard: 0, id: alice, seq: 3}} {
			wantCode(t, r.one(t, epoch, c), flotillav1.Code_MOVED)
		}
		if now, _ := r.contents(t); now != sum {
			t.Fatalf("a write to a shard that is %v changed something", state)
		}
	}
	r.machine.shards[0].state = shardExporting
	wantCode(t, r.one(t, epoch, numbered(0, alice, 2, 1, put("k", "w"))), flotillav1.Code_OK)
}

// TestWhatIsNotUnderstoodStops: a committed command that this release does not
// know must not be skipped.
func TestWhatIsNotUnderstoodStops(t *testing.T) {
	whole := encodeCommand(plain(0, put("k", "v")))
	newer := bytes.Clone(whole)
	newer[0] = commandVersion + 1
	unknown := bytes.Clone(whole)
	unknown[1] = 200
	for name, b := range map[string][]byte{"newer": newer, "unknown": unknown, "short": whole[:len(whole)-1], "long": append(bytes.Clone(whole), 0), "empty": nil} {
		r := newRig(t)
		r.born(t, epoch, 1)
		batch := r.replica.NewBatch()
		err := r.machine.Apply(batch, multiraft.Applied{Index: 2, Term: 1, Stamp: epoch, Commands: [][]byte{b}}, make([]any, 1))
		batch.Close()
		if err == nil {
			t.Errorf("a %s command was applied", name)
		}
	}
}

func TestPagesOfAScan(t *testing.T) {
	r := newRig(t)
	r.born(t, epoch, 1)
	value := string(make([]byte, 300<<10))
	for i := range 10 {
		r.one(t, epoch, plain(0, put(fmt.Sprint("k", i), value)))
	}
	var keys []string
	start := []byte(nil)
	pages := 0
	for ; pages < 20; pages++ {
		res := r.one(t, epoch, plain(0, op{kind: opScan, span: span{start: start}})).results[0]
		size := 0
		for _, p := range res.pairs {
			keys = append(keys, string(p.key))
			size += len(p.key) + len(p.value)
		}
		if size > scanBytesMax {
			t.Fatalf("a page of %d bytes", size)
		}
		if start = res.next; start == nil {
			break
		}
	}
	if fmt.Sprint(keys) != "[k0 k1 k2 k3 k4 k5 k6 k7 k8 k9]" || pages != 3 {
		t.Fatalf("%d pages: %v", pages+1, keys)
	}
	r.one(t, epoch, plain(0, put("k0", string(make([]byte, ValueBytesMax)))))
	if res := r.one(t, epoch, plain(0, scanAll())).results[0]; len(res.pairs) != 1 || string(res.next) != "k1" {
		t.Fatalf("a large first value makes a page of %d", len(res.pairs))
	}
}

// TestASnapshotReplacesEverything that a state machine had in memory.
func TestASnapshotReplacesEverything(t *testing.T) {
	other, r := newRig(t), newRig(t)
	other.born(t, epoch, 1)
	other.one(t, epoch, plain(0, put("k", "v")))
	r.born(t, epoch, 3)
	r.one(t, epoch+5, numbered(2, alice, 1, 1, op{kind: opPut, key: []byte("x"), ttl: 10}))

	kept := r.machine
	other.copyTo(t, r)
	if err := kept.Restored(r.replica); err != nil {
		t.Fatal(err)
	}
	r.machine = kept
	if kept.NextDue() != math.MaxInt64 || kept.state.time != epoch {
		t.Fatalf("due %d, time %d", kept.NextDue(), kept.state.time)
	}
	wantCode(t, r.one(t, epoch, numbered(2, alice, 1, 1, put("x", "y"))), flotillav1.Code_MOVED)
	a := r.one(t, epoch, numbered(0, alice, 1, 1, get("k"), put("k", "w")))
	if string(a.results[0].value) != "v" || a.replayed || a.results[1].version != 2 {
		t.Fatalf("answered %s", show(a))
	}
}

// TestTheGroupsTimeIsStored also where the machine, but not the store, has
// been there before: a snapshot has set the store back.
func TestTheGroupsTimeIsStored(t *testing.T) {
	other, r := newRig(t), newRig(t)
	other.born(t, epoch, 1)
	r.born(t, epoch, 1)
	r.one(t, epoch+5, timeOnly{})
	kept := r.machine
	other.copyTo(t, r)
	if err := kept.Restored(r.replica); err != nil {
		t.Fatal(err)
	}
	r.machine = kept
	r.one(t, epoch+5, timeOnly{})
	r.restart(t)
	if r.machine.state.time != epoch+5 {
		t.Fatalf("the group's time is %d", r.machine.state.time-epoch)
	}
}

func TestEdgesOfExpiry(t *testing.T) {
	r := newRig(t)
	r.born(t, epoch, 1)
	// An expiry that falls on time 0 is long past, not "never".
	a := r.one(t, epoch, plain(0, put("k", "v"), expireIn("k", -epoch), get("k")))
	if a.results[2].status != statusAbsent {
		t.Fatalf("the key lives: %s", show(a))
	}
	// The expiry of a key that has gone is not kept.
	past := op{kind: opPut, key: []byte("k"), expireAt: epoch - 1}
	keep := op{kind: opPut, key: []byte("k"), value: []byte("w"), keepTTL: true}
	a = r.one(t, epoch, plain(0, past, get("k"), keep, get("k")))
	if a.results[1].status != statusAbsent || a.results[3].status != statusDone || a.results[3].expires != 0 {
		t.Fatalf("answered %s", show(a))
	}
	// The latest time there is.
	a = r.one(t, epoch, plain(0, expireIn("k", math.MaxInt64), get("k")))
	if a.results[1].expires != math.MaxInt64 {
		t.Fatalf("answered %s", show(a))
	}
}

func TestAValueDoesNotGrowPastItsLimit(t *testing.T) {
	r := newRig(t)
	r.born(t, epoch, 1)
	r.one(t, epoch, plain(0, put("k", string(make([]byte, ValueBytesMax-1)))))
	a := r.one(t, epoch, plain(0, appendTo("k", "xy"), appendTo("k", "x"), appendTo("k", "x")))
	got := [3]status{a.results[0].status, a.results[1].status, a.results[2].status}
	if got != [3]status{statusTooLarge, statusDone, statusTooLarge} || a.results[1].number != ValueBytesMax {
		t.Fatalf("answered %s", show(a))
	}
}

func TestNamesAndValuesDoNotRunTogether(t *testing.T) {
	a, b := digestOf(kindValue, []byte("a"), []byte("bc"))
	c, d := digestOf(kindValue, []byte("ab"), []byte("c"))
	e, f := digestOf(kindAnswer, []byte("a"), []byte("bc"))
	if a == c && b == d || a == e && b == f {
		t.Fatal("different records have one digest")
	}
	var sum ShardDigest
	for range 8 { // the carry reaches the upper half
		sum.Low = math.MaxUint64
		high := sum.High
		sum.add(kindValue, []byte("a"), []byte("bc"))
		if sum.High != high+a+1 {
			t.Fatalf("the sum of %x and %x has the upper half %x", high, a, sum.High)
		}
	}
}

// TestWhatAnEntryAllocates: the apply of numbered puts over the product's store
// allocates for the entry and the batch, not for each write.
func TestWhatAnEntryAllocates(t *testing.T) {
	const writes, perEntry = 64, 40 // 8 measured, in a batch of its own; under the race detector pools forget at random
	for _, unheard := range []bool{false, true} {
		r := newPebbleRig(t)
		r.born(t, epoch, 4)
		r.unheard = unheard
		puts := newPutSource(4, 2*writes)
		entries := []entry{{stamp: epoch}}
		got := testing.AllocsPerRun(200, func() {
			puts.arena.b = puts.arena.b[:0]
			entries[0].commands = entries[0].commands[:0]
			entries[0].stamp++
			for range writes {
				entries[0].commands = append(entries[0].commands, puts.next())
			}
			r.applyOnly(t, entries)
		})
		t.Logf("an entry of %d writes allocates %.1f times, unheard %v", writes, got, unheard)
		if got > perEntry {
			t.Errorf("an entry of %d writes allocates %.1f times, unheard %v: more than %d", writes, got, unheard, perEntry)
		}
	}
}
