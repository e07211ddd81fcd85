package logstore

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotilla-kv/flotilla/raft"
)

// blockBytes is what a disk writes at once, and loses or misplaces.
const blockBytes = 512

// block changes a block of a file.
func block(t *testing.T, fs vfs.FS, name string, at int, content []byte) {
	edit(t, fs, name, func(text []byte) []byte {
		copy(text[at*blockBytes:], content)
		return text
	})
}

// blockOf is a copy of a block of a file; nil if the file is not there.
func blockOf(t *testing.T, fs vfs.FS, name string, at int) (content []byte) {
	if _, err := fs.Stat(name); err != nil {
		return nil
	}
	edit(t, fs, name, func(text []byte) []byte {
		if end := (at + 1) * blockBytes; end <= len(text) {
			content = append(content, text[end-blockBytes:end]...)
		}
		return text
	})
	return content
}

// TestMisplacedAndLostBlocks: a block that the disk wrote elsewhere, and one that
// it said to have written and has not, do not go unnoticed: what is then read is
// what was written, or the log is suspect, or the store says that it is damaged.
func TestMisplacedAndLostBlocks(t *testing.T) {
	const entries = 60
	fs := vfs.NewCrashableMem()
	s := openTest(t, smallSegments(t, fs))
	if err := s.SetIdentity(Identity{Node: 7}); err != nil {
		t.Fatal(err)
	}
	id := key(2, 1)
	createTest(t, s, id)
	fill(t, s, id, entries/2)
	before := power(fs)
	fill(t, s, id, entries/2)
	appendTest(t, s, id, raft.Write{HardState: &raft.HardState{Term: 9, Vote: 1}})
	var names []string
	for _, g := range s.files.used {
		names = append(names, g.name)
	}
	blocks := int(s.files.used[0].size) / blockBytes
	closeTest(t, s)
	noticed := map[string]int{}
	for seed := range uint64(400) {
		rng := rand.New(rand.NewPCG(seed, 41))
		name, at := names[rng.IntN(len(names))], rng.IntN(blocks)
		content, what := blockOf(t, before, name, at), "lost"
		if seed%2 == 0 {
			content, what = blockOf(t, fs, names[rng.IntN(len(names))], rng.IntN(blocks)), "misplaced"
		}
		if content == nil {
			continue // the file is newer than that
		}
		clone := power(fs)
		block(t, clone, name, at, content)
		noticed[what+" "+readAgain(t, clone, id, entries)]++
	}
	t.Logf("what came of it: %v", noticed)
	if noticed["misplaced suspect"] < 20 || noticed["lost suspect"] < 5 {
		t.Errorf("what came of it: %v: the test tests little", noticed)
	}
}

// readAgain opens a store on a disk that may be damaged, and tells whether it
// was noticed.
func readAgain(t *testing.T, fs vfs.FS, id raft.ReplicaKey, entries raft.Index) string {
	t.Helper()
	o := smallSegments(t, fs)
	o.OnFatal = func(error) {}
	s, err := Open(o)
	var damaged *DamagedError
	if errors.As(err, &damaged) {
		return "refused"
	} else if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	state, err := s.Load(id)
	if errors.Is(err, ErrVotesLost) {
		return "lost"
	} else if err != nil {
		t.Fatal(err)
	}
	for index := state.First; index <= state.Last; index++ {
		read, err := s.Reader(id).Entries(index, index+1, 1<<20)
		if err != nil {
			return "read"
		}
		if want := fmt.Appendf(make([]byte, 1000), "%d of %v", index, id); !bytes.Equal(read[0].Data, want) {
			t.Fatalf("entry %d is read as %q", index, read[0].Data)
		}
	}
	switch {
	case state.Suspect:
		return "suspect"
	case state.Last != entries || state.HardState.Term != 9:
		t.Fatalf("the log ends at %d in term %d, and nobody noticed", state.Last, state.HardState.Term)
	}
	return "nothing"
}
