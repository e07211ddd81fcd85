package multiraft

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/flotilla-kv/flotilla/raft"
)

func use(group raft.GroupID, first, last, durable, needed, pinned raft.Index, bytes int64) logUse {
	return logUse{key: raft.ReplicaKey{Group: group, Replica: 1}, first: first, last: last, durable: durable, needed: needed, pinned: pinned, bytes: bytes}
}

func TestWhatTheLogKeeps(t *testing.T) {
	const none = 101 // last+1: nobody needs anything
	tests := []struct {
		name   string
		uses   []logUse
		budget int64
		want   map[raft.GroupID]raft.Index
		over   bool
	}{
		{"everything that is flushed goes", []logUse{use(2, 1, 100, 60, none, none, 1000)}, 1000, map[raft.GroupID]raft.Index{2: 60}, false},
		{"nothing that is not flushed goes, even over budget", []logUse{use(2, 1, 100, 0, none, none, 1000)}, 10, nil, true},
		{"a lagging member keeps it", []logUse{use(2, 1, 100, 60, 31, none, 1000)}, 1000, map[raft.GroupID]raft.Index{2: 30}, false},
		{"past the budget the group with the most is cut first",
			[]logUse{use(2, 1, 100, 90, 11, none, 1000), use(3, 1, 100, 90, 11, none, 2000)}, 1500,
			map[raft.GroupID]raft.Index{2: 10, 3: 90}, false},
		{"a snapshot under way is never cut under", []logUse{use(2, 1, 100, 90, 11, 51, 1000)}, 1, map[raft.GroupID]raft.Index{2: 50}, true},
		{"what is cut already is not cut again", []logUse{use(2, 61, 100, 60, none, none, 400)}, 1000, nil, false},
		{"an empty log", []logUse{use(2, 101, 100, 100, none, none, 10)}, 1000, nil, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			cuts, over := planCuts(test.uses, test.budget)
			got := map[raft.GroupID]raft.Index{}
			for _, c := range cuts {
				got[c.key.Group] = c.through
			}
			if over != test.over || len(got) != len(test.want) {
				t.Fatalf("got %v over %v, want %v over %v", got, over, test.want, test.over)
			}
			for g, through := range test.want {
				if got[g] != through {
					t.Errorf("group %d is cut through %d, want %d", g, got[g], through)
				}
			}
		})
	}
}

func TestNoCutGoesBehindWhatIsDurableOrPinned(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 8).Draw(t, "groups")
		var uses []logUse
		for i := range n {
			first := raft.Index(rapid.IntRange(1, 50).Draw(t, "first"))
			last := first - 1 + raft.Index(rapid.IntRange(0, 100).Draw(t, "entries"))
			uses = append(uses, use(raft.GroupID(i+2), first, last,
				raft.Index(rapid.IntRange(0, int(last)).Draw(t, "durable")),
				raft.Index(rapid.IntRange(1, int(last)+1).Draw(t, "needed")),
				raft.Index(rapid.IntRange(1, int(last)+1).Draw(t, "pinned")),
				int64(rapid.IntRange(1, 10_000).Draw(t, "bytes"))))
		}
		budget := int64(rapid.IntRange(0, 20_000).Draw(t, "budget"))
		cuts, _ := planCuts(slices.Clone(uses), budget)
		for _, c := range cuts {
			u := uses[c.key.Group-2]
			if c.through > u.durable || c.through >= u.pinned {
				t.Fatalf("%+v is cut through %d", u, c.through)
			}
		}
	})
}
