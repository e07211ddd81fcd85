package rafttest

import (
	"flag"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
)

var (
	seeds    = flag.Int("seeds", 1000, "how many seeds TestSimulation runs")
	seed     = flag.Uint64("seed", 0, "run only this seed, with its trace")
	duration = flag.Int64("duration", 0, "virtual milliseconds of faults; 0: the default")
)

// TestSimulation runs one group under faults drawn from many seeds. A failure
// names its seed and how to see it again.
func TestSimulation(t *testing.T) {
	if *seed != 0 {
		replay(t, *seed, 1<<30)
		return
	}
	n := *seeds
	if testing.Short() {
		n = min(n, 100)
	}
	var total SimResult
	var mu sync.Mutex
	var next atomic.Uint64
	var wait sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wait.Add(1)
		go func() {
			defer wait.Done()
			for s := next.Add(1); s <= uint64(n) && !t.Failed(); s = next.Add(1) {
				r := RunSim(SimOptions{Seed: s, Duration: *duration})
				mu.Lock()
				add(&total, r)
				if r.Err != nil {
					t.Errorf("seed %d: %v\nprofile %s\nagain: go test ./raft/rafttest -run 'TestSimulation$' -seed %d -duration %d", s, r.Err, r.Profile, s, *duration)
					replay(t, s, 60)
				}
				mu.Unlock()
			}
		}()
	}
	wait.Wait()
	t.Logf("%d seeds: %+v", n, total)
}

// replay runs one seed again and shows the last events.
func replay(t *testing.T, s uint64, last int) {
	var lines []string
	r := RunSim(SimOptions{Seed: s, Duration: *duration, Trace: func(line string) {
		lines = append(lines, line)
		if len(lines) > 2*last {
			lines = append([]string(nil), lines[last:]...)
		}
	}})
	for _, line := range lines[max(0, len(lines)-last):] {
		fmt.Println(line)
	}
	t.Logf("seed %d: %+v", s, r)
	if r.Err != nil {
		t.Errorf("seed %d: %v", s, r.Err)
	}
}

func add(total *SimResult, r SimResult) {
	total.Events += r.Events
	total.Committed += r.Committed
	total.Writes += r.Writes
	total.Reads += r.Reads
	total.LeaseRead += r.LeaseRead
	total.Leaders += r.Leaders
	total.Crashes += r.Crashes
	total.Cuts += r.Cuts
	total.Snapshots += r.Snapshots
	total.Changes += r.Changes
	total.Transfers += r.Transfers
	total.Sleeps += r.Sleeps
}

// TestSameSeedSameTrace: a failing seed can be replayed.
func TestSameSeedSameTrace(t *testing.T) {
	for s := uint64(1); s <= 20; s++ {
		a, b := RunSim(SimOptions{Seed: s}), RunSim(SimOptions{Seed: s})
		if a.Hash != b.Hash || a.Events != b.Events {
			t.Errorf("seed %d: hash %x after %d events, then %x after %d", s, a.Hash, a.Events, b.Hash, b.Events)
		}
	}
}
