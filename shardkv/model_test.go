package shardkv

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// epoch is the group's time at the beginning of a test, unix ms.
const epoch int64 = 1_800_000_000_000

// drawn is one entry of a log that is made up.
type drawn struct {
	stamp    int64
	commands []command
}

func (d drawn) entry() entry { return newEntry(d.stamp, d.commands...) }

// sessionKey names a session's numbers in one shard.
type sessionKey struct {
	shard shardmap.ShardID
	id    sessionID
}

// author makes up logs: few keys, few sessions, so that things meet.
type author struct {
	time   int64
	ids    []sessionID
	sent   []*write // numbered, to be sent again
	seqs   map[sessionKey]uint64
	lowest map[sessionKey]uint64
}

func newAuthor() *author {
	a := &author{time: epoch, seqs: make(map[sessionKey]uint64), lowest: make(map[sessionKey]uint64)}
	for i := range 3 {
		a.ids = append(a.ids, sessionID{client: uint64(i + 1), birth: epoch})
	}
	return a
}

func (a *author) log(t *rapid.T) (log []drawn) {
	log = append(log, drawn{epoch, []command{&birth{generation: 1, shards: []shardmap.ShardID{0, 1, 5}}}})
	for range rapid.IntRange(1, 60).Draw(t, "entries") {
		log = append(log, a.entry(t))
	}
	return log
}

func (a *author) entry(t *rapid.T) drawn {
	switch rapid.IntRange(0, 19).Draw(t, "clock") {
	case 0: // sessions end
		a.time += rapid.Int64Range(50, 70).Draw(t, "minutes") * 60_000
		a.ids = append(a.ids, sessionID{client: uint64(len(a.ids) + 1), birth: a.time + rapid.Int64Range(-1, 61_000).Draw(t, "birth")})
	case 1, 2, 3: // keys expire
		a.time += rapid.Int64Range(10, 300).Draw(t, "ms")
	default:
		a.time += rapid.Int64Range(0, 3).Draw(t, "ms")
	}
	d := drawn{stamp: a.time}
	if rapid.IntRange(0, 9).Draw(t, "clock back") == 0 {
		d.stamp -= 100
	}
	for range rapid.IntRange(1, 4).Draw(t, "commands") {
		d.commands = append(d.commands, a.command(t))
	}
	return d
}

func (a *author) command(t *rapid.T) command {
	switch what := rapid.IntRange(0, 19).Draw(t, "command"); {
	case what == 0:
		return timeOnly{}
	case what == 1:
		return &birth{generation: 2, shards: []shardmap.ShardID{9}}
	case what <= 3:
		id := rapid.SampledFrom(a.ids).Draw(t, "session")
		return &outcome{shard: a.shard(t), id: id, seq: rapid.Uint64Range(1, 12).Draw(t, "seq")}
	case what <= 6 && len(a.sent) > 0:
		return rapid.SampledFrom(a.sent).Draw(t, "again")
	case what <= 9:
		return a.write(t)
	}
	return a.numbered(t)
}

func (a *author) shard(t *rapid.T) shardmap.ShardID {
	return rapid.SampledFrom([]shardmap.ShardID{0, 0, 0, 0, 1, 1, 5, 9}).Draw(t, "shard")
}

// numbered is a write with the next number of its session, or one that leaves
// a gap.
func (a *author) numbered(t *rapid.T) *write {
	w := a.write(t)
	key := sessionKey{w.shard, rapid.SampledFrom(a.ids).Draw(t, "session")}
	a.seqs[key] += rapid.Uint64Range(1, 2).Draw(t, "step")
	if rapid.IntRange(0, 2).Draw(t, "acknowledges") == 0 {
		a.lowest[key] = rapid.Uint64Range(a.lowest[key], a.seqs[key]).Draw(t, "lowest")
	}
	w.session = session{id: key.id, seq: a.seqs[key], lowest: a.lowest[key]}
	if rapid.IntRange(0, 30).Draw(t, "acknowledges itself") == 0 {
		w.session.lowest = w.session.seq + 1
	}
	a.sent = append(a.sent, w)
	return w
}

func (a *author) write(t *rapid.T) *write {
	w := &write{shard: a.shard(t), ops: a.ops(t, "ops")}
	if rapid.IntRange(0, 2).Draw(t, "transaction") == 0 {
		for range rapid.IntRange(1, 2).Draw(t, "compares") {
			w.compares = append(w.compares, compare{
				target:  rapid.SampledFrom([]target{compareExists, compareAbsent, compareVersion, compareValue}).Draw(t, "target"),
				key:     drawKey(t),
				version: rapid.Uint64Range(0, 8).Draw(t, "version"),
				value:   drawValue(t),
			})
		}
		w.otherwise = a.ops(t, "otherwise")
	}
	return w
}

