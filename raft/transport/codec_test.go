package transport

import (
	"fmt"
	"math"
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
)

// everyMessage is one message of each kind, with every field set.
func everyMessage() []raft.Message {
	mark := raft.SnapshotMark{Index: 9, Term: 3, Membership: raft.Membership{
		Epoch:    4,
		Voters:   []raft.Member{{Replica: 1, Node: 1}, {Replica: 2, Node: 2}, {Replica: 3, Node: 3}},
		Outgoing: []raft.Member{{Replica: 1, Node: 1}},
		Learners: []raft.Member{{Replica: 5, Node: 7}},
	}}
	bodies := []raft.Body{
		&raft.RequestVote{PreVote: true, Transfer: true, LastLogIndex: 8, LastLogTerm: 7},
		&raft.RequestVoteReply{PreVote: true, Granted: true},
		&raft.AppendEntries{PrevLogIndex: 4, PrevLogTerm: 2, LeaderCommit: 3, ReadRound: math.MaxUint64, Sleep: true, NeededFrom: 9, Entries: []raft.Entry{
			{Index: 5, Term: 2, Kind: raft.EntryCommand, Data: []byte("data")},
			{Index: 6, Term: 3, Kind: raft.EntryMembership, Data: mark.Membership.Encode()},
			{Index: 7, Term: 3, Kind: raft.EntryNoop},
		}},
		&raft.AppendEntries{PrevLogIndex: 4, PrevLogTerm: 2},
		&raft.AppendEntriesReply{Success: true, MatchIndex: 1, ConflictTerm: 2, ConflictIndex: 3, RejectedPrev: 4, ReadRound: 5, Asleep: true, Suspect: true},
		&raft.InstallSnapshot{Snapshot: mark},
		&raft.TimeoutNow{},
		&raft.ReadIndexRequest{ID: math.MaxUint64},
		&raft.ReadIndexReply{ID: math.MaxUint64, Index: 77},
	}
	var ms []raft.Message
	for i, body := range bodies {
		ms = append(ms, raft.Message{Group: raft.GroupID(i + 1), From: 1, To: 2, Term: raft.Term(i + 10), Body: body})
	}
	return ms
}

func overTheWire(t testing.TB, batch *flotillav1.RaftBatch) *flotillav1.RaftBatch {
	t.Helper()
	wire, err := proto.Marshal(batch)
	if err != nil {
		t.Fatal(err)
	}
	out := new(flotillav1.RaftBatch)
	if err := proto.Unmarshal(wire, out); err != nil {
		t.Fatal(err)
	}
	return out
}

// The encoder uses its memory again: a batch must not see the one before it.
func TestCodecKeepsEveryField(t *testing.T) {
	var e batchEncoder
	want := everyMessage()
	bare := []raft.Message{
		{Group: 1, From: 3, To: 4, Term: 1, Body: &raft.AppendEntries{}},
		{Group: 1, From: 3, To: 4, Term: 1, Body: &raft.AppendEntriesReply{}},
	}
	for round := range 3 {
		for _, ms := range [][]raft.Message{want, bare} {
			got, invalid := decodeBatch(overTheWire(t, e.encode(nil, ms)), nil)
			e.release()
			if invalid != 0 || len(got) != len(ms) {
				t.Fatalf("round %d: %d messages came of %d, %d were invalid", round, len(got), len(ms), invalid)
			}
			for i := range ms {
				if !reflect.DeepEqual(got[i], ms[i]) {
					t.Errorf("round %d: %T came as\n%+v %+v, was\n%+v %+v", round, ms[i].Body, got[i], got[i].Body, ms[i], ms[i].Body)
				}
			}
		}
	}
}

// Every field of every body must be among those that everyMessage sets, so that
// a field that is added to the core cannot be forgotten here.
func TestCodecTestSetsEveryField(t *testing.T) {
	set := make(map[string]bool)
	fields := make(map[string]bool)
	for _, m := range everyMessage() {
		body := reflect.ValueOf(m.Body).Elem()
		for i := range body.NumField() {
			name := fmt.Sprintf("%s.%s", body.Type().Name(), body.Type().Field(i).Name)
			fields[name] = true
			set[name] = set[name] || !body.Field(i).IsZero()
		}
	}
	for name := range fields {
		if !set[name] {
			t.Errorf("%s is set in no message of everyMessage", name)
		}
	}
}

