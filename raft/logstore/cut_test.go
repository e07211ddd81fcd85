package logstore

import (
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/flotilla-kv/flotilla/raft"
)

// power cuts the power: what was synced is left.
func power(fs *vfs.MemFS) *vfs.MemFS {
	return fs.CrashClone(vfs.CrashCloneCfg{RNG: rand.New(rand.NewPCG(1, 1))})
}

// edit rewrites a file.
func edit(t *testing.T, fs vfs.FS, name string, change func([]byte) []byte) {
	t.Helper()
	f, err := fs.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(f)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	f, err = fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(change(slices.Clone(text)))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// newestWAL is the log file that is being written.
func newestWAL(t *testing.T, fs vfs.FS) string {
	t.Helper()
	files, err := openSegments(fs, "log/segments", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer files.close()
	if len(files.used) == 0 {
		t.Fatal("no file is in use")
	}
	return files.active().name
}

// usedStore makes a store with two replicas, each with 20 entries and terms,
// and leaves the disk of a machine that lost its power. The evidence file is
// written only if evidence is set.
func usedStore(t *testing.T, evidence bool) *vfs.MemFS {
	t.Helper()
	fs := vfs.NewCrashableMem()
	o := testOptions(t, fs)
	if o.EvidenceEvery = time.Hour; evidence {
		o.EvidenceEvery = time.Millisecond
	}
	s := openTest(t, o)
	if err := s.SetIdentity(Identity{Node: 7}); err != nil {
		t.Fatal(err)
	}
	createTest(t, s, key(2, 3), key(3, 4))
	for i := raft.Index(1); i <= 20; i++ {
		for _, id := range []raft.ReplicaKey{key(2, 3), key(3, 4)} {
			w := raft.Write{Entries: []raft.Entry{{Index: i, Term: raft.Term(i), Data: make([]byte, 100)}}}
			if i%4 == 0 {
				w.HardState = &raft.HardState{Term: raft.Term(i), Vote: 9}
			}
			appendTest(t, s, id, w)
		}
	}
	if evidence {
		s.evidence.mu.Lock()
		latest := s.evidence.latest
		s.evidence.mu.Unlock()
		waitFor(t, func() bool {
			e, _, _, err := readEvidence(fs, "log/evidence")
			return err == nil && e == latest
		})
	}
	clone := power(fs)
	closeTest(t, s)
	return clone
}

// cutTail overwrites the last quarter of the records, as a disk does that never
// wrote them.
func cutTail(text []byte) []byte {
	end := len(text)
	for end > 0 && text[end-1] == 0 {
		end--
	}
	return text[:end*3/4]
}

func flipLast(text []byte) []byte {
	end := len(text)
	for end > 0 && text[end-1] == 0 {
		end--
	}
	text[end-10] ^= 0xff
	return text
}

func TestUncutLogIsNotSuspect(t *testing.T) {
	s := openTest(t, testOptions(t, usedStore(t, true)))
	defer closeTest(t, s)
	if s.Cut() {
		t.Error("the log counts as cut")
	}
	if state, err := s.Load(key(2, 3)); err != nil || state.Suspect || state.Last != 20 {
		t.Errorf("state is %+v, %v", state, err)
	}
}

func TestCutLogIsNoticed(t *testing.T) {
	for name, c := range map[string]struct {
		evidence bool // the evidence file is up to date; else the votes file must do
		damage   func([]byte) []byte
	}{
		"truncated, evidence": {true, cutTail},
		"flipped, evidence":   {true, flipLast},
		"truncated, votes":    {false, cutTail},
		"flipped, votes":      {false, flipLast},
	} {
		t.Run(name, func(t *testing.T) {
			fs := usedStore(t, c.evidence)
			edit(t, fs, newestWAL(t, fs), c.damage)
			o := testOptions(t, fs)
			s := openTest(t, o)
			check := func(cut bool) {
				t.Helper()
				if s.Cut() != cut {
					t.Errorf("cut is %v", s.Cut())
				}
				for _, id := range []raft.ReplicaKey{key(2, 3), key(3, 4)} {
					state, err := s.Load(id)
					if err != nil {
						t.Fatal(err)
					}
					if !state.Suspect {
						t.Errorf("%v is not suspect", id)
					}
					if state.HardState != (raft.HardState{Term: 20, Vote: 9}) {
						t.Errorf("%v has %+v: the second copy was not used", id, state.HardState)
					}
				}
			}
			check(true)
			// Being suspect outlives a restart, although nothing is missing then.
			closeTest(t, s)
			s = openTest(t, o)
			check(false)
			if err := s.ClearSuspect(key(2, 3)); err != nil {
				t.Fatal(err)
			}
			closeTest(t, s)
			s = openTest(t, o)
			defer closeTest(t, s)
			a, _ := s.Load(key(2, 3))
			b, _ := s.Load(key(3, 4))
			if a.Suspect || !b.Suspect {
				t.Errorf("suspect: %v (cleared), %v (not)", a.Suspect, b.Suspect)
			}
		})
	}
}

func TestOldCopyOfTheLogIsNoticed(t *testing.T) {
	fs := vfs.NewCrashableMem()
	o := testOptions(t, fs)
	s := openTest(t, o)
	if err := s.SetIdentity(Identity{Node: 7}); err != nil {
		t.Fatal(err)
	}
	id := key(2, 3)
	createTest(t, s, id)
	appendTest(t, s, id, raft.Write{Entries: entriesOf(1, 5, 1)})
	old := power(fs)
	appendTest(t, s, id, raft.Write{Entries: entriesOf(6, 9, 1)})
	if err := s.Remove(id); err != nil {
		t.Fatal(err)
	}
	createTest(t, s, key(2, 4), key(5, 1))
	closeTest(t, s)
	// An operator restores the log, and not the side files.
	if err := fs.RemoveAll("log/segments"); err != nil {
		t.Fatal(err)
	}
	if _, err := vfs.Clone(old, fs, "log/segments", "log/segments"); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, o)
	defer closeTest(t, s)
	if !s.Cut() {
		t.Error("an old copy passes for the log")
	}
	records := s.Replicas()
	if len(records) != 2 || records[0].ID != key(2, 4) || records[1].ID != key(5, 1) || !records[0].Suspect || !records[1].Suspect {
		t.Errorf("replicas are %+v: those created since, suspect, and not the removed one", records)
	}
	if err := s.Create(key(5, 1), raft.Membership{}); err != nil {
		t.Error(err)
	}
	if err := s.Create(key(2, 3), raft.Membership{}); !errors.Is(err, ErrOldReplica) {
		t.Errorf("the removed replica's id can be used again: %v", err)
	}
}

func TestLostLogIsRefused(t *testing.T) {
	fs := usedStore(t, true)
	if err := fs.RemoveAll("log/segments"); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(testOptions(t, fs)); !errors.Is(err, ErrLogLost) {
		t.Errorf("open: %v", err)
	}
}

func TestCutLogWithDamagedVotesLosesTheReplicas(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"header":  func(text []byte) []byte { text[5] ^= 1; return text },
		"middle":  func(text []byte) []byte { text[len(text)/2] ^= 1; return text },
		"tail":    func(text []byte) []byte { text[len(text)-1] ^= 1; return text },
		"torn":    func(text []byte) []byte { return text[:len(text)-3] },
		"shorter": func(text []byte) []byte { return text[:len(text)-voteFrameBytes-voteRecordBytes-16] },
		"empty":   func([]byte) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			fs := usedStore(t, true)
			edit(t, fs, "log/votes", damage)
			whole := power(fs)
			edit(t, fs, newestWAL(t, fs), cutTail)
			o := testOptions(t, fs)
			s := openTest(t, o)
			if !s.Cut() {
				t.Error("not cut")
			}
			checkLost(t, s)
			// For good: after a restart, without the votes' word of it, and after a
			// second cut that takes the log's own.
			forgetful := power(fs)
			closeTest(t, s)
			edit(t, fs, "log/votes", func([]byte) []byte { return nil })
			s = openTest(t, o)
			if s.Cut() {
				t.Error("cut again")
			}
			checkLost(t, s)
			closeTest(t, s)
			edit(t, forgetful, newestWAL(t, forgetful), cutTail)
			s = openTest(t, testOptions(t, forgetful))
			if !s.Cut() {
				t.Error("the second cut was not noticed")
			}
			checkLost(t, s)
			closeTest(t, s)
			// With a whole log the votes are written anew.
			s = openTest(t, testOptions(t, whole))
			if state, err := s.Load(key(2, 3)); err != nil || s.Cut() || s.Lost() || state.Suspect || state.HardState.Term != 20 {
				t.Errorf("log whole: cut %v, lost %v, %+v, %v", s.Cut(), s.Lost(), state, err)
			}
			closeTest(t, s)
			if votes, damage, err := readVotes(whole, "log/votes"); err != nil || damage != nil || len(votes.replicas) != 2 || votes.lost {
				t.Errorf("written anew: %+v, %v, %v", votes, damage, err)
			}
		})
	}
}

