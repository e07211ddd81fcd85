package client

import (
	"context"
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

// FuzzWatchAnswers gives a watch of two shards whatever a node may say. Its user
// is told of each shard in the order of its versions, each once, keys only behind
// a reset, and of nothing else; or the stream ends with an error that says so.
func FuzzWatchAnswers(f *testing.F) {
	for _, p := range []*flotillav1.WatchResponse{
		{Parts: []*flotillav1.WatchPart{part(partBegin, 0, 0, 5), part(partChanges, 0, 5, 7, 6, 7), part(partMoved, 0, 0, 7)}},
		{Parts: []*flotillav1.WatchPart{part(partBegin, 1, 0, 9), part(partState, 1, 0, 9, 3), part(partStateEnd, 1, 0, 9), part(partChanges, 1, 9, 10, 10)}},
		{Parts: []*flotillav1.WatchPart{part(partBegin, 1, 0, 9), part(partChanges, 1, 9, 10, 10), part(partCompacted, 1, 0, 4)}},
		{Parts: []*flotillav1.WatchPart{part(partChanges, 0, 0, 1<<63, 1), part(99, 7, 1, 1)}},
	} {
		b, err := proto.Marshal(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	c, err := New(Options{Dialer: &stuckDialer{}, Maps: fixedMap{}})
	if err != nil {
		f.Fatal(err)
	}
	defer c.Close()
	f.Fuzz(func(t *testing.T, b []byte) {
		p := new(flotillav1.WatchResponse)
		if proto.Unmarshal(b, p) != nil || len(p.Parts) > 100 {
			return
		}
		w := &Watcher{client: c, items: make(chan watchItem, 4), back: make(chan watchBack, 2), ready: make(chan struct{}), unready: 2, delivered: make(map[shardmap.ShardID]delivered)}
		w.ctx, w.stop = context.WithCancel(t.Context())
		defer w.stop()
		s := &watchStream{watcher: w, group: 2, ctx: w.ctx, stop: w.stop, shards: map[shardmap.ShardID]*watchShard{
			0: {id: 0},
			1: {id: 1, start: flotillav1.WatchFrom_STATE},
		}}
		seen := make(map[int]heardOfShard)
		for _, part := range p.GetParts() {
			if err := s.part(Target{}, part); err != nil {
				if !errors.Is(err, ErrInternal) {
					t.Fatalf("%v: %v", part, err)
				}
				return
			}
			for len(w.items) > 0 {
				for _, e := range (<-w.items).events {
					if e.Shard != int(part.GetShard()) {
						t.Fatalf("%v tells of shard %d", part, e.Shard)
					}
					seen[e.Shard] = seen[e.Shard].hear(t, &e)
				}
			}
		}
	})
}

// heardOfShard is what the user of a watch was told of a shard.
type heardOfShard struct {
	version uint64
	keys    bool // are being told
}

func (h heardOfShard) hear(t *testing.T, e *Event) heardOfShard {
	switch {
	case e.Kind == EventReset && !h.keys: // a group that was recovered has gone back
		return heardOfShard{e.Version, true}
	case e.Kind == EventComplete && h.keys && e.Version == h.version:
		return heardOfShard{h.version, false}
	case h.keys && e.Kind != EventReset && e.Kind != EventComplete:
		return h
	case !h.keys && e.Version > h.version:
		return heardOfShard{e.Version, false}
	}
	t.Fatalf("%v of version %d is told behind version %d (its keys: %t)", e.Kind, e.Version, h.version, h.keys)
	return h
}
