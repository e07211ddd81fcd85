package statestore

import (
	"fmt"
	"testing"
)

func TestSparesKeepWhatIsInUse(t *testing.T) {
	s := spares{room: 1 << 20}
	defer s.close()
	for range 4 {
		s.give(new(table))
	}
	s.dropUnused() // the first time: who knows yet what will be taken
	if len(s.tables) != 4 {
		t.Fatalf("%d tables at once, want 4", len(s.tables))
	}
	one := s.take()
	s.give(one)
	s.dropUnused()
	if len(s.tables) != 1 {
		t.Fatalf("%d tables, want the one that was in use", len(s.tables))
	}
	if s.take() != one {
		t.Fatal("a spare was there, and a new table made")
	}
	s.give(one)
	s.dropUnused()
	s.dropUnused()
	if len(s.tables) != 0 || s.drop != nil {
		t.Fatalf("%d tables that nobody takes", len(s.tables))
	}
}

func TestSparesLeaveWhatViewsLookAt(t *testing.T) {
	s := spares{room: 1 << 20}
	defer s.close()
	held := new(table)
	held.views.Store(1)
	s.give(held)
	if s.take() == held {
		t.Fatal("a table that a view looks at was used again")
	}
}

// TestSparesAreBounded however large the tables are that come back.
func TestSparesAreBounded(t *testing.T) {
	const room = 4 << 20
	s := spares{room: room}
	defer s.close()
	for range 8 {
		large := new(table)
		for i := range 10_000 {
			key := fmt.Append(nil, i)
			large.set(hashKey(key), key, nil, key, batchCommit, batchSeen)
		}
		s.give(large)
	}
	held := 0
	for _, spare := range s.tables {
		held += spare.capacity()
	}
	if len(s.tables) == 0 || held > room || held != s.bytes {
		t.Fatalf("%d tables keep %d bytes, counted are %d, want at most %d", len(s.tables), held, s.bytes, room)
	}
	for len(s.tables) > 0 {
		s.take()
	}
	if s.bytes != 0 {
		t.Fatalf("%d bytes are counted of no tables", s.bytes)
	}
}

// TestATableThatWasHardlyUsedIsNotKept: a replica that writes little must not
// hold for good what one that writes much has made large.
func TestATableThatWasHardlyUsedIsNotKept(t *testing.T) {
	var table table
	key, value := []byte("k"), make([]byte, 1<<20)
	table.set(hashKey(key), key, nil, value, batchCommit, batchSeen)
	table.reset()
	if table.capacity() < len(value) {
		t.Fatal("a table that was full is not kept")
	}
	table.set(hashKey(key), key, nil, []byte("v"), batchCommit, batchSeen)
	table.reset()
	if table.capacity() > tableKeepUnused {
		t.Fatalf("%d bytes are kept for the next byte", table.capacity())
	}
}
