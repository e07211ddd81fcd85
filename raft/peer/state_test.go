package peer

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/flotilla-kv/flotilla/raft"
)

// someState is what a peer of three has saved that has a snapshot and a log
// behind it.
func someState() (state, snapshot []byte) {
	l := memoryLog{}
	l.reset(5, 2, 4)
	l.replace([]raft.Entry{
		{Index: 6, Term: 3, Kind: raft.EntryNoop},
		{Index: 7, Term: 3, Kind: raft.EntryCommand, Data: []byte("seven")},
		{Index: 8, Term: 300, Kind: raft.EntryCommand},
	})
	snapshot = []byte("the state at command 4")
	p := persisted{
		peers: 3, me: 1, hard: raft.HardState{Term: 301, Vote: idOf(2)},
		base: l.base, baseTerm: l.baseTerm, commands: l.baseCommands, snapshotSum: checksum(snapshot),
	}
	return p.encode(l.encoded.bytes), snapshot
}

func TestStateIsReadBack(t *testing.T) {
	state, snapshot := someState()
	if len(state) != headerBytes+1+7+3 { // a no-op; term, length and five bytes; a term in two bytes, length 0
		t.Errorf("the state has %d bytes: doc.go says otherwise", len(state))
	}
	rp, err := openReplica(3, 1, func(int) int { return 0 }, state, snapshot)
	if err != nil {
		t.Fatal(err)
	}
	s := rp.core.Status()
	if s.Term != 301 || s.Vote != idOf(2) || s.First != 6 || s.Last != 8 || s.Commit != 5 {
		t.Errorf("the core starts with %+v", s)
	}
	if rp.snapshot.command != 4 || rp.snapshot.term != 2 || rp.log.commandsThrough(8) != 6 {
		t.Errorf("snapshot %+v, %d commands through entry 8", rp.snapshot, rp.log.commandsThrough(8))
	}
	if again := rp.encode(); string(again) != string(state) {
		t.Errorf("saved again it is %x, it was %x", again, state)
	}
}

// TestStateThatIsNotOurs: a peer that cannot read what it has promised does not
// start, and says what is wrong.
func TestStateThatIsNotOurs(t *testing.T) {
	state, snapshot := someState()
	change := func(at int, b byte) []byte {
		other := []byte(string(state))
		other[at] ^= b
		return other
	}
	for _, c := range []struct {
		name            string
		me, peers       int
		state, snapshot []byte
		says            string
	}{
		{"cut to nothing but noise", 1, 3, []byte("noise"), snapshot, "the header alone has"},
		{"cut", 1, 3, state[:len(state)-1], snapshot, "wrong checksum"},
		{"longer", 1, 3, append([]byte(string(state)), 0), snapshot, "wrong checksum"},
		{"a bit of the vote", 1, 3, change(31, 1), snapshot, "wrong checksum"},
		{"a bit of an entry", 1, 3, change(len(state)-4, 1), snapshot, "wrong checksum"},
		{"another version", 1, 3, change(3, 3), snapshot, `begins with "fpr2"`},
		{"another peer's", 0, 3, state, snapshot, "is of peer 1 of 3"},
		{"a larger group's", 1, 2, state, snapshot, "is of peer 1 of 3"},
		{"another snapshot", 1, 3, state, []byte("the state at command 5"), "snapshot is another"},
		{"no snapshot", 1, 3, state, nil, "snapshot is another"},
		{"a snapshot alone", 1, 3, nil, snapshot, "without a state"},
		{"no such peer", 3, 3, nil, nil, "no such peer"},
		{"nobody", 0, 0, nil, nil, "no such peer"},
		{"too many", 0, 33, nil, nil, "at most 32"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := openReplica(c.peers, c.me, func(int) int { return 0 }, c.state, c.snapshot)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("opening says %v, not %q", err, c.says)
			}
		})
	}
}

func TestMakePanicsOnDamage(t *testing.T) {
	state, snapshot := someState()
	state[40] ^= 1
	defer func() {
		if said := fmt.Sprint(recover()); !strings.Contains(said, "peer 1 of 3 cannot start") || !strings.Contains(said, "checksum") {
			t.Errorf("Make says %q", said)
		}
	}()
	Make(make([]ClientEnd, 3), 1, &disk{state: state, snapshot: snapshot}, make(chan ApplyMsg)).Kill()
}

// FuzzState feeds the decoder what no peer has saved, with a checksum that is
// right: it must refuse it, or read what can be saved again and started from.
func FuzzState(f *testing.F) {
	state, snapshot := someState()
	f.Add(state, snapshot)
	f.Add(state[:headerBytes], snapshot)
	f.Add([]byte{}, []byte{})
	p := persisted{peers: 3, me: 1, hard: raft.HardState{Term: 3}, baseTerm: 2}
	f.Add(p.encode(nil), []byte{}) // a term before the first entry
	f.Fuzz(func(t *testing.T, state, snapshot []byte) {
		if len(state) >= headerBytes {
			copy(state, stateMagic)
			binary.BigEndian.PutUint32(state[56:], checksum(snapshot))
			binary.BigEndian.PutUint32(state[4:], checksum(state[checksumFrom:]))
		}
		p, entries, err := decodeState(state)
		if err != nil {
			return
		}
		l := memoryLog{}
		l.reset(p.base, p.baseTerm, p.commands)
		l.replace(entries)
		again, list, err := decodeState(p.encode(l.encoded.bytes))
		if err != nil || again != p || len(list) != len(entries) {
			t.Fatalf("%+v with %d entries is read back as %+v with %d: %v", p, len(entries), again, len(list), err)
		}
		for i := range list {
			if !sameEntry(&list[i], &entries[i]) {
				t.Fatalf("entry %+v is read back as %+v", entries[i], list[i])
			}
		}
		if p.peers > 5 {
			return
		}
		rp, err := openReplica(p.peers, p.me, func(n int) int { return n - 1 }, state, snapshot)
		if err != nil {
			return
		}
		for range 3 * electionTicks {
			rp.tick()
			drive(t, rp)
		}
	})
}

// drive runs a peer's turns with a disk that keeps up and a state machine that
// takes everything.
func drive(t *testing.T, rp *replica) {
	t.Helper()
	for n := 0; rp.ready(); n++ {
		if n > 1000 {
			t.Fatal("turns have no end")
		}
		turn := rp.turn()
		if turn.save {
			rp.saved(&turn)
		}
		for _, d := range turn.deliveries {
			rp.core.Applied(d.through)
		}
	}
	if err := rp.core.CheckInvariants(); err != nil {
		t.Fatal(err)
	}
}
