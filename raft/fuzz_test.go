package raft_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/rafttest"
)

// dice draws numbers from a fuzzer's bytes: mostly small ones, sometimes the
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
		return uint64(b % 12)
	case b < 250:
		var raw [8]byte
		for i := range raw {
			raw[i] = d.byte()
		}
		return binary.LittleEndian.Uint64(raw[:])
	default:
		return ^uint64(0) - uint64(b%3)
	}
}

func (d *dice) flag() bool { return d.byte()%2 == 1 }

func (d *dice) entries(first raft.Index) []raft.Entry {
	var list []raft.Entry
	for i := raft.Index(0); i < raft.Index(d.byte()%4); i++ {
		e := raft.Entry{Index: first + i, Term: raft.Term(d.number()), Kind: raft.EntryKind(d.byte() % 4), Data: []byte{d.byte()}}
		if d.byte()%8 == 0 {
			e.Index = raft.Index(d.number())
		}
		if e.Kind == raft.EntryMembership && d.flag() {
			m := d.membership()
			e.Data = m.Encode()
		}
		list = append(list, e)
	}
	return list
}

func (d *dice) membership() raft.Membership {
	m := raft.Membership{Epoch: d.number()}
	for _, list := range []*[]raft.Member{&m.Voters, &m.Outgoing, &m.Learners} {
		for range d.byte() % 4 {
			*list = append(*list, raft.Member{Replica: raft.ReplicaID(d.number()), Node: raft.NodeID(d.number())})
		}
	}
	return m
}

func (d *dice) body() raft.Body {
	switch d.byte() % 9 {
	case 0:
		return &raft.RequestVote{PreVote: d.flag(), Transfer: d.flag(), LastLogIndex: raft.Index(d.number()), LastLogTerm: raft.Term(d.number())}
	case 1:
		return &raft.RequestVoteReply{PreVote: d.flag(), Granted: d.flag()}
	case 2, 3:
		prev := raft.Index(d.number())
		return &raft.AppendEntries{PrevLogIndex: prev, PrevLogTerm: raft.Term(d.number()), Entries: d.entries(prev + 1), LeaderCommit: raft.Index(d.number()), ReadRound: d.number(), Sleep: d.flag(), NeededFrom: raft.Index(d.number())}
	case 4:
		return &raft.AppendEntriesReply{Success: d.flag(), MatchIndex: raft.Index(d.number()), ConflictTerm: raft.Term(d.number()), ConflictIndex: raft.Index(d.number()),
			RejectedPrev: raft.Index(d.number()), ReadRound: d.number(), Asleep: d.flag(), Suspect: d.flag()}
	case 5:
		return &raft.InstallSnapshot{Snapshot: raft.SnapshotMark{Index: raft.Index(d.number()), Term: raft.Term(d.number()), Membership: d.membership()}}
	case 6:
		return &raft.TimeoutNow{}
	case 7:
		return &raft.ReadIndexRequest{ID: d.number()}
	}
	return &raft.ReadIndexReply{ID: d.number(), Index: raft.Index(d.number())}
}

// hostile steps whatever the bytes say into a replica with a disk that keeps
// up, amid ticks, proposals and reads. Whatever peers say, the core must not
// panic, and its own state must stay sound.
func hostile(t *testing.T, data []byte) {
	d := &dice{rest: data}
	disk := &hostileDisk{}
	r, err := raft.New(raft.Config{
		Group: rafttest.Group, Replica: 1, Log: disk, Suspect: d.byte()%8 == 0,
		Membership: raft.Membership{Epoch: 1, Voters: members(1, 2, 3)},
		Rand:       func(n int) int { return int(d.byte()) % n },
		Options:    raft.Options{LeaseReads: d.flag(), MaxInflightMessages: 2},
	})
	if err != nil {
		t.Fatal(err)
	}
	for len(d.rest) > 0 {
		switch d.byte() % 8 {
		case 0:
			r.Tick()
		case 1:
			_, _, _ = r.Propose([]byte{d.byte()})
		case 2:
			_ = r.ReadIndex(d.number())
		case 3:
			r.Campaign()
		default:
			m := raft.Message{Group: rafttest.Group, From: raft.ReplicaID(d.number()), To: 1, Term: raft.Term(d.number()), Body: d.body()}
			if s, ok := m.Body.(*raft.InstallSnapshot); ok && !r.WantsSnapshot(m.From, m.Term, s.Snapshot.Index) {
				continue // the driver's part of the contract
			}
			_ = r.Step(m)
		}
		for n := 0; r.HasReady(); n++ {
			rd := r.Ready()
			if rd.Write.Seq != 0 && d.flag() || n > 5 {
				disk.take(rd.Write)
				r.Persisted(disk.ack())
			} else {
				disk.take(rd.Write)
			}
			if k := len(rd.Committed); k > 0 {
				r.Applied(rd.Committed[k-1].Index)
			}
			if n > 100 {
				t.Fatal("Ready has no end")
			}
		}
		if err := r.CheckInvariants(); err != nil {
			t.Fatal(err)
		}
	}
}

