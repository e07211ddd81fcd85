package shardctrler

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// FuzzRestored gives the machine any records to begin with, as a snapshot would.
// They are refused, or make a state that can be asked, planned for and changed.
func FuzzRestored(f *testing.F) {
	good := newMemoryRecords()
	m := NewMachine()
	for i, c := range storyOfAGroup(f) {
		if err := m.applyEntry(good, raft.Index(i+1), 1, [][]byte{EncodeCommand(c)}, make([]any, 1)); err != nil {
			f.Fatal(err)
		}
	}
	var whole []byte
	for ok := good.First(); ok; ok = good.Next() {
		one := append([]byte(nil), good.Key()...)
		one = binary.BigEndian.AppendUint16(one, uint16(len(good.Value())))
		one = append(one, good.Value()...)
		f.Add(one)
		whole = append(whole, one...)
	}
	f.Add(whole)
	f.Fuzz(func(t *testing.T, b []byte) {
		records := newMemoryRecords()
		for len(b) >= recordKeySize+2 {
			n := min(int(binary.BigEndian.Uint16(b[recordKeySize:])), len(b)-recordKeySize-2)
			records.Set(b[:recordKeySize], b[recordKeySize+2:recordKeySize+2+n])
			b = b[recordKeySize+2+n:]
		}
		m := NewMachine()
		if m.restore(records) != nil {
			return
		}
		s := m.State()
		s.Map()
		s.Removed(raft.ReplicaKey{Group: 2, Replica: 1})
		Plan(s, allUp(s))
		for _, c := range []Command{Register{Registration: registrationOf("b")}, Observe{Group: 2, Epoch: 9, Members: []shardmap.Member{{Replica: 1, Node: 1}}}} {
			s, _, _ = apply(s, s.Revision+1, 10, []Command{c})
		}
	})
}

// FuzzWireMap takes maps as they come from another node, or from the data dir.
// One is refused, or can be merged, asked and remembered.
func FuzzWireMap(f *testing.F) {
	r := newRun()
	for _, c := range storyOfAGroup(f) {
		r.apply(c)
	}
	known := r.state.Map()
	b, err := EncodeMap(known)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)/2])
	small, err := proto.Marshal(&flotillav1.ShardMap{ClusterId: "c", Revision: 1 << 63, Shards: []*flotillav1.Assignment{{Group: 2, Generation: 9}, {}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(small)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeMap(b)
		if err != nil {
			if _, refused := errors.AsType[*InvalidError](err); !refused {
				t.Fatalf("refused by %v", err)
			}
			return
		}
		for _, merged := range []*shardmap.Map{m, shardmap.Merge(known, m), shardmap.Merge(m, known)} {
			for id := range raft.GroupID(4) {
				merged.Group(id)
			}
			merged.Assigned(1)
			merged.Owner([]byte("key"))
			merged.Node(1)
		}
		again, err := EncodeMap(m)
		if err != nil {
			return // a text that is no UTF-8 cannot have come over the wire
		}
		if twice, err := DecodeMap(again); err != nil || !slices.Equal(m.Shards, twice.Shards) || len(m.Groups) != len(twice.Groups) {
			t.Fatalf("remembered as another: %v", err)
		}
	})
}
