package sim

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var (
	firstFlag = flag.Uint64("first", 1, "the first seed of TestSeeds")
	seedsFlag = flag.Int("seeds", 0, "how many seeds TestSeeds runs; 0: as many as fit into a test run")

	rewriteFlag = flag.Bool("rewrite", false, "keep the trace hashes as they are now")
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

// hashesFile holds the trace hashes of the first seeds, as some machine found
// them. A change of what the code does changes them: -rewrite.
const hashesFile = "testdata/hashes"

// TestSameSeedSameTrace: a seed is a run, twice in a process and on any machine.
func TestSameSeedSameTrace(t *testing.T) {
	var lines strings.Builder
	for seed := uint64(1); seed <= 10; seed++ {
		a, b := Run(Options{Seed: seed}), Run(Options{Seed: seed})
		if a.Hash != b.Hash {
			t.Errorf("seed %d ran as %016x and as %016x", seed, a.Hash, b.Hash)
		}
		fmt.Fprintf(&lines, "%d %016x\n", seed, a.Hash)
	}
	if *rewriteFlag {
		if err := os.WriteFile(hashesFile, []byte(lines.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := os.ReadFile(hashesFile)
	if err != nil {
		t.Fatal(err)
	}
	if got := lines.String(); got != string(kept) {
		t.Errorf("%s holds\n%sand the seeds ran as\n%sIf what the code does has changed: go test ./tests/sim -run SameSeed -rewrite", hashesFile, kept, got)
	}
}
