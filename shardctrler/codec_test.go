package shardctrler

import (
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// everyCommand has each command and each operation, all fields set.
func everyCommand() []Command {
	r := Registration{"r", "n", "z", "a:1", "g:2", "s:3", "h:4", "v5"}
	members := []shardmap.Member{{Replica: 1, Node: 2, First: true}, {Replica: 3, Node: 4, Learner: true, Gone: true}}
	return []Command{
		Init{ClusterID: "c", Shards: 1024, Replicas: 3, Groups: 4, ReplaceAfter: 70_000, First: r},
		AddGroups{Groups: []NewGroup{{Nodes: []raft.NodeID{1, 2, 300}, Preferred: 2}, {Nodes: []raft.NodeID{4}}}, Config: 300},
		RemoveGroup{Group: 1 << 40},
		DrainNode{Node: 7, Back: true},
		RemoveNode{Node: 300},
		RecoverGroup{Group: 300, Node: 1 << 40, Replica: 7},
		Register{ClusterID: "c", Node: 7, Registration: r},
		Commit{},
		Commit{Applied: 1 << 40, Scene: []byte("scene")},
		Commit{Operations: []Operation{
			{ID: 1, At: -5, Reason: "why", Body: CreateGroups{Groups: []NewGroup{{Nodes: []raft.NodeID{1, 2}, Preferred: 2}}, Owners: []uint64{0, 1, 300}}},
			{ID: 2, Reason: "", Body: SetNodeState{Node: 3, State: shardmap.NodeDown}},
			{ID: 3, Body: Birth{Group: 4, Generation: 5}},
			{ID: 4, Body: TransferLeader{Group: 5, Epoch: 6, To: 7}},
			{ID: 5, Body: StartMove{Shard: 300, From: 2, To: 3, Generation: 9}},
			{ID: 6, Body: DestroyGroup{Group: 9}},
			{ID: 7, Body: SetPreferred{Group: 9, Node: 300}},
			{ID: 8, Body: Reassign{Config: 4, Shards: []Reassigned{{Shard: 3, To: 2}, {Shard: 700, To: 5}}, Expected: Expectation{Group: 2, Weight: 1 << 40}}},
			{ID: 10, Body: Recover{Group: 3, Node: 300, Replica: 4, Epoch: 1 << 40, Floor: 9}},
			{ID: 9, Decision: 77, Body: NoteEffect{Config: 4, Has: 1 << 33, Others: 5}},
			{ID: 1 << 60, At: 1 << 40, Body: ChangeMembership{Group: 1 << 50, Epoch: 9, Members: members, Added: 1}},
		}},
		Finish{Operation: 9, Done: true, Detail: "d"},
		Observe{Group: 1, Epoch: 2, Members: members},
		Prefer{Group: 3, Node: 4},
		OrderMove{Shard: 70_000, To: 3},
		CancelMove{Move: 1 << 40},
		ReportMove{Move: 7, State: MoveFailed, Pause: 1500, Bytes: -1},
	}
}

func TestCommandsRoundTrip(t *testing.T) {
	for _, c := range everyCommand() {
		encoded := EncodeCommand(c)
		decoded, err := DecodeCommand(encoded)
		if err != nil || !reflect.DeepEqual(c, decoded) {
			t.Errorf("%+v became %+v: %v", c, decoded, err)
		}
		for cut := range encoded {
			if _, err := DecodeCommand(encoded[:cut]); err == nil {
				t.Errorf("%T cut to %d of %d bytes was read", c, cut, len(encoded))
			}
		}
		if _, err := DecodeCommand(append(encoded, 0)); err == nil {
			t.Errorf("%T with a byte too many was read", c)
		}
	}
}

func TestDrawnCommandsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := new(State)
		s, _, _ = apply(s, 1, 1, []Command{initCommand(16, 1, 2), Register{Registration: registrationOf("b")}})
		c := drawCommand(t, s)
		again, err := DecodeCommand(EncodeCommand(c))
		if err != nil || !reflect.DeepEqual(EncodeCommand(again), EncodeCommand(c)) {
			t.Fatalf("%+v became %+v: %v", c, again, err)
		}
	})
}

func TestMapRoundTrip(t *testing.T) {
	r := newRun()
	for _, c := range storyOfAGroup(t) {
		r.apply(c)
	}
	m := r.state.Map()
	b, err := EncodeMap(m)
	if err != nil {
		t.Fatal(err)
	}
	again, err := DecodeMap(b)
	if err != nil || !reflect.DeepEqual(m, again) {
		t.Errorf("the map became\n%+v\nfrom\n%+v\n%v", again, m, err)
	}
	for _, bad := range [][]byte{nil, {1, 2, 3}, b[:len(b)-1]} {
		if _, err := DecodeMap(bad); err == nil {
			t.Errorf("%d bytes were read as a map", len(bad))
		}
	}
}

func FuzzDecodeCommand(f *testing.F) {
	for _, c := range everyCommand() {
		f.Add(EncodeCommand(c))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := DecodeCommand(b)
		if err != nil {
			return
		}
		again, err := DecodeCommand(EncodeCommand(c))
		if err != nil && len(b) < reasonMax {
			t.Fatalf("%+v cannot be read again: %v", c, err)
		}
		if err == nil && len(b) < reasonMax && !reflect.DeepEqual(c, again) {
			t.Fatalf("%+v became %+v", c, again)
		}
		// Whatever can be read can be applied.
		s, _, _ := apply(new(State), 1, 1, []Command{initCommand(16, 1, 2), c, Register{Registration: registrationOf("b")}, c})
		s.Map()
		Plan(s, allUp(s))
	})
}
