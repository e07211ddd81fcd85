package shardkv

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/multiraft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// TestCommandsSurviveTheCodec: what is encoded is decoded as it was. Fields
// that do not count for an operation are not carried.
func TestCommandsSurviveTheCodec(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var used write
		for _, d := range newAuthor().log(t) {
			for _, c := range d.commands {
				again, err := decodeCommand(encodeCommand(c), &used)
				if err != nil || !bytes.Equal(encodeCommand(again), encodeCommand(c)) {
					t.Fatalf("%#v became %#v in memory that was used before: %v", c, again, err)
				}
				once, err := decodeCommand(encodeCommand(c), nil)
				if err != nil {
					t.Fatalf("%#v: %v", c, err)
				}
				twice, err := decodeCommand(encodeCommand(once), nil)
				if err != nil || fmt.Sprintf("%#v", once) != fmt.Sprintf("%#v", twice) {
					t.Fatalf("%#v became %#v: %v", once, twice, err)
				}
				if w, ok := c.(*write); ok && (len(once.(*write).ops) != len(w.ops) || once.(*write).session != w.session) {
					t.Fatalf("%#v became %#v", w, once)
				}
			}
		}
	})
}

// FuzzDecodeCommand: no bytes make decoding or applying panic, or cost more
// than they are worth.
func FuzzDecodeCommand(f *testing.F) {
	f.Add(encodeCommand(plain(0, put("k", "v"), get("k"), scanAll(), op{kind: opClear})))
	f.Add(encodeCommand(numbered(0, alice, 1, 1, incr("k", -1), del("k"), expireIn("k", 5), appendTo("k", "x"))))
	f.Add(encodeCommand(&birth{generation: 1, shards: []shardmap.ShardID{0, 1}}))
	f.Add(encodeCommand(&outcome{id: alice, seq: 4}))
	f.Add(encodeCommand(timeOnly{}))
	f.Add([]byte{1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeCommand(b, nil)
		if err != nil {
			return
		}
		if _, err := decodeCommand(encodeCommand(c), nil); err != nil {
			t.Fatalf("%#v: %v", c, err)
		}
		r := newRig(t)
		r.born(t, epoch, 2)
		batch := r.replica.NewBatch()
		defer batch.Close()
		if err := r.machine.Apply(batch, multiraft.Applied{Index: 2, Term: 1, Stamp: epoch, Commands: [][]byte{b}}, make([]any, 1)); err != nil {
			t.Fatalf("%#v: %v", c, err)
		}
	})
}

// FuzzRequest: whatever comes over the wire is refused, or makes a command
// that every replica understands, whose keys are within the limits and in the
// shard.
func FuzzRequest(f *testing.F) {
	for _, q := range []*flotillav1.Request{
		{Id: 1, Group: 2, Ops: []*flotillav1.Op{wirePut("k", "v"), wireGet("k")}},
		{Outcome: &flotillav1.Outcome{ClientId: 1, BirthMs: 2, Seq: 3}},
		{Compares: []*flotillav1.Compare{{Target: flotillav1.Compare_VALUE, Key: []byte("k")}}, Ops: []*flotillav1.Op{wireGet("k")}},
		{Session: &flotillav1.Session{ClientId: 1, BirthMs: 1, Seq: 2, Lowest: 1}, Ops: []*flotillav1.Op{{Op: &flotillav1.Op_Clear{Clear: &flotillav1.Clear{Prefix: []byte("a")}}}}},
		{Ops: []*flotillav1.Op{{}}},
	} {
		b, err := proto.Marshal(q)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		q := new(flotillav1.Request)
		if proto.Unmarshal(b, q) != nil {
			return
		}
		r, err := fromWire(q, 2)
		if err != nil {
			return
		}
		if r.shard > 1 {
			t.Fatalf("shard %d of 2", r.shard)
		}
		switch {
		case r.ask != nil:
			mustSurvive(t, r.ask)
		case r.write != nil:
			checkOps(t, r.shard, r.write.compares, r.write.ops, r.write.otherwise)
			mustSurvive(t, r.write)
		default:
			checkOps(t, r.shard, r.read.compares, r.read.ops, r.read.otherwise)
		}
	})
}

func mustSurvive(t *testing.T, c command) {
	if _, err := decodeCommand(encodeCommand(c), nil); err != nil {
		t.Fatalf("%#v: %v", c, err)
	}
}

