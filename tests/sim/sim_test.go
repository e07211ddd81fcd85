package sim

import (
	"flag"
	"testing"
)

var (
	firstFlag = flag.Uint64("first", 1, "the first seed of TestSeeds")
	seedsFlag = flag.Int("seeds", 0, "how many seeds TestSeeds runs; 0: as many as fit into a test run")
)

// How many seeds run with all other tests, and with them under the race
// detector.
const (
	seedsInTests      = 100
	seedsInShortTests = 10
)

// TestSeeds runs seeds in ascending order and stops at the first violation.
func TestSeeds(t *testing.T) {
	seeds := *seedsFlag
	switch {
	case seeds == 0 && testing.Short():
		seeds = seedsInShortTests
	case seeds == 0:
		seeds = seedsInTests
	}
	var total Counts
	for seed := *firstFlag; seed < *firstFlag+uint64(seeds); seed++ {
		r := Run(Options{Seed: seed})
		total.Add(r.Counts)
		if r.Violation != nil {
			t.Fatalf("seed %d: violation: %v\nreplay: make sim SEED=%d", seed, r.Violation, seed)
		}
	}
	t.Logf("%d seeds: %+v", seeds, total)
}

// TestSameSeedSameTrace: a seed is a run, wherever it runs.
func TestSameSeedSameTrace(t *testing.T) {
	for seed := uint64(1); seed <= 10; seed++ {
		a, b := Run(Options{Seed: seed}), Run(Options{Seed: seed})
		if a.Hash != b.Hash {
			t.Errorf("seed %d ran as %016x and as %016x", seed, a.Hash, b.Hash)
		}
	}
}
