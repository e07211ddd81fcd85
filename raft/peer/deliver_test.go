package peer

import (
	"encoding/binary"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
)

// TestWireForm: what peers say is read back as it was, in the form that any
// network with gob gives it, and small; a refusal, all of whose fields are
// zero, is not lost on the way.
func TestWireForm(t *testing.T) {
	args := DeliverArgs{From: 0, To: 2, Requests: []Request{
		{Term: 1, RequestVote: &RequestVote{PreVote: true, LastLogIndex: 3, LastLogTerm: 1}},
		{Term: 2, RequestVote: &RequestVote{}},
		{Term: 2, AppendEntries: &AppendEntries{PrevLogIndex: 4, PrevLogTerm: 2, LeaderCommit: 3, Entries: []Entry{{Term: 2, Noop: true}, {Term: 2, Command: []byte("x")}}}},
		{Term: 2, AppendEntries: &AppendEntries{}},
		{Term: 2, InstallSnapshot: &InstallSnapshot{LastIncludedIndex: 9, LastIncludedTerm: 2, CommandIndex: 7, Data: []byte("state")}},
	}}
	reply := DeliverReply{Installed: true, Answers: []Answer{
		{Term: 2, RequestVote: &RequestVoteReply{}},
		{Term: 2, AppendEntries: &AppendEntriesReply{}},
		{Term: 2, AppendEntries: &AppendEntriesReply{Success: true, MatchIndex: 5}},
	}}
	var gotArgs DeliverArgs
	var gotReply DeliverReply
	decode(encode(args), &gotArgs)
	decode(encode(reply), &gotReply)
	if !reflect.DeepEqual(args, gotArgs) || !reflect.DeepEqual(reply, gotReply) {
		t.Errorf("%+v\nis read back as\n%+v\n%+v\nas\n%+v", args, gotArgs, reply, gotReply)
	}
	heartbeat := DeliverArgs{From: 1, To: 2, Requests: []Request{{Term: 2, AppendEntries: &AppendEntries{PrevLogIndex: 4, PrevLogTerm: 2}}}}
	if n := len(encode(heartbeat)); n > 600 {
		t.Errorf("a heartbeat has %d bytes, gob's description of the types included", n)
	}
}

// dice draws from a fuzzer's bytes: mostly small numbers, sometimes the
// extremes.
type dice struct{ rest []byte }

func (d *dice) byte() byte {
	if len(d.rest) == 0 {
		return 0
	}
	b := d.rest[0]
	d.rest = d.rest[1:]
	return b
}

func (d *dice) number() uint64 {
	switch b := d.byte(); {
	case b < 240:
		return uint64(b % 10)
	case b < 250:
		var raw [8]byte
		for i := range raw {
			raw[i] = d.byte()
		}
		return binary.LittleEndian.Uint64(raw[:])
	default:
		return (^uint64(0))>>(b&1) - uint64(b%3)
	}
}

func (d *dice) flag() bool { return d.byte()%2 == 1 }

func (d *dice) request() Request {
	r := Request{Term: d.number()}
	kinds := d.byte()
	if kinds%4 == 0 || kinds > 240 {
		r.RequestVote = &RequestVote{PreVote: d.flag(), LastLogIndex: d.number(), LastLogTerm: d.number()}
	}
	if kinds%4 == 1 || kinds%4 == 2 {
		r.AppendEntries = &AppendEntries{PrevLogIndex: d.number(), PrevLogTerm: d.number(), LeaderCommit: d.number()}
		for range d.byte() % 4 {
			r.AppendEntries.Entries = append(r.AppendEntries.Entries, Entry{Term: d.number(), Noop: d.flag(), Command: []byte{d.byte()}})
		}
	}
	if kinds%4 == 3 {
		r.InstallSnapshot = &InstallSnapshot{LastIncludedIndex: d.number(), LastIncludedTerm: d.number(), CommandIndex: d.number(), Data: []byte{d.byte()}}
	}
	return r
}

func (d *dice) answer() Answer {
	a := Answer{Term: d.number()}
	if d.flag() {
		a.RequestVote = &RequestVoteReply{PreVote: d.flag(), Granted: d.flag()}
	}
	if d.flag() {
		a.AppendEntries = &AppendEntriesReply{Success: d.flag(), MatchIndex: d.number(), ConflictTerm: d.number(), ConflictIndex: d.number(), RejectedPrev: d.number()}
	}
	return a
}

// hostile lets a peer of three hear whatever the bytes say, amid ticks,
// commands, snapshots and restarts. It must not panic, and its core must stay
// sound.
func hostile(t *testing.T, data []byte) {
	d := &dice{rest: data}
	rp, err := openReplica(3, 1, func(n int) int { return int(d.byte()) % n }, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for len(d.rest) > 0 {
		switch d.byte() % 12 {
		case 0:
			for range d.byte() % 40 {
				rp.tick()
			}
		case 1:
			_, _ = rp.start([]byte{d.byte()})
		case 2:
			rp.compact(int(d.number()), []byte{d.byte()})
		case 3:
			drive(t, rp)
			state := rp.encode()
			again, err := openReplica(3, 1, func(n int) int { return int(d.byte()) % n }, state, rp.snapshot.data)
			if err != nil {
				t.Fatalf("does not open what it has saved: %v", err)
			}
			rp = again
		case 4, 5:
			reply := &DeliverReply{Installed: d.flag()}
			for range d.byte() % 3 {
				reply.Answers = append(reply.Answers, d.answer())
			}
			rp.answered(int(d.byte()%2)*2, &DeliverArgs{Requests: []Request{d.request()}}, reply, d.flag())
		default:
			args := &DeliverArgs{From: int(d.number()), To: int(d.number())}
			if d.flag() {
				args.From, args.To = int(d.byte()%2)*2, 1
			}
			for range d.byte() % 4 {
				args.Requests = append(args.Requests, d.request())
			}
			if rp.admits(args) {
				rp.deliver(args)
			}
		}
		if d.flag() {
			drive(t, rp)
		}
	}
	drive(t, rp)
}

// FuzzDeliver lets a peer hear what no honest peer says.
func FuzzDeliver(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		f.Add(noise(rng, 500))
	}
	f.Fuzz(hostile)
}