// checkLost: the node knows itself and its replicas, and none of them runs, nor
// one that it may have forgotten.
func checkLost(t *testing.T, s *Store) {
	t.Helper()
	if identity, known := s.Identity(); !s.Lost() || !known || identity.Node != 7 {
		t.Errorf("lost %v, the identity is %+v %v", s.Lost(), identity, known)
	}
	records := s.Replicas()
	if len(records) != 2 || !records[0].Lost || !records[1].Lost {
		t.Errorf("replicas are %+v", records)
	}
	for _, id := range []raft.ReplicaKey{key(2, 3), key(3, 4)} {
		if _, err := s.Load(id); !errors.Is(err, ErrVotesLost) {
			t.Errorf("load %v: %v", id, err)
		}
	}
	for _, id := range []raft.ReplicaKey{key(2, 9), key(5, 1)} {
		if err := s.Create(id, raft.Membership{}); !errors.Is(err, ErrVotesLost) {
			t.Errorf("create %v: %v", id, err)
		}
	}
}

func TestLostEvidenceMakesSuspect(t *testing.T) {
	for _, damage := range []func([]byte) []byte{
		func([]byte) []byte { return nil },
		func(text []byte) []byte { clear(text); return text },
	} {
		fs := usedStore(t, true)
		edit(t, fs, "log/evidence", damage)
		s := openTest(t, testOptions(t, fs))
		if state, err := s.Load(key(2, 3)); err != nil || !s.Cut() || !state.Suspect || state.Last != 20 {
			t.Errorf("cut %v, %+v, %v", s.Cut(), state, err)
		}
		closeTest(t, s)
	}
}

