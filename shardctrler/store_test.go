package shardctrler

import (
	"errors"
	"io"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/multiraft"
	"github.com/flotilla-kv/flotilla/raft/statestore"
)

// applyStored applies one entry as a host does.
func applyStored(t *rapid.T, m *Machine, r *statestore.Replica, e multiraft.Applied) {
	b := r.NewBatch()
	defer b.Close()
	if err := m.Apply(b, e, make([]any, len(e.Commands))); err != nil {
		t.Fatal(err)
	}
	b.SetApplied(e.Index, e.Term, raft.Membership{Epoch: 1, Voters: []raft.Member{{Replica: 1, Node: 1}}})
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	m.Committed(e.Index)
}

// TestCrashReplayAndSnapshot: over the model store, a replica that crashes and
// replays what was not flushed, and one that installs a snapshot, have the
// state of the one that did neither.
func TestCrashReplayAndSnapshot(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		model := statestore.NewModel()
		store := statestore.OpenModel(model, func() {})
		at := store.Replica(raft.ReplicaKey{Group: 1, Replica: 1})
		m := NewMachine()
		var log []multiraft.Applied
		for i := range rapid.IntRange(1, 30).Draw(t, "entries") {
			e := multiraft.Applied{Index: raft.Index(i + 1), Term: 1, Stamp: int64(i), Commands: [][]byte{EncodeCommand(drawCommand(t, m.applied))}}
			log = append(log, e)
			applyStored(t, m, at, e)
			if rapid.IntRange(0, 5).Draw(t, "flush") == 0 {
				model.FlushSome(rapid.IntRange(0, model.Unflushed()).Draw(t, "batches"))
			}
		}
		want := encodedState(m.State())

		to := statestore.OpenModel(statestore.NewModel(), func() {}).Replica(raft.ReplicaKey{Group: 1, Replica: 2})
		copySnapshot(t, at, to)
		installed := NewMachine()
		if err := installed.Restored(to); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(encodedState(installed.State()), want) {
			t.Fatal("the state that came by snapshot differs")
		}

		model.Crash()
		at = statestore.OpenModel(model, func() {}).Replica(raft.ReplicaKey{Group: 1, Replica: 1})
		applied, _, _, err := at.Applied()
		if err != nil {
			t.Fatal(err)
		}
		again := NewMachine()
		if err := again.Restored(at); err != nil {
			t.Fatal(err)
		}
		for _, e := range log[applied:] {
			applyStored(t, again, at, e)
		}
		if !slices.Equal(encodedState(again.State()), want) {
			t.Fatalf("the state after a crash at %d of %d differs", applied, len(log))
		}
	})
}

func copySnapshot(t *rapid.T, from, to *statestore.Replica) {
	snapshot, err := from.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer snapshot.Close()
	install := to.NewInstall(snapshot.Mark)
	for {
		chunk, err := snapshot.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := install.Add(chunk); err != nil {
			t.Fatal(err)
		}
	}
	if err := install.Finish(); err != nil {
		t.Fatal(err)
	}
}

// TestRestoreRefusesDamage: a record that cannot be read stops the replica.
func TestRestoreRefusesDamage(t *testing.T) {
	good := newMemoryRecords()
	m := NewMachine()
	for i, c := range storyOfAGroup(t) {
		if err := m.applyEntry(good, raft.Index(i+1), 1, [][]byte{EncodeCommand(c)}, make([]any, 1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := NewMachine().restore(good); err != nil {
		t.Fatal(err)
	}
	for key, value := range good.values {
		for _, bad := range [][]byte{nil, value[:len(value)-1], append([]byte{recordVersion + 1}, value[1:]...)} {
			good.values[key] = bad
			if err := NewMachine().restore(good); err == nil {
				t.Errorf("record %q was read from %x", key, bad)
			}
		}
		good.values[key] = value
	}
	good.values["?12345678"] = []byte{recordVersion}
	if err := NewMachine().restore(good); err == nil {
		t.Error("a record of an unknown kind was skipped")
	}
}
