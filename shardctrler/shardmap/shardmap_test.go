package shardmap

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"
	"pgregory.net/rapid"

	"github.com/flotilla-kv/flotilla/raft"
)

// TestRoutingVectors pins the routing: a change here moves everybody's keys.
// The hashes are xxhash64 with seed 0, from its reference implementation.
func TestRoutingVectors(t *testing.T) {
	for _, v := range []struct {
		key  string
		hash uint64
	}{
		{"", 0xef46db3751d8e999},
		{"a", 0xd24ec4f1a98c6e5b},
		{"as", 0x1c330fb2d66be179},
		{"asd", 0x631c37ce72a97393},
		{"asdf", 0x415872f599cea71e},
		{"Call me Ishmael. Some years ago--never mind how long precisely-", 0x02a2e85470d6fd96},
	} {
		for n := 1; n <= ShardsMax; n *= 2 {
			want := ShardID(0)
			if n > 1 {
				want = ShardID(v.hash / (1 << 63 / uint64(n/2)))
			}
			if got := Shard([]byte(v.key), n); got != want {
				t.Errorf("%q among %d: shard %d, want %d", v.key, n, got, want)
			}
		}
	}
}

// TestDoublingSplits: with twice the shards, each key is in one of the two
// halves of its shard.
func TestDoublingSplits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.SliceOf(rapid.Byte()).Draw(t, "key")
		n := 1 << rapid.IntRange(0, 15).Draw(t, "bits")
		if a, b := Shard(key, n), Shard(key, 2*n); b/2 != a || int(b) >= 2*n {
			t.Fatalf("shard %d of %d, %d of %d", a, n, b, 2*n)
		}
	})
}

func TestHashTags(t *testing.T) {
	for key, want := range map[string]string{
		"user:1":           "user:1",
		"{user}:1":         "user",
		"a{user}b":         "user",
		"{}x":              "{}x",
		"{":                "{",
		"}{":               "}{",
		"}{a}":             "a",
		"{a":               "{a",
		"a}":               "a}",
		"{{a}}":            "{a",
		"{a}{b}":           "a",
		"{}{b}":            "{}{b}",
		"":                 "",
		"x{\x00\xff}y":     "\x00\xff",
		"foo{}{bar}":       "foo{}{bar}",
		"foo{{bar}}zap":    "{bar",
		"foo{bar}{zap}end": "bar",
	} {
		if got := RoutingKey([]byte(key)); string(got) != want {
			t.Errorf("routing key of %q is %q, want %q", key, got, want)
		}
		if Shard([]byte(key), 1024) != ShardID(xxhash.Sum64String(want)>>54) {
			t.Errorf("%q is not routed by %q", key, want)
		}
	}
}

func TestCheckShards(t *testing.T) {
	for n := -2; n <= ShardsMax*2; n++ {
		good := n == 1 || n == 2 || n == 4 || n == 8 || n == 16 || n == 32 || n == 64 || n == 128 || n == 256 || n == 512 ||
			n == 1024 || n == 2048 || n == 4096 || n == 8192 || n == 16384 || n == 32768 || n == 65536
		if err := CheckShards(n); (err == nil) != good {
			t.Fatalf("%d shards: %v", n, err)
		} else if err != nil && !strings.Contains(err.Error(), fmt.Sprint(n)) {
			t.Fatalf("%q does not say what is wrong", err)
		}
	}
}

func testMap() *Map {
	return &Map{
		ClusterID: "c", Revision: 7, Config: 1,
		Shards: []Assignment{{2, 1}, {3, 1}, {2, 1}, {3, 4}},
		Groups: []Group{
			{ID: 1, Epoch: 3, Members: []Member{{Replica: 1, Node: 1}, {Replica: 2, Node: 2, Learner: true}}},
			{ID: 2, Epoch: 1, Preferred: 2, Members: []Member{{Replica: 1, Node: 1, First: true}, {Replica: 2, Node: 2, First: true}}},
			{ID: 3, Epoch: 1, Preferred: 1, Members: []Member{{Replica: 1, Node: 1, First: true}, {Replica: 2, Node: 3, Learner: true}}},
		},
		Nodes: []Node{{ID: 1, Name: "a"}, {ID: 2, Name: "b", State: NodeDown}, {ID: 3, Name: "c"}},
	}
}

func TestLookups(t *testing.T) {
	m := testMap()
	for _, key := range []string{"", "a", "b", "{a}x", "zzz"} {
		s, a := m.Owner([]byte(key))
		if s != Shard([]byte(key), 4) || a != m.Shards[s] {
			t.Errorf("owner of %q: shard %d, %+v", key, s, a)
		}
	}
	if g, ok := m.Group(3); !ok || g.Preferred != 1 {
		t.Errorf("group 3: %+v %v", g, ok)
	}
	if _, ok := m.Group(4); ok {
		t.Error("group 4 was found")
	}
	if n, ok := m.Node(2); !ok || n.Name != "b" || n.State.String() != "down" {
		t.Errorf("node 2: %+v %v", n, ok)
	}
	if _, ok := m.Node(0); ok {
		t.Error("node 0 was found")
	}
}

func TestAssigned(t *testing.T) {
	m := testMap()
	first := raft.Membership{Epoch: 1, Voters: []raft.Member{{Replica: 1, Node: 1}, {Replica: 2, Node: 2}}}
	got := m.Assigned(2)
	if len(got) != 2 || got[0].Key != (raft.ReplicaKey{Group: 1, Replica: 2}) || got[0].First.Epoch != 0 || got[0].Leads {
		t.Fatalf("node 2: %+v", got)
	}
	if got[1].Key != (raft.ReplicaKey{Group: 2, Replica: 2}) || !got[1].Leads || got[1].First.Epoch != 1 || !slices.Equal(got[1].First.Voters, first.Voters) {
		t.Errorf("node 2 in group 2: %+v", got[1])
	}
	for _, a := range m.Assigned(3) {
		if a.First.Epoch != 0 {
			t.Errorf("a later replica starts with %+v", a.First)
		}
	}
	if got := m.Assigned(9); got != nil {
		t.Errorf("node 9: %+v", got)
	}
}

func TestMerge(t *testing.T) {
	old := testMap()
	if Merge(nil, old) != old || Merge(old, nil) != old || Merge(nil, nil) != nil {
		t.Error("nil is no map")
	}
	other := testMap()
	other.ClusterID, other.Revision = "another", 99
	if Merge(old, other) != old {
		t.Error("a map of another cluster was taken")
	}
	newer := testMap()
	newer.Revision, newer.Shards[0], newer.Shards[3] = 8, Assignment{3, 2}, Assignment{2, 3}
	before := slices.Clone(newer.Shards)
	for _, m := range []*Map{Merge(old, newer), Merge(newer, old)} {
		if m.Revision != 8 || m.Shards[0] != (Assignment{3, 2}) || m.Shards[3] != (Assignment{3, 4}) {
			t.Errorf("merged %+v", m)
		}
	}
	if !slices.Equal(before, newer.Shards) || old.Shards[3] != (Assignment{3, 4}) {
		t.Error("merging modified a map")
	}
	same := testMap()
	if Merge(old, same) != old {
		t.Error("an equal map is news")
	}
}
