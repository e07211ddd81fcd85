package node

import (
	"encoding/binary"
	"io"
	"log/slog"
	"math/rand/v2"
	"testing"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/statestore"
)

// Pebble takes its memtables out of the block cache. What NewCache was asked
// for has to be there for blocks all the same, when a store is busy: without
// it each read of a key fetches filters of megabytes anew.
func TestMemTablesLeaveTheCacheItsSize(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 256 MB")
	}
	cache := NewCache(64<<20, 1)
	defer cache.Unref()
	store, err := statestore.Open(statestore.Options{
		Dir: t.TempDir(), Cache: cache, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), OnFatal: func(err error) { t.Error(err) },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	replica := store.Replica(raft.ReplicaKey{Group: 2, Replica: 1})
	const rows, rowBytes = 256, 1 << 20 // more than the memtables hold
	random, value := rand.NewChaCha8([32]byte{}), make([]byte, rowBytes)
	key := func(i int) []byte { return binary.BigEndian.AppendUint64(nil, uint64(i)) }
	for i := range rows {
		random.Read(value)
		b := replica.NewBatch()
		b.Set(key(i), value)
		b.SetApplied(raft.Index(i+1), 1, raft.Membership{})
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.Flush(); err != nil {
		t.Fatal(err)
	}
	read := func() (misses int64) {
		before := cache.Metrics().Misses
		for i := range 16 {
			if _, ok, err := replica.Get(key(i)); err != nil || !ok {
				t.Fatalf("key %d: %v %v", i, ok, err)
			}
		}
		return cache.Metrics().Misses - before
	}
	if first, second := read(), read(); first == 0 || second > first/2 {
		t.Errorf("16 MB were read with %d misses, and again with %d, through a cache of 64 MB", first, second)
	}
}