func TestSizesAreUpperBounds(t *testing.T) {
	var e batchEncoder
	big := everyMessage()
	for i := range big {
		big[i].Group, big[i].From, big[i].Term = math.MaxUint64, math.MaxUint64, math.MaxUint64
		if a, ok := big[i].Body.(*raft.AppendEntries); ok {
			for j := range a.Entries {
				a.Entries[j].Index, a.Entries[j].Term = math.MaxUint64, math.MaxUint64
			}
		}
		encoded := proto.Size(e.encode(nil, big[i:i+1]))
		if bound := messageBytes(&big[i]); encoded > bound {
			t.Errorf("%T takes %d bytes, reckoned were %d", big[i].Body, encoded, bound)
		}
		e.release()
	}
}

func TestCodecDropsWhatIsMalformed(t *testing.T) {
	good := func() *flotillav1.RaftMessage {
		return &flotillav1.RaftMessage{Group: 2, From: 1, To: 2, Term: 3, Body: &flotillav1.RaftMessage_AppendEntries{
			AppendEntries: &flotillav1.AppendEntries{PrevLogIndex: 4, PrevLogTerm: 2, Entries: []*flotillav1.RaftEntry{{Index: 5, Term: 3}}}}}
	}
	if _, err := decodeMessage(good()); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*flotillav1.RaftMessage, *flotillav1.AppendEntries){
		"no group":             func(m *flotillav1.RaftMessage, _ *flotillav1.AppendEntries) { m.Group = 0 },
		"no sender":            func(m *flotillav1.RaftMessage, _ *flotillav1.AppendEntries) { m.From = 0 },
		"no recipient":         func(m *flotillav1.RaftMessage, _ *flotillav1.AppendEntries) { m.To = 0 },
		"to itself":            func(m *flotillav1.RaftMessage, _ *flotillav1.AppendEntries) { m.To = m.From },
		"no term":              func(m *flotillav1.RaftMessage, _ *flotillav1.AppendEntries) { m.Term = 0 },
		"huge term":            func(m *flotillav1.RaftMessage, _ *flotillav1.AppendEntries) { m.Term = math.MaxUint64 },
		"no body":              func(m *flotillav1.RaftMessage, _ *flotillav1.AppendEntries) { m.Body = nil },
		"huge index":           func(_ *flotillav1.RaftMessage, a *flotillav1.AppendEntries) { a.PrevLogIndex = math.MaxUint64 },
		"huge commit":          func(_ *flotillav1.RaftMessage, a *flotillav1.AppendEntries) { a.LeaderCommit = math.MaxUint64 },
		"a gap":                func(_ *flotillav1.RaftMessage, a *flotillav1.AppendEntries) { a.Entries[0].Index = 6 },
		"an unknown kind":      func(_ *flotillav1.RaftMessage, a *flotillav1.AppendEntries) { a.Entries[0].Kind = 3 },
		"a kind cut to a byte": func(_ *flotillav1.RaftMessage, a *flotillav1.AppendEntries) { a.Entries[0].Kind = 256 },
		"an entry's huge term": func(_ *flotillav1.RaftMessage, a *flotillav1.AppendEntries) { a.Entries[0].Term = math.MaxUint64 },
		"an entry that is nil": func(_ *flotillav1.RaftMessage, a *flotillav1.AppendEntries) { a.Entries[0] = nil },
		"a snapshot of nothing": func(m *flotillav1.RaftMessage, _ *flotillav1.AppendEntries) {
			m.Body = &flotillav1.RaftMessage_InstallSnapshot{InstallSnapshot: &flotillav1.InstallSnapshot{}}
		},
		"a membership of noise": func(m *flotillav1.RaftMessage, _ *flotillav1.AppendEntries) {
			m.Body = &flotillav1.RaftMessage_InstallSnapshot{InstallSnapshot: &flotillav1.InstallSnapshot{
				Snapshot: &flotillav1.SnapshotMark{Index: 1, Term: 1, Membership: []byte{1, 255, 255}}}}
		},
		"a huge vote": func(m *flotillav1.RaftMessage, _ *flotillav1.AppendEntries) {
			m.Body = &flotillav1.RaftMessage_RequestVote{RequestVote: &flotillav1.RequestVote{LastLogIndex: math.MaxUint64}}
		},
		"a huge match": func(m *flotillav1.RaftMessage, _ *flotillav1.AppendEntries) {
			m.Body = &flotillav1.RaftMessage_AppendEntriesReply{AppendEntriesReply: &flotillav1.AppendEntriesReply{MatchIndex: math.MaxUint64}}
		},
	} {
		bad := good()
		spoil(bad, bad.GetAppendEntries())
		ms, invalid := decodeBatch(&flotillav1.RaftBatch{Messages: []*flotillav1.RaftMessage{good(), bad, nil, good()}}, nil)
		if len(ms) != 2 || invalid != 2 {
			t.Errorf("%s: %d messages passed and %d were dropped, want 2 and 2", name, len(ms), invalid)
		}
	}
}

