package shardkv

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// TestAMoveConvergesAtAnyRate: the writers touch more than the target can take
// in; they are slowed, none is refused, and the shard is handed over.
func TestAMoveConvergesAtAnyRate(t *testing.T) {
	serveTwo(t, func(w *twoGroups, a, b *bench) {
		key := keyIn(0)
		a.want(a.do(ask(wirePut(key, "v"))), flotillav1.Code_OK)
		var pages atomic.Int64
		w.spoils(func(q *flotillav1.PullRequest, _ *flotillav1.PullResponse) bool {
			pages.Add(1)
			time.Sleep(5 * time.Millisecond) // what a slow disk of the target would take
			return false
		})
		value := strings.Repeat("x", 2<<10)
		stop := make(chan struct{})
		var writers sync.WaitGroup
		var moved, slowest atomic.Int64
		for i := range 40 {
			writers.Go(func() {
				at := rigGroup
				for n := i; ; n += 40 {
					select {
					case <-stop:
						return
					default:
					}
					began := time.Now()
					q := ask(wirePut(fmt.Sprintf("{%s}%d", key, n%2_000), value))
					q.Group, q.TimeoutMs = uint64(at), 5_000
					r, err := w.byID[at].server.Do(context.Background(), q)
					slowest.Store(max(slowest.Load(), int64(time.Since(began))))
					time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond)
					switch {
					case err == nil && r.GetCode() == flotillav1.Code_MOVED:
						at = rigGroup + otherGroup - at
						moved.Add(1)
					case err != nil || r.GetCode() != flotillav1.Code_OK && r.GetCode() != flotillav1.Code_BUSY:
						t.Errorf("a write was answered %v: %v", r, err)
						return
					}
				}
			})
		}
		time.Sleep(100 * time.Millisecond)
		w.begin(b, rigGroup, 0, 1, 1)
		began := time.Now()
		w.until("it is served at the target", func() bool { return b.shard(0).state == shardOwned })
		t.Logf("served after %v and %d pages; the slowest write took %v", time.Since(began), pages.Load(), time.Duration(slowest.Load()))
		close(stop)
		writers.Wait()
		if slowest := time.Duration(slowest.Load()); slowest > 2*time.Second {
			t.Errorf("a write took %v", slowest)
		}
	})
}

func TestPace(t *testing.T) {
	var p parking
	keep := func() func() { return func() {} }
	now := time.Unix(1_000, 0)
	page := func(all bool) {
		now = now.Add(20 * time.Millisecond)
		p.rounds(now, 3, 7, 100, all)
	}
	for range 10 {
		page(false)
	}
	if p.slows.Load() {
		t.Error("slowed at once")
	}
	for range 40 {
		page(false)
	}
	if i := p.paces[3].interval; i < 700*time.Microsecond || i > 900*time.Microsecond { // 5,000 touches a second
		t.Errorf("the target takes in 5,000 touches a second, requests go on each %v", i)
	}
	var until []time.Time
	for i := range 3 {
		waits, full := p.slow(now, parkedCall{call: new(call), shard: 3, bytes: 10}, keep)
		if !waits || full {
			t.Fatalf("request %d: waits %v, full %v", i, waits, full)
		}
		until = append(until, p.parked[i].until)
		page(true)
	}
	if until[1].Before(until[0]) || until[2].Before(until[1]) || until[2].Sub(now) > 3*paceMax {
		t.Errorf("they wait until %v, %v, %v", until[0], until[1], until[2])
	}
	if waits, _ := p.slow(now, parkedCall{call: new(call), shard: 4}, keep); waits {
		t.Error("another shard's requests wait")
	}
	p.parked, p.paces[3].queued = nil, 0
	if waits, _ := p.slow(now.Add(paceForgets+time.Millisecond), parkedCall{call: new(call), shard: 3}, keep); waits {
		t.Error("they wait for a target that asks for nothing")
	}
	p.forgetPaces(now.Add(paceForgets + time.Millisecond))
	if len(p.paces) != 0 || p.slows.Load() {
		t.Error("it is not forgotten")
	}
}

// TestAGroupRestsBetweenMoves, for long if the last one took long, and not at all
// where there was nothing else to do.
func TestAGroupRestsBetweenMoves(t *testing.T) {
	now := time.Unix(1000, 0)
	m := newMovers()
	turn := func(shard shardmap.ShardID, took time.Duration) (waited time.Duration) {
		key := moverKey{group: 2, shard: shard, move: 1}
		v := m.begin(2)
		m.byKey[key] = v
		waited = max(0, v.retry.Sub(now))
		if rest := max(0, m.resting(2, now)); rest != waited {
			t.Errorf("it may give nothing away for %v and take nothing in for %v", rest, waited)
		}
		now = now.Add(waited)
		if took > 0 {
			v.answered(now, new(flotillav1.PullRequest), &flotillav1.PullResponse{Checksum: itemsChecksum(nil)})
		}
		now = now.Add(took)
		m.end(key, now)
		return waited
	}
	for i, c := range []struct{ took, waited time.Duration }{
		{restAfter, 0},
		{restAfter + 30*time.Millisecond, 0},
		{time.Minute, restTimes * 30 * time.Millisecond},
		{restAfter, restMax},
		{0, 0}, // its source never began
		{restAfter, 0},
	} {
		if got := turn(shardmap.ShardID(i), c.took); got != c.waited {
			t.Errorf("move %d waited %v for its turn, not %v", i, got, c.waited)
		}
	}
	m.gaveAway(2, now.Add(-restAfter-30*time.Millisecond), now)
	if got := m.resting(2, now); got != restTimes*30*time.Millisecond {
		t.Errorf("who gave a shard away rests for %v", got)
	}
	if m.begin(3).retry.After(now) || m.resting(3, now) > 0 {
		t.Error("another group rests too")
	}
}