// hostileDisk keeps everything, and shows at once what it was given.
type hostileDisk struct {
	base     raft.Index
	baseTerm raft.Term
	entries  []raft.Entry
	last     raft.WriteAck
}

func (h *hostileDisk) take(w raft.Write) {
	if w.Seq == 0 {
		return
	}
	if w.Reset != nil {
		h.base, h.baseTerm, h.entries = w.Reset.Index, w.Reset.Term, nil
	}
	h.last = raft.WriteAck{Seq: w.Seq}
	if n := len(w.Entries); n > 0 {
		if keep := w.Entries[0].Index - h.base - 1; keep < raft.Index(len(h.entries)) {
			h.entries = h.entries[:keep:keep]
		}
		h.entries = append(h.entries, w.Entries...)
		h.last.Last, h.last.LastTerm = w.Entries[n-1].Index, w.Entries[n-1].Term
	}
}

func (h *hostileDisk) ack() raft.WriteAck     { return h.last }
func (h *hostileDisk) FirstIndex() raft.Index { return h.base + 1 }
func (h *hostileDisk) LastIndex() raft.Index  { return h.base + raft.Index(len(h.entries)) }
func (h *hostileDisk) Term(i raft.Index) (raft.Term, error) {
	switch {
	case i < h.base:
		return 0, raft.ErrCompacted
	case i == h.base:
		return h.baseTerm, nil
	case i > h.LastIndex():
		return 0, raft.ErrUnavailable
	}
	return h.entries[i-h.base-1].Term, nil
}
func (h *hostileDisk) Entries(lo, hi raft.Index, _ int) ([]raft.Entry, error) {
	if lo <= h.base {
		return nil, raft.ErrCompacted
	}
	return h.entries[lo-h.base-1 : hi-h.base-1], nil
}