func TestTornEvidenceLeavesTheOlderSlot(t *testing.T) {
	fs := vfs.NewMem()
	f, err := writeEvidence(fs, "evidence", 0, evidence{seq: 1, votes: 1})
	if err != nil {
		t.Fatal(err)
	}
	for i := uint64(2); i <= 3; i++ {
		if err := f.write(evidence{seq: i, votes: i}); err != nil {
			t.Fatal(err)
		}
	}
	if e, _, found, err := readEvidence(fs, "evidence"); err != nil || !found || e.seq != 3 {
		t.Fatalf("evidence is %+v %v %v", e, found, err)
	}
	edit(t, fs, "evidence", func(text []byte) []byte {
		text[(f.counter%2)*evidenceSlotBytes+20] ^= 1
		return text
	})
	if e, _, found, err := readEvidence(fs, "evidence"); err != nil || !found || e.seq != 2 {
		t.Fatalf("evidence is %+v %v %v; want the slot before", e, found, err)
	}
}

func TestVotesFileIsWrittenAnewWhenItHasGrown(t *testing.T) {
	fs := vfs.NewCrashableMem()
	o := testOptions(t, fs)
	s := openTest(t, o)
	createTest(t, s, key(2, 1))
	hard := encodeHardState(raft.HardState{Term: 1})
	var records []voteRecord
	for range 1000 {
		records = append(records, voteRecord{kind: voteHardState, id: key(2, 1), payload: hard})
	}
	number := s.votes.state.number
	for range 40 {
		if err := s.votes.append(records); err != nil {
			t.Fatal(err)
		}
		number += 1000
		if s.votes.size > 2*votesGrowthBytes {
			t.Fatalf("the votes file has %d bytes", s.votes.size)
		}
	}
	state, damage, err := readVotes(power(fs), "log/votes")
	if err != nil || damage != nil || state.number < number || len(state.replicas) != 1 {
		t.Fatalf("votes: %+v, %v, %v", state, damage, err)
	}
	closeTest(t, s)
}

func TestEvidenceIsNeverAheadOfTheSync(t *testing.T) {
	g := &gate{open: make(chan struct{})}
	mem := vfs.NewCrashableMem()
	o := testOptions(t, errorfs.Wrap(mem, g))
	o.EvidenceEvery = time.Millisecond
	s := openTest(t, o)
	if err := s.SetIdentity(Identity{Node: 7}); err != nil {
		t.Fatal(err)
	}
	id := key(2, 3)
	createTest(t, s, id)
	g.armed.Store(true)
	done := make(chan error, 1)
	s.Append([]Write{{ID: id, Write: raft.Write{HardState: &raft.HardState{Term: 5}, Entries: entriesOf(1, 5, 1)}}}, func(err error) { done <- err })
	waitFor(t, func() bool { return g.syncs.Load() > 0 })
	select { // several times the interval at which the evidence is written
	case err := <-done:
		t.Fatalf("answered before the sync: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	crashed := power(mem)
	close(g.open)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	closeTest(t, s)
	s = openTest(t, testOptions(t, crashed))
	defer closeTest(t, s)
	if s.Cut() {
		t.Error("a side file knew of a batch that was not durable")
	}
	if state, err := s.Load(id); err != nil || state.Last != 0 || state.HardState.Term != 0 {
		t.Errorf("state is %+v, %v: the test tests nothing", state, err)
	}
}