func (a *author) ops(t *rapid.T, label string) (ops []op) {
	for range rapid.IntRange(1, 3).Draw(t, label) {
		ops = append(ops, a.op(t))
	}
	return ops
}

func (a *author) op(t *rapid.T) op {
	o := op{kind: opKind(rapid.IntRange(int(opGet), int(opClear)).Draw(t, "op")), key: drawKey(t)}
	switch o.kind {
	case opGet:
		o.noValue = rapid.Bool().Draw(t, "no value")
	case opPut:
		o.value = drawValue(t)
		o.condition = condition(rapid.IntRange(int(putAlways), int(putIfValue)).Draw(t, "condition"))
		o.version = rapid.Uint64Range(0, 8).Draw(t, "version")
		o.expected = drawValue(t)
		o.previous = rapid.Bool().Draw(t, "previous")
		if o.keepTTL = rapid.IntRange(0, 3).Draw(t, "keep ttl") == 0; !o.keepTTL {
			a.drawExpiry(t, &o)
		}
	case opDelete:
		o.previous = rapid.Bool().Draw(t, "previous")
		o.version = rapid.SampledFrom([]uint64{0, 0, 1, 2, 3, 5, 8}).Draw(t, "version")
	case opAppend:
		o.value = drawValue(t)
	case opIncr:
		o.by = rapid.SampledFrom([]int64{1, -1, 0, 1 << 62, -1 << 63}).Draw(t, "by")
	case opExpire:
		a.drawExpiry(t, &o)
	case opScan, opClear:
		o.key = nil
		o.span = drawSpan(t, o.kind)
	}
	return o
}

func (a *author) drawExpiry(t *rapid.T, o *op) {
	switch rapid.IntRange(0, 3).Draw(t, "expiry") {
	case 0:
		o.ttl = rapid.Int64Range(1, 200).Draw(t, "ttl")
	case 1:
		o.expireAt = a.time + rapid.Int64Range(-50, 200).Draw(t, "at")
	}
}

func drawSpan(t *rapid.T, kind opKind) (s span) {
	bound := rapid.SampledFrom([]string{"", "", "", "a", "ab", "b", "\xff", "\xff\xff"})
	s = span{start: []byte(bound.Draw(t, "start")), end: []byte(bound.Draw(t, "end")), prefix: []byte(bound.Draw(t, "prefix"))}
	if kind == opScan {
		s.limit = rapid.Uint64Range(0, 3).Draw(t, "limit")
		s.keysOnly = rapid.Bool().Draw(t, "keys only")
		s.countOnly = rapid.IntRange(0, 3).Draw(t, "count only") == 0
	}
	return s
}

func drawKey(t *rapid.T) []byte {
	return []byte(rapid.SampledFrom([]string{"a", "ab", "b", "\x00", "\xff", "\xff\xff", "ab\x00"}).Draw(t, "key"))
}

func drawValue(t *rapid.T) []byte {
	return []byte(rapid.SampledFrom([]string{"", "x", "1", "-7", "007", "9223372036854775807", strings.Repeat("large", leftoverBytesMax/4)}).Draw(t, "value"))
}

// TestTheMachineIsTheSpec drives the state machine and the spec with the same
// log and compares every answer, and in the end every key.
func TestTheMachineIsTheSpec(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r, s := newRig(t), new(spec)
		for i, d := range newAuthor().log(t) {
			got, want := r.apply(t, d.entry()), s.apply(d.stamp, d.commands)
			for j := range want {
				if show(got[j]) != show(want[j]) {
					t.Fatalf("entry %d command %d %s:\n  got  %s\n  want %s", i, j, showCommand(d.commands[j]), show(got[j]), show(want[j]))
				}
			}
		}
		r.compareKeys(t, s)
	})
}

