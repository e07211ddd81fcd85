package routing

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestNumbersAgainstAModel holds numbers to what it promises: numbers are
// unique, lowest is the lowest that is still waited for, and neither the window
// nor what is held for Outcome grows past its limit.
func TestNumbersAgainstAModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := &numbers{lowest: 1}
		open := make(map[uint64]bool)
		last := uint64(0)
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				seq, ok := n.take()
				if !ok {
					t.Skip("full")
				}
				if seq != last+1 {
					t.Fatalf("number %d after %d", seq, last)
				}
				last = seq
				open[seq] = true
			},
			"settle": func(t *rapid.T) {
				if last == 0 {
					t.Skip("none yet")
				}
				seq := rapid.Uint64Range(1, last).Draw(t, "seq")
				if !open[seq] {
					t.Skip("settled")
				}
				n.settle(seq, rapid.SampledFrom([]numberState{numberAbandoned, numberFinished}).Draw(t, "state"))
				delete(open, seq)
			},
			"": func(t *rapid.T) {
				for seq := range open {
					if seq < n.lowest {
						t.Fatalf("number %d is waited for, lowest is %d", seq, n.lowest)
					}
				}
				if n.lowest > last+1 {
					t.Fatalf("lowest %d past the next number %d", n.lowest, last+1)
				}
				if len(open) == 0 && last+1-n.lowest > abandonedMax {
					t.Fatalf("%d numbers kept though none is open", last+1-n.lowest)
				}
			},
		})
	})
}

func TestTheWindowIsBoundedAndOpensAgain(t *testing.T) {
	n := &numbers{lowest: 1}
	for range windowMax {
		if _, ok := n.take(); !ok {
			t.Fatal("full before its limit")
		}
	}
	if _, ok := n.take(); ok {
		t.Fatal("no limit")
	}
	n.settle(1, numberFinished)
	if seq, ok := n.take(); !ok || seq != windowMax+1 {
		t.Fatalf("number %d, %v", seq, ok)
	}
}

func TestAnAbandonedNumberIsHeldForOutcomeButNotForEver(t *testing.T) {
	n := &numbers{lowest: 1}
	n.take()
	n.settle(1, numberAbandoned)
	for range abandonedMax - 1 {
		seq, _ := n.take()
		n.settle(seq, numberFinished)
	}
	if n.lowest != 1 {
		t.Fatalf("lowest is %d", n.lowest)
	}
	n.take()
	if n.lowest == 1 {
		t.Fatal("an abandoned number is held for ever")
	}
}

// TestSessionsAreBornByTheClustersTime: a clock that is an hour off changes
// nothing, and a session that was born by a wrong one is given up.
func TestSessionsAreBornByTheClustersTime(t *testing.T) {
	now, cluster := time.UnixMilli(5_000_000), int64(1_000_000)
	r := New(Options{Rand: func() uint64 { return 1 }, Births: func(time.Time) int64 { return cluster }})
	first := r.current(now)
	if first.birthMS != cluster {
		t.Fatalf("born at %d, the cluster's time is %d", first.birthMS, cluster)
	}
	if r.current(now.Add(time.Hour)) != first || r.current(now.Add(-time.Hour)) != first {
		t.Error("the node's clock jumped, and the session was given up")
	}
	cluster -= 2 * setBackMax.Milliseconds()
	if r.current(now) == first {
		t.Error("the session is of the future and was kept")
	}
}
