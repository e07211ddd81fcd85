package sim

import (
	"flag"
	"fmt"
	"testing"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "run only this seed, with its timeline")
	firstFlag = flag.Uint64("first", 1, "the first seed of TestSeeds")
	seedsFlag = flag.Int("seeds", 0, "how many seeds TestSeeds runs; 0: as many as fit into a test run")
	logsFlag  = flag.Bool("logs", false, "with -seed: put what the nodes log into the timeline")
)

// seedsInTests is how many seeds run with all other tests.
const seedsInTests = 60

// TestSeeds runs seeds in ascending order and stops at the first violation.
func TestSeeds(t *testing.T) {
	if *seedFlag != 0 {
		replay(t, *seedFlag)
		return
	}
	seeds := *seedsFlag
	if seeds == 0 {
		seeds = seedsInTests
	}
	var total Counts
	for seed := *firstFlag; seed < *firstFlag+uint64(seeds); seed++ {
		r := Run(Options{Seed: seed})
		total.add(r.Counts)
		if r.Violation != nil {
			t.Fatalf("seed %d: violation: %v\nreplay: make sim SEED=%d", seed, r.Violation, seed)
		}
	}
	t.Logf("%d seeds: %+v", seeds, total)
}

// replay prints the timeline of a seed.
func replay(t *testing.T, seed uint64) {
	fmt.Printf("%10s  %-5s  %-12s %6s %6s\n", "ms", "who", "what", "", "")
	r := Run(Options{Seed: seed, Timeline: func(line string) { fmt.Println(line) }, Logs: *logsFlag})
	fmt.Printf("profile: %s\n%+v\n", r.Profile, r.Counts)
	if r.Violation != nil {
		t.Errorf("seed %d: violation: %v", seed, r.Violation)
		fmt.Printf("seed %d: violation: %v\n", seed, r.Violation)
	}
	fmt.Printf("trace hash: %016x\n", r.Hash)
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
