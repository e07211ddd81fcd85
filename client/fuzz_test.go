package client

import (
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// FuzzAnswers makes results of what a server may answer: any number of them, of
// any status. That is a result, or an error that says so.
func FuzzAnswers(f *testing.F) {
	for _, p := range []*flotillav1.Response{
		{Compared: true, Results: []*flotillav1.Result{{Version: 1, Value: []byte("v"), Existed: true}}},
		{Results: []*flotillav1.Result{{Status: flotillav1.Result_ABSENT}, {Status: flotillav1.Result_CONDITION_FAILED, Version: 2}}},
		{Results: []*flotillav1.Result{{Pairs: []*flotillav1.KeyValue{{Key: []byte("k")}}, Next: []byte("l")}}},
		{Results: []*flotillav1.Result{{Status: 99}}, Outcome: 7},
		{},
	} {
		b, err := proto.Marshal(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	ops := []Op{GetOp("a"), PutOp("b", nil), DeleteOp("c"), IncrOp("d", 1)}
	f.Fuzz(func(t *testing.T, b []byte) {
		p := new(flotillav1.Response)
		if proto.Unmarshal(b, p) != nil {
			return
		}
		if r, err := single(answer{response: p}); err == nil {
			_ = statusError("key", r)
			itemOf("key", r)
			if p := pageOf(r, []byte("k")); p.err == nil && p.next != nil && string(p.next) <= "k" {
				t.Fatalf("a scan goes on at %q", p.next)
			}
		} else if !errors.Is(err, ErrInternal) {
			t.Fatal(err)
		}
		for n := range len(ops) + 1 {
			results, err := opResults(ops[:n], p.GetResults())
			if (err == nil) != (len(p.GetResults()) == n) || err == nil && len(results) != n {
				t.Fatalf("%d results of %d operations: %v", len(results), n, err)
			}
		}
	})
}

// FuzzMap takes maps as any server may send them: one is refused, or can be
// routed by.
func FuzzMap(f *testing.F) {
	for _, m := range []*flotillav1.ShardMap{
		{ClusterId: "c", Revision: 1, Shards: make([]*flotillav1.Assignment, 4), Groups: []*flotillav1.Group{{Id: 2, Members: []*flotillav1.GroupMember{{ReplicaId: 1, NodeId: 1}}}}, Nodes: []*flotillav1.Node{{Id: 1, Addr: "a:1", State: "up"}}},
		{Shards: make([]*flotillav1.Assignment, 3)},
		{},
	} {
		for i := range m.Shards {
			m.Shards[i] = &flotillav1.Assignment{Group: 2, Generation: 1}
		}
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		w := new(flotillav1.ShardMap)
		if proto.Unmarshal(b, w) != nil {
			return
		}
		m, err := decodeMap(w)
		if err != nil {
			return
		}
		if err := shardmap.CheckShards(len(m.Shards)); err != nil {
			t.Fatal(err)
		}
		m.Owner([]byte("key"))
		for i := 1; i < len(m.Groups); i++ {
			if m.Groups[i-1].ID > m.Groups[i].ID {
				t.Fatalf("group %d stands before group %d", m.Groups[i-1].ID, m.Groups[i].ID)
			}
		}
	})
}
