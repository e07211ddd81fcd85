package shardkv

import (
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/multiraft"
	"github.com/flotilla-kv/flotilla/raft/statestore"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// rig is one replica's state machine over a store, fed with entries.
type rig struct {
	store   *statestore.Store
	model   *statestore.Model // nil: over Pebble
	replica *statestore.Replica
	machine *Machine
	index   raft.Index
	results []any // scratch
	unheard bool  // nobody waits for what is applied
	changes int   // of the last batch
}

const rigGroup raft.GroupID = 7

// fataler is what rigs report to: a test, a benchmark or a rapid check.
type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

func newRig(t fataler) *rig {
	model := statestore.NewModel()
	r := &rig{model: model, store: statestore.OpenModel(model, nil)}
	r.open(t)
	return r
}

// newPebbleRig is a rig over a Pebble store in memory.
func newPebbleRig(t testing.TB) *rig {
	store, err := statestore.Open(statestore.Options{
		Dir:     "state",
		FS:      vfs.NewMem(),
		Logger:  slog.New(slog.DiscardHandler),
		OnFatal: func(err error) { panic(err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	r := &rig{store: store}
	r.open(t)
	return r
}

func (r *rig) open(t fataler) {
	t.Helper()
	r.replica = r.store.Replica(raft.ReplicaKey{Group: rigGroup, Replica: 1})
	r.restart(t)
}

// restart forgets what the state machine has in memory.
func (r *rig) restart(t fataler) {
	t.Helper()
	r.machine = NewMachine(rigGroup)
	if err := r.machine.Restored(r.replica); err != nil {
		t.Fatalf("restored: %v", err)
	}
}

// crash loses what was committed but for the first n batches that are not
// flushed; the rig stands where that leads to.
func (r *rig) crash(t fataler, n int) {
	t.Helper()
	r.model.FlushSome(n)
	r.model.Crash()
	r.store = statestore.OpenModel(r.model, nil)
	r.open(t)
	var err error
	if r.index, _, _, err = r.replica.Applied(); err != nil {
		t.Fatalf("applied: %v", err)
	}
}

// digests are those of the shards that tests use.
func (r *rig) digests(t fataler) (all [10]ShardDigest) {
	t.Helper()
	for shard := range all {
		var err error
		if all[shard], err = Digest(r.replica, shardmap.ShardID(shard)); err != nil {
			t.Fatalf("digest of shard %d: %v", shard, err)
		}
	}
	return all
}

// entry is what the log holds: commands that were joined, and their stamp.
type entry struct {
	stamp    int64
	commands [][]byte
}

func newEntry(stamp int64, commands ...command) entry {
	e := entry{stamp: stamp}
	for _, c := range commands {
		e.commands = append(e.commands, encodeCommand(c))
	}
	return e
}

// apply applies entries as one batch and returns the answers of all commands.
func (r *rig) apply(t fataler, entries ...entry) (answers []*answer) {
	t.Helper()
	results := r.applyOnly(t, entries)
	for _, result := range results {
		a, _ := result.(*answer)
		answers = append(answers, a)
	}
	return answers
}

// applyOnly is apply without a look at the results, which live until the next.
func (r *rig) applyOnly(t fataler, entries []entry) []any {
	b := r.replica.NewBatch()
	n := 0
	for _, e := range entries {
		n += len(e.commands)
	}
	clear(r.results)
	r.results = slices.Grow(r.results[:0], n)[:n]
	rest := r.results
	for _, e := range entries {
		r.index++
		err := r.machine.Apply(b, multiraft.Applied{Index: r.index, Term: 1, Stamp: e.stamp, Commands: e.commands, Waited: !r.unheard}, rest[:len(e.commands)])
		if err != nil {
			t.Fatalf("entry %d: %v", r.index, err)
		}
		rest = rest[len(e.commands):]
	}
	r.machine.Finish(b)
	b.SetApplied(r.index, 1, raft.Membership{})
	r.changes = b.Changes()
	if err := b.Commit(); err != nil {
		t.Fatalf("commit through %d: %v", r.index, err)
	}
	r.machine.Committed(r.index)
	return r.results
}

// one applies a single command at a stamp.
func (r *rig) one(t fataler, stamp int64, c command) *answer {
	t.Helper()
	return r.apply(t, newEntry(stamp, c))[0]
}

// born gives the group shards 0 to n-1.
func (r *rig) born(t fataler, stamp int64, n int) {
	t.Helper()
	c := &birth{generation: 1}
	for shard := range n {
		c.shards = append(c.shards, shardmap.ShardID(shard))
	}
	if a := r.one(t, stamp, c); a.refused != flotillav1.Code_OK {
		t.Fatalf("birth was refused: %v %s", a.refused, a.message)
	}
}

// contents is a hash of all that the replica stores, the applied record aside,
// with the keys listed for a message.
func (r *rig) contents(t fataler) (sum string, keys []string) {
	t.Helper()
	hash := sha256.New()
	it := r.replica.NewIter(nil, nil)
	for ok := it.First(); ok; ok = it.Next() {
		fmt.Fprintf(hash, "%d %d ", len(it.Key()), len(it.Value()))
		hash.Write(it.Key())
		hash.Write(it.Value())
		keys = append(keys, fmt.Sprintf("%q = %q", it.Key(), it.Value()))
	}
	if err := it.Close(); err != nil {
		t.Fatalf("contents: %v", err)
	}
	return fmt.Sprintf("%x", hash.Sum(nil)), keys
}

// copyTo streams the replica's state into another rig, as a snapshot does.
func (r *rig) copyTo(t fataler, to *rig) {
	t.Helper()
	snapshot, err := r.replica.Snapshot()
	if err != nil {
		t.Fatalf("snapshot: %v", err)
	}
	defer snapshot.Close()
	install := to.replica.NewInstall(snapshot.Mark)
	for {
		chunk, err := snapshot.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("snapshot: %v", err)
		}
		if err := install.Add(chunk); err != nil {
			t.Fatalf("install: %v", err)
		}
	}
	if err := install.Finish(); err != nil {
		t.Fatalf("install: %v", err)
	}
	to.index = snapshot.Mark.Index
	to.restart(t)
}

// Short forms of the operations.

func get(key string) op                 { return op{kind: opGet, key: []byte(key)} }
func put(key, value string) op          { return op{kind: opPut, key: []byte(key), value: []byte(value)} }
func del(key string) op                 { return op{kind: opDelete, key: []byte(key)} }
func incr(key string, by int64) op      { return op{kind: opIncr, key: []byte(key), by: by} }
func expireIn(key string, ttl int64) op { return op{kind: opExpire, key: []byte(key), ttl: ttl} }
func scanAll() op                       { return op{kind: opScan} }
func appendTo(key, value string) op {
	return op{kind: opAppend, key: []byte(key), value: []byte(value)}
}

// plain is a write without a number.
func plain(shard shardmap.ShardID, ops ...op) *write { return &write{shard: shard, ops: ops} }

// numbered is a write of a session.
func numbered(shard shardmap.ShardID, id sessionID, seq, lowest uint64, ops ...op) *write {
	return &write{shard: shard, session: session{id: id, seq: seq, lowest: lowest}, ops: ops}
}
