package multiraft

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/statestore"
)

// sink is the cheapest state machine there is.
type sink struct{}

func (sink) Apply(b *statestore.Batch, e Applied, results []any) error {
	for i := range e.Commands {
		b.Set(e.Commands[i][:16], e.Commands[i])
		results[i] = nil
	}
	return nil
}
func (sink) Finish(*statestore.Batch)           {}
func (sink) Restored(*statestore.Replica) error { return nil }
func (sink) Committed(raft.Index)               {}

// BenchmarkPropose: three hosts in one process on the real disk, 256-byte
// commands, many in flight, proposed at the leaders. GOMAXPROCS counts: blocking
// syncs hold Ps (-cpu 8 on a machine of two cores).
func BenchmarkPropose(b *testing.B) {
	for _, groups := range []int{1, 48} {
		for _, inFlight := range []int{64, 1024} {
			b.Run(fmt.Sprintf("groups=%d/inflight=%d", groups, inFlight), func(b *testing.B) { benchPropose(b, groups, inFlight) })
		}
	}
}

func benchPropose(b *testing.B, groups, inFlight int) {
	c := newClusterOn(b, 3, nil, func(int) (vfs.FS, string) { return vfs.Default, b.TempDir() })
	m := raft.Membership{Epoch: 1, Voters: []raft.Member{{Replica: 1, Node: 1}, {Replica: 2, Node: 2}, {Replica: 3, Node: 3}}}
	leaders := make([]*Host, groups)
	for i := range groups {
		g := raft.GroupID(i + 2)
		for _, n := range c.nodes {
			c.must(n.host.Start(ReplicaSpec{
				Group: g, Replica: raft.ReplicaID(n.id), First: m, Preferred: preferredOf(m, g),
				NewStateMachine: func(*statestore.Replica) StateMachine { return sink{} },
			}))
		}
	}
	for i := range groups {
		leaders[i] = c.leader(raft.GroupID(i + 2)).host
		c.mustPropose(raft.GroupID(i+2), "0123456789abcdef")
	}
	command := make([]byte, 256)
	tokens := make(chan struct{}, inFlight)
	var failed atomic.Int64
	done := func(r Result) {
		if r.Err != nil {
			failed.Add(1)
		}
		<-tokens
	}
	b.ResetTimer()
	for i := range b.N {
		tokens <- struct{}{}
		leaders[i%groups].Propose(raft.GroupID(i%groups+2), command, done)
	}
	for range inFlight {
		tokens <- struct{}{}
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
	if n := failed.Load(); n > 0 {
		b.Errorf("%d proposals failed", n)
	}
}