func checkOps(t *testing.T, shard shardmap.ShardID, compares []compare, lists ...[]op) {
	check := func(key []byte) {
		if len(key) == 0 || len(key) > KeyBytesMax || shardmap.Shard(key, 2) != shard {
			t.Fatalf("key %q was let through to shard %d", key, shard)
		}
	}
	for _, c := range compares {
		check(c.key)
	}
	for _, ops := range lists {
		for i := range ops {
			if ops[i].kind != opScan && ops[i].kind != opClear {
				check(ops[i].key)
			}
			if ops[i].expireAt < 0 || ops[i].kind == opPut && ops[i].ttl < 0 {
				t.Fatalf("expiry %d, %d was let through", ops[i].expireAt, ops[i].ttl)
			}
		}
	}
}

func wireGet(key string) *flotillav1.Op {
	return &flotillav1.Op{Op: &flotillav1.Op_Get{Get: &flotillav1.Get{Key: []byte(key)}}}
}

func wirePut(key, value string) *flotillav1.Op {
	return &flotillav1.Op{Op: &flotillav1.Op_Put{Put: &flotillav1.Put{Key: []byte(key), Value: []byte(value)}}}
}

// FuzzRestored gives a machine any state to begin with, as a snapshot would. It
// is refused, or reads and writes go on from it; that something of it cannot be
// read is an error, which stops the node, and no panic.
func FuzzRestored(f *testing.F) {
	r := newRig(f)
	r.born(f, epoch, 2)
	r.one(f, epoch, numbered(0, alice, 1, 1, incr("n", 5), op{kind: opPut, key: []byte("x"), ttl: 10}))
	r.one(f, epoch, numbered(1, alice, 2, 1, put("k", "v")))
	r.one(f, epoch, &outcome{shard: 0, id: alice, seq: 9})
	view, err := r.replica.View()
	if err != nil {
		f.Fatal(err)
	}
	var state []byte
	it := view.NewIter(nil, nil)
	for ok := it.First(); ok; ok = it.Next() {
		state = append(append(state, byte(len(it.Key()))), it.Key()...)
		state = append(append(state, byte(len(it.Value()))), it.Value()...)
	}
	if err := errors.Join(it.Close(), view.Close()); err != nil {
		f.Fatal(err)
	}
	f.Add(state)
	f.Add(state[:len(state)/2])
	f.Fuzz(func(t *testing.T, state []byte) {
		piece := func() []byte {
			if len(state) == 0 {
				return nil
			}
			n := min(int(state[0]), len(state)-1)
			p := state[1 : 1+n]
			state = state[1+n:]
			return p
		}
		r := newRig(t)
		b := r.replica.NewBatch()
		for len(state) > 0 {
			if key := piece(); len(key) > 0 {
				b.Set(key, piece())
			}
		}
		b.SetApplied(5, 1, raft.Membership{})
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		if r.machine.Restored(r.replica) != nil {
			return
		}
		b = r.replica.NewBatch()
		defer b.Close()
		e := newEntry(epoch+50, numbered(0, alice, 1, 1, incr("n", 1)), numbered(0, alice, 3, 2, put("k", "w"), get("x"), scanAll()),
			&outcome{shard: 1, id: alice, seq: 2}, plain(1, del("k"), op{kind: opClear}), timeOnly{})
		if err := r.machine.Apply(b, multiraft.Applied{Index: 6, Term: 1, Stamp: e.stamp, Commands: e.commands, Waited: true}, make([]any, len(e.commands))); err != nil {
			return
		}
		r.machine.Finish(b)
		for shard := range shardmap.ShardID(2) {
			if _, err := Digest(r.replica, shard); err != nil {
				return
			}
		}
	})
}

// FuzzAnswer decodes recorded answers, whole and their heads.
func FuzzAnswer(f *testing.F) {
	for _, a := range []*answer{
		{compared: true, results: []result{{status: statusDone, value: []byte("v"), version: 3, pairs: []pair{{key: []byte("k"), record: record{value: []byte("w")}}}, next: []byte("n")}}},
		closed("never"),
		{},
	} {
		var e encoder
		a.encode(&e, answerHead{writes: 4, seq: 3, lowest: 2})
		f.Add(e.b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, head, err := decodeAnswer(b)
		if err != nil {
			return
		}
		short, _, err := decodeAnswerHead(b)
		if err != nil || short != head {
			t.Fatalf("the head is %+v of %+v: %v", short, head, err)
		}
		var e encoder
		a.encode(&e, head)
		again, _, err := decodeAnswer(e.b)
		if err != nil || fmt.Sprintf("%+v", again) != fmt.Sprintf("%+v", a) {
			t.Fatalf("%+v became %+v, %v", a, again, err)
		}
		if _, err := proto.Marshal(a.toWire(1)); err != nil && !strings.Contains(err.Error(), "UTF-8") {
			t.Fatal(err)
		}
	})
}