func noise(rng *rand.Rand, n int) []byte {
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	return data
}

// TestHostileDeliveries is FuzzDeliver for everyday runs.
func TestHostileDeliveries(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(3, 4))
	for range short(300, 1000) {
		hostile(t, noise(rng, 800))
	}
}

// TestStrangeCalls: the handler drops what is not for it, or not a peer's, and
// nothing changes.
func TestStrangeCalls(t *testing.T) {
	vote := []Request{{Term: 7, RequestVote: &RequestVote{}}}
	both := []Request{{Term: 7, RequestVote: &RequestVote{}, AppendEntries: &AppendEntries{}}}
	three := []Request{{Term: 7, RequestVote: &RequestVote{}, InstallSnapshot: &InstallSnapshot{LastIncludedIndex: 3, LastIncludedTerm: 2, CommandIndex: 1}}}
	synctest.Test(t, func(t *testing.T) {
		p := &disk{}
		rf := Make([]ClientEnd{silence{}, silence{}, silence{}}, 1, p, make(chan ApplyMsg, 100))
		defer rf.Kill()
		for _, args := range []*DeliverArgs{
			nil,
			{},
			{From: 0, To: 0, Requests: vote},
			{From: 0, To: 2, Requests: vote},
			{From: 1, To: 1, Requests: vote},
			{From: -1, To: 1, Requests: vote},
			{From: 3, To: 1, Requests: vote},
			{From: 1 << 62, To: 1, Requests: vote},
			{From: 0, To: 1, Requests: []Request{{Term: 7}}},
			{From: 0, To: 1, Requests: both},
			{From: 0, To: 1, Requests: three},
			{From: 0, To: 1, Requests: []Request{{Term: 1<<64 - 1, RequestVote: &RequestVote{}}}},
			{From: 0, To: 1, Requests: slices.Repeat(vote, laneMax+1)},
		} {
			var reply DeliverReply
			rf.Deliver(args, &reply)
			if term, _ := rf.GetState(); len(reply.Answers) > 0 || reply.Installed || term != 0 || p.count() > 0 {
				t.Errorf("%+v is answered with %+v, in term %d, after %d saves", args, reply, term, p.count())
			}
		}
	})
}

// TestImpossibleSnapshots: a snapshot that contradicts what a peer has applied,
// or its log, is refused; the same with the right numbers is taken.
func TestImpossibleSnapshots(t *testing.T) {
	for _, c := range []struct {
		name                   string
		index, term, command   uint64
		possible, alreadyThere bool
	}{
		{"fewer commands than were applied", 20, 2, 1, false, false},
		{"more commands than entries", 20, 2, 21, false, false},
		{"more commands than the log has there", 5, 1, 4, false, false},
		{"fewer commands than the log has there", 5, 1, 2, false, false},
		{"as the log has it", 5, 1, 3, true, false},
		{"far ahead", 20, 2, 15, true, false},
		{"at a negative number", 20, 2, 1 << 63, false, false},
		{"beyond all indexes", 1 << 63, 2, 15, false, false},
		{"of no term", 20, 0, 15, false, false},
		{"of a later term than its leader's", 20, 9, 15, false, false},
		{"of what is applied already", 3, 1, 2, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			rp, err := openReplica(3, 1, func(int) int { return 0 }, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			// No-op, two commands, which are committed; no-op, a command.
			rp.deliver(&DeliverArgs{From: 0, To: 1, Requests: []Request{{Term: 2, AppendEntries: &AppendEntries{LeaderCommit: 3, Entries: []Entry{
				{Term: 1, Noop: true}, {Term: 1, Command: []byte("a")}, {Term: 1, Command: []byte("b")}, {Term: 1, Noop: true}, {Term: 1, Command: []byte("c")},
			}}}}})
			drive(t, rp)
			if rp.handed != 2 {
				t.Fatalf("%d commands are handed out", rp.handed)
			}
			w := rp.deliver(&DeliverArgs{From: 0, To: 1, Requests: []Request{{Term: 2, InstallSnapshot: &InstallSnapshot{
				LastIncludedIndex: c.index, LastIncludedTerm: c.term, CommandIndex: c.command, Data: []byte("state"),
			}}}})
			drive(t, rp)
			if taken := rp.snapshot.index > 0; taken != c.possible || w.reply.Installed != (c.possible || c.alreadyThere) {
				t.Errorf("taken %t, said to be in place %t", taken, w.reply.Installed)
			}
		})
	}
}