// FuzzStep feeds the core what no honest peer sends.
func FuzzStep(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		f.Add(noise(rng, 400))
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

// TestHostileMessages is FuzzStep for everyday runs.
func TestHostileMessages(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 3000 {
		hostile(t, noise(rng, 600))
	}
}

// A wire holds what several cores have said to each other, for the fuzzer to
// deliver late, twice, changed, or not at all.
type wire struct {
	messages []raft.Message
}

// maxOnTheWire bounds it; the oldest is lost.
const maxOnTheWire = 64

func (w *wire) put(ms ...raft.Message) {
	w.messages = append(w.messages, ms...)
	w.messages = w.messages[max(0, len(w.messages)-maxOnTheWire):]
}

// pick copies one message, and takes it off the wire unless it comes twice.
func (w *wire) pick(d *dice) (raft.Message, bool) {
	if len(w.messages) == 0 {
		return raft.Message{}, false
	}
	i := int(d.byte()) % len(w.messages)
	m := w.messages[i]
	if d.byte()%4 != 0 {
		w.messages = append(w.messages[:i:i], w.messages[i+1:]...)
	}
	return m, true
}

// bend changes one thing about a message. Bodies are shared with their sender,
// so it changes a copy.
func (d *dice) bend(m *raft.Message) {
	switch d.byte() % 8 {
	case 0:
		m.Term = raft.Term(d.number())
	case 1:
		m.From = raft.ReplicaID(d.number())
	case 2:
		m.Group = raft.GroupID(d.number())
	case 3:
		m.Body = d.body()
	default:
		d.bendBody(m)
	}
}

func (d *dice) bendBody(m *raft.Message) {
	switch b := m.Body.(type) {
	case *raft.RequestVote:
		bent := *b
		bent.LastLogIndex, bent.Transfer = raft.Index(d.number()), d.flag()
		m.Body = &bent
	case *raft.RequestVoteReply:
		bent := *b
		bent.Granted, bent.PreVote = d.flag(), d.flag()
		m.Body = &bent
	case *raft.AppendEntries:
		bent := *b
		switch d.byte() % 4 {
		case 0:
			bent.PrevLogIndex = raft.Index(d.number())
		case 1:
			bent.LeaderCommit = raft.Index(d.number())
		case 2:
			bent.Entries = d.entries(b.PrevLogIndex + 1)
		case 3:
			bent.ReadRound, bent.Sleep = d.number(), d.flag()
		}
		m.Body = &bent
	case *raft.AppendEntriesReply:
		bent := *b
		bent.Success, bent.MatchIndex, bent.Suspect = d.flag(), raft.Index(d.number()), d.flag()
		bent.ConflictIndex, bent.ConflictTerm, bent.ReadRound = raft.Index(d.number()), raft.Term(d.number()), d.number()
		m.Body = &bent
	case *raft.ReadIndexReply:
		bent := *b
		bent.Index = raft.Index(d.number())
		m.Body = &bent
	}
}

// crowd is three cores, each with a disk of its own, that talk over a wire which
// the fuzzer has its hands on. What an honest core says goes on the wire as it
// is; what it hears need not be what was said. Then nothing can be agreed upon,
// but no core panics, and the state of each stays sound.
func crowd(t *testing.T, data []byte) {
	d := &dice{rest: data}
	var w wire
	const size = 3
	var cores [size]*raft.Raft
	var disks [size]hostileDisk
	leases := d.flag()
	for i := range cores {
		r, err := raft.New(raft.Config{
			Group: rafttest.Group, Replica: raft.ReplicaID(i + 1), Log: &disks[i], Suspect: d.byte()%16 == 0,
			Membership: raft.Membership{Epoch: 1, Voters: members(1, 2, 3)},
			Rand:       func(n int) int { return int(d.byte()) % n },
			Options:    raft.Options{LeaseReads: leases, MaxInflightMessages: 2},
		})
		if err != nil {
			t.Fatal(err)
		}
		cores[i] = r
	}
	for len(d.rest) > 0 {
		i := int(d.byte()) % size
		r := cores[i]
		switch d.byte() % 16 {
		case 0, 1:
			r.Tick()
		case 2:
			_, _, _ = r.Propose([]byte{d.byte()})
		case 3:
			_ = r.ReadIndex(d.number())
		case 4:
			r.Campaign()
		case 5:
			_ = r.TransferLeadership(raft.ReplicaID(d.number()))
		case 6:
			_, _, _ = r.ProposeMembership(members(1, 2, 3)[:1+d.byte()%3], members(4, 5)[:d.byte()%3])
		case 7:
			r.SnapshotDone(raft.ReplicaID(d.number()), raft.Index(d.number()), d.flag())
		case 8:
			r.Unreachable(raft.ReplicaID(d.number()))
			r.LeaderLost()
			r.Sleep(func(raft.NodeID) bool { return d.flag() })
		case 9:
			m := raft.Message{Group: rafttest.Group, From: raft.ReplicaID(d.number()), To: raft.ReplicaID(i + 1), Term: raft.Term(d.number()), Body: d.body()}
			hear(r, m)
		default:
			m, ok := w.pick(d)
			if !ok {
				continue
			}
			if d.byte()%4 == 0 {
				d.bend(&m)
			}
			if m.To >= 1 && m.To <= size {
				i = int(m.To) - 1
				r = cores[i]
			}
			hear(r, m)
		}
		w.put(drain(t, d, r, &disks[i])...)
		if err := r.CheckInvariants(); err != nil {
			t.Fatal(err)
		}
	}
}

// hear steps a message, unless it is a snapshot that a driver would not have put
// in place.
func hear(r *raft.Raft, m raft.Message) {
	if s, ok := m.Body.(*raft.InstallSnapshot); ok && !r.WantsSnapshot(m.From, m.Term, s.Snapshot.Index) {
		return
	}
	_ = r.Step(m)
}

// drain carries out what a core wants done, with a disk that may be late, and
// returns what it says.
func drain(t *testing.T, d *dice, r *raft.Raft, disk *hostileDisk) (said []raft.Message) {
	t.Helper()
	for n := 0; r.HasReady(); n++ {
		rd := r.Ready()
		said = append(said, rd.Messages...)
		disk.take(rd.Write)
		if rd.Write.Seq != 0 && (d.flag() || n > 5) {
			r.Persisted(disk.ack())
		}
		if k := len(rd.Committed); k > 0 {
			r.Applied(rd.Committed[k-1].Index)
		}
		if n > 100 {
			t.Fatal("Ready has no end")
		}
	}
	return said
}

// FuzzCrowd lets cores talk to each other through someone who changes what they
// say.
func FuzzCrowd(f *testing.F) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 20 {
		f.Add(noise(rng, 600))
	}
	f.Fuzz(crowd)
}

// TestHostileCrowd is FuzzCrowd for everyday runs.
func TestHostileCrowd(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for range 3000 {
		crowd(t, noise(rng, 1200))
	}
}

// FuzzMembership decodes the data of membership entries: what is accepted is
// what it encodes to.
func FuzzMembership(f *testing.F) {
	for _, m := range []raft.Membership{
		{},
		{Epoch: 1, Voters: members(1, 2, 3)},
		{Epoch: 1 << 40, Voters: members(1, 4), Outgoing: members(1, 2, 3), Learners: members(5, 9)},
	} {
		f.Add(m.Encode())
	}
	f.Add([]byte{1, 1, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := raft.DecodeMembership(b)
		if err != nil {
			return
		}
		again, err := raft.DecodeMembership(m.Encode())
		if err != nil || !bytes.Equal(again.Encode(), m.Encode()) {
			t.Fatalf("%+v became %+v, %v", m, again, err)
		}
	})
}
