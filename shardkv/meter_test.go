package shardkv

import (
	"fmt"
	"math"
	"testing"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// asked is a request for a key of a shard.
func asked(shard shardmap.ShardID, key string, writes bool, bytes int) *request {
	ops := []op{{kind: opGet, key: []byte(key)}}
	r := &request{shard: shard, bytes: bytes, read: readRequest{ops: ops}}
	if writes {
		r.write, r.read = &write{shard: shard, ops: ops}, readRequest{}
	}
	return r
}

// run asks so many times a second for so long, and looks every two seconds.
func (m *meter) run(now *time.Time, seconds int, perSecond int, next func(i int) *request) (last *flotillav1.GroupLoad) {
	for second := range seconds {
		for i := range perSecond {
			m.count(next(second*perSecond+i), 1024)
		}
		*now = now.Add(time.Second)
		if second%2 == 1 {
			last = m.load(2, 7, *now, true)
		}
	}
	return last
}

// TestRatesFollowTheRequests: what is reported is what is asked for, soon after it
// began and after it changed.
func TestRatesFollowTheRequests(t *testing.T) {
	m, now := new(meter), time.Unix(1000, 0)
	if m.load(2, 7, now, false) != nil {
		t.Error("something is known at once")
	}
	near := func(got, want uint64) bool { return math.Abs(float64(got)-float64(want)) <= 0.1*float64(want) }
	mixed := func(i int) *request { return asked(700, "k", i%4 == 0, 100) }
	got := m.run(&now, 4, 400, mixed)
	if got == nil || len(got.Shards) != 1 || got.MeasuredMs != 4000 {
		t.Fatalf("%v", got)
	}
	if s := got.Shards[0]; s.Shard != 700 || !near(s.ReadsPerS, 300) || !near(s.WritesPerS, 100) || !near(s.BytesPerS, 40_000) {
		t.Errorf("300 reads, 100 writes, 40,000 bytes a second for four seconds: %v", s)
	}
	m.run(&now, 30, 400, mixed)
	got = m.run(&now, 40, 40, mixed)
	if s := got.Shards[0]; !near(s.ReadsPerS, 35) && !near(s.ReadsPerS, 30) {
		t.Errorf("30 reads a second for forty seconds: %v", s)
	}
	if got = m.run(&now, 120, 0, nil); len(got.Shards) != 0 {
		t.Errorf("nothing for two minutes: %v", got)
	}
}

// TestANewLeaderBeginsAnew: what another leader carried out is not known here.
func TestANewLeaderBeginsAnew(t *testing.T) {
	m, now := new(meter), time.Unix(1000, 0)
	m.run(&now, 10, 400, func(int) *request { return asked(1, "k", true, 1) })
	if got := m.load(2, 8, now, false); got != nil {
		t.Errorf("in a new term %v", got)
	}
	now = now.Add(time.Second)
	if got := m.load(2, 8, now, false); got == nil || got.MeasuredMs != 1000 || len(got.Shards) != 0 {
		t.Errorf("a second later %v", got)
	}
}

// TestTheHottestKeysAreNamed, with about their shares, among thousands of others
// and when clients take turns.
func TestTheHottestKeysAreNamed(t *testing.T) {
	m, now := new(meter), time.Unix(1000, 0)
	got := m.run(&now, 20, 4000, func(i int) *request {
		switch i % 8 {
		case 0, 1, 2:
			return asked(3, "hot", true, 1)
		case 3:
			return asked(3, "warm", false, 1)
		}
		return asked(3, fmt.Sprint("cold", i), false, 1)
	})
	keys := got.GetShards()[0].HotKeys
	if len(keys) < 2 || string(keys[0].Key) != "hot" || string(keys[1].Key) != "warm" {
		t.Fatalf("the hottest are %v", keys)
	}
	for i, want := range []float64{0.375, 0.125} {
		if share := keys[i].Share; math.Abs(share-want) > 0.06 {
			t.Errorf("%s has %.2f of the requests, not %.2f", keys[i].Key, want, share)
		}
	}
	if len(keys) > 2 && keys[2].Share > 0.05 {
		t.Errorf("a cold key is hot: %v", keys[2])
	}
	got = m.run(&now, 60, 4000, func(int) *request { return asked(3, "new", true, 1) })
	if keys := got.Shards[0].HotKeys; len(keys) == 0 || string(keys[0].Key) != "new" {
		t.Errorf("a minute later the hottest are %v", keys)
	}
	m.run(&now, 120, 1, func(int) *request { return asked(3, "new", true, 1) })
	if m.shard(3, 1024).keys.Load() != nil { // it has a meter, as it was asked for
		t.Error("the keys of a shard that is cold are still looked at")
	}
}

// TestCountingAllocatesNothing, in the steady state.
func TestCountingAllocatesNothing(t *testing.T) {
	m, now := new(meter), time.Unix(1000, 0)
	r := asked(3, "hot", true, 1)
	m.run(&now, 4, 4000, func(int) *request { return r })
	if n := testing.AllocsPerRun(1000, func() { m.count(r, 1024) }); n != 0 {
		t.Errorf("%v allocations a request", n)
	}
}