func TestEnvelopeCheck(t *testing.T) {
	self := Identity{ClusterID: "ours", Self: 2, Boot: 1}
	good := envelope{clusterID: "ours", from: 1, to: 2, boot: 5}
	if err := good.check(self); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*envelope){
		"another cluster":         func(e *envelope) { e.clusterID = "theirs" },
		"no cluster":              func(e *envelope) { e.clusterID = "" },
		"another recipient":       func(e *envelope) { e.to = 3 },
		"no recipient":            func(e *envelope) { e.to = 0 },
		"this node as the sender": func(e *envelope) { e.from = 2 },
		"no sender":               func(e *envelope) { e.from = 0 },
		"no boot":                 func(e *envelope) { e.boot = 0 },
		"nothing at all":          func(e *envelope) { *e = envelope{} },
	} {
		bad := good
		spoil(&bad)
		if bad.check(self) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestEntriesOfAGroupKeepNoOtherGroupsData decodes batches that share memory with
// what they came in, writes over that, and looks at what the entries hold.
func TestEntriesOfAGroupKeepNoOtherGroupsData(t *testing.T) {
	for _, groups := range []int{1, 2} {
		batch := new(flotillav1.RaftBatch)
		for g := range groups {
			batch.Messages = append(batch.Messages, &flotillav1.RaftMessage{
				Group: uint64(2 + g), From: 1, To: 2, Term: 1,
				Body: &flotillav1.RaftMessage_AppendEntries{AppendEntries: &flotillav1.AppendEntries{Entries: []*flotillav1.RaftEntry{
					{Index: 1, Term: 1, Data: []byte("one")}, {Index: 2, Term: 1}, {Index: 3, Term: 1, Data: []byte("three")},
				}}},
			})
		}
		wire, err := proto.Marshal(batch)
		if err != nil {
			t.Fatal(err)
		}
		in := new(flotillav1.RaftBatch)
		if err := in.UnmarshalVTUnsafe(wire); err != nil {
			t.Fatal(err)
		}
		ms, invalid := decodeBatch(in, nil)
		if invalid != 0 || len(ms) != groups {
			t.Fatalf("%d messages, %d invalid", len(ms), invalid)
		}
		clear(wire)
		for _, m := range ms {
			entries := m.Body.(*raft.AppendEntries).Entries
			got := fmt.Sprintf("%q %q %q", entries[0].Data, entries[1].Data, entries[2].Data)
			if own := got == `"one" "" "three"`; own != (groups > 1) {
				t.Errorf("%d groups: the entries hold %s", groups, got)
			}
		}
	}
}

func FuzzDecodeBatch(f *testing.F) {
	var e batchEncoder
	every, err := proto.Marshal(e.encode(envelope{clusterID: "c", from: 1, to: 2, boot: 3}.encode(), everyMessage()))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(every)
	f.Add(every[:len(every)/2])
	f.Add([]byte{})
	f.Add([]byte{0x12, 0x04, 0x08, 0x01, 0x10, 0x01})
	f.Fuzz(func(t *testing.T, wire []byte) {
		batch := new(flotillav1.RaftBatch)
		if proto.Unmarshal(wire, batch) != nil {
			return
		}
		decodeEnvelope(batch.GetEnvelope()).check(Identity{ClusterID: "c", Self: 2, Boot: 1})
		ms, _ := decodeBatch(batch, nil)
		for i := range ms {
			m := &ms[i]
			if m.Group == 0 || m.From == 0 || m.To == 0 || m.From == m.To || m.Term == 0 || m.Term > wireMax || m.Body == nil {
				t.Fatalf("passed: %+v", m)
			}
		}
		// What passes can be sent on, and passes again.
		var e batchEncoder
		again, invalid := decodeBatch(overTheWire(t, e.encode(nil, ms)), nil)
		if invalid != 0 || len(again) != len(ms) {
			t.Fatalf("%d messages passed, then %d and %d invalid", len(ms), len(again), invalid)
		}
	})
}
