package statestore

import (
	"testing"
)

func TestSparesKeepWhatIsInUse(t *testing.T) {
	var s spares
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
	var s spares
	defer s.close()
	held := new(table)
	held.views.Store(1)
	s.give(held)
	if s.take() == held {
		t.Fatal("a table that a view looks at was used again")
	}
}