// TestRestartsDoNotShow gives one log to two replicas of which one is restarted
// time and again, also by crashes that lose what was not flushed and has to be
// applied again. After every batch they have given the same answers, and hold
// the same: shard by shard by digest, and byte by byte, leftovers included.
func TestRestartsDoNotShow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		log := newAuthor().log(t)
		steady, shaken, s := newRig(t), newRig(t), new(spec)
		var given []string // by steady, for each entry
		for from := 0; from < len(log); {
			to := from + rapid.IntRange(1, min(5, len(log)-from)).Draw(t, "batch")
			for _, d := range log[from:to] {
				given = append(given, showAll(steady.apply(t, d.entry())))
				s.apply(d.stamp, d.commands)
			}
			from = to
			switch rapid.IntRange(0, 5).Draw(t, "what befalls it") {
			case 0:
				shaken.restart(t)
			case 1:
				shaken.crash(t, rapid.IntRange(0, shaken.model.Unflushed()).Draw(t, "flushed"))
			}
			for int(shaken.index) < to {
				i := int(shaken.index)
				if got := showAll(shaken.apply(t, log[i].entry())); got != given[i] {
					t.Fatalf("entry %d %v:\n  without restarts %s\n  with them        %s", i, log[i], given[i], got)
				}
			}
			if a, b := steady.digests(t), shaken.digests(t); a != b {
				t.Fatalf("after entry %d the digests are\n  without restarts %v\n  with them        %v", to-1, a, b)
			}
			if a, b := steady.writes(t), s.writes(); a != b {
				t.Fatalf("after entry %d the shards have had %v writes, not %v", to-1, a, b)
			}
		}
		sum, keys := steady.contents(t)
		if other, otherKeys := shaken.contents(t); other != sum {
			t.Fatalf("restarts show:\n%s\n----\n%s", strings.Join(keys, "\n"), strings.Join(otherKeys, "\n"))
		}
	})
}

func showAll(answers []*answer) string {
	var all []string
	for _, a := range answers {
		all = append(all, show(a))
	}
	return strings.Join(all, "\n")
}

// writes are the shards' write counts, which a listing finds too.
func (r *rig) writes(t fataler) (all [10]uint64) {
	view, err := r.replica.View()
	if err != nil {
		t.Fatalf("writes: %v", err)
	}
	defer view.Close()
	var c counts
	if err := c.readWrites(view); err != nil {
		t.Fatalf("writes: %v", err)
	}
	for shard, d := range r.digests(t) {
		all[shard] = d.Writes
		if listed := c.writes[shardmap.ShardID(shard)]; listed != d.Writes {
			t.Fatalf("shard %d has had %d writes by its digest, and %d by the listing", shard, d.Writes, listed)
		}
	}
	return all
}

func (s *spec) writes() (all [10]uint64) {
	for shard, sh := range s.shards {
		all[shard] = sh.writes
	}
	return all
}

// compareKeys compares what is stored with the spec.
func (r *rig) compareKeys(t *rapid.T, s *spec) {
	for id, sh := range s.shards {
		record := r.machine.shards[id]
		if record == nil || record.writes != sh.writes {
			t.Fatalf("shard %d is %+v and should have counted %d writes", id, record, sh.writes)
		}
		view, err := r.replica.View()
		if err != nil {
			t.Fatal(err)
		}
		v := shardView{view: snapshotView{view}, shard: id, inc: record.incarnation, time: s.time}
		got, _, err := v.scan(span{})
		view.Close()
		if err != nil {
			t.Fatal(err)
		}
		want := s.scan(sh, span{})
		if g, w := show(&answer{results: []result{got}}), show(&answer{results: []result{want}}); g != w {
			t.Fatalf("shard %d holds\n  %s\n  and should hold\n  %s", id, g, w)
		}
	}
}

func showCommand(c command) string { return strings.TrimPrefix(fmt.Sprintf("%+q", c), "&") }

// TestReplicasAgree gives one log to three replicas: one applies entry by
// entry, one in other batches and forgets its memory in between, and one
// begins with a snapshot of the first, where nobody waits for answers. What they store, and what they answer
// where both do, is the same bytes.
func TestReplicasAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		log := newAuthor().log(t)
		first, second, third := newRig(t), newRig(t), newRig(t)
		third.unheard = true
		snapshotAt := rapid.IntRange(1, len(log)).Draw(t, "snapshot at")

		var answers []string
		for i, d := range log {
			for _, a := range first.apply(t, d.entry()) {
				answers = append(answers, show(a))
			}
			if i+1 == snapshotAt {
				first.copyTo(t, third)
			} else if i+1 > snapshotAt {
				third.apply(t, d.entry())
			}
		}
		var again []string
		for rest := log; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "batch")
			var batch []entry
			for _, d := range rest[:n] {
				batch = append(batch, d.entry())
			}
			rest = rest[n:]
			for _, a := range second.apply(t, batch...) {
				again = append(again, show(a))
			}
			if rapid.Bool().Draw(t, "restart") {
				second.restart(t)
			}
		}
		if !slices.Equal(answers, again) {
			t.Fatalf("answers depend on batches or restarts:\n%s\n----\n%s", strings.Join(answers, "\n"), strings.Join(again, "\n"))
		}
		sum, keys := first.contents(t)
		for name, other := range map[string]*rig{"other batches and restarts": second, "from a snapshot": third} {
			if s, k := other.contents(t); s != sum {
				t.Fatalf("the replica with %s differs:\n%s\n----\n%s", name, strings.Join(k, "\n"), strings.Join(keys, "\n"))
			}
		}
	})
}
