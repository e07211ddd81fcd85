package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// simulation is a seeded test that tries seeds in ascending order and says
// which one failed.
type simulation struct {
	column  string
	pkg     string
	test    string
	reaches []string // packages below the root whose bugs it can meet
	first   int      // the first seed
	// args ask for n seeds. One processor keeps the order of those that share
	// the work.
	args func(n int) []string
	// seed finds the seed of the first failure in what the run printed.
	seed *regexp.Regexp
}

// simulationTimeout bounds all the seeds of one mutant.
const simulationTimeout = 20 * time.Minute

var simulations = []simulation{
	{
		column: "one group", pkg: "./raft/rafttest", test: "TestSimulation", first: 1,
		reaches: []string{"raft"},
		args:    func(n int) []string { return []string{"-cpu", "1", "-seeds", strconv.Itoa(n)} },
		seed:    regexp.MustCompile(`(?m)^\s*\S*\s*seed (\d+): `),
	},
	{
		column: "many groups", pkg: "./raft/multiraft", test: "TestSeeds", first: 0,
		reaches: []string{"raft", "raft/multiraft", "raft/logstore", "raft/statestore"},
		args:    func(int) []string { return nil }, // it has seeds of its own
		seed:    regexp.MustCompile(`(?m)^\s*--- FAIL: TestSeeds/(\d+) `),
	},
	{
		column: "cluster", pkg: "./tests/sim", test: "TestSeeds", first: 1,
		reaches: []string{"raft", "raft/multiraft", "raft/logstore", "raft/statestore", "raft/transport", "shardctrler", "shardkv", "client/routing"},
		args:    func(n int) []string { return []string{"-seeds", strconv.Itoa(n), "-first", "1"} },
		seed:    regexp.MustCompile(`(?m)^\s*\S*\s*seed (\d+): violation: `),
	},
}

// present says whether the simulation is in this tree.
func (s *simulation) present(root string) bool {
	files, err := filepath.Glob(filepath.Join(root, filepath.FromSlash(s.pkg), "*_test.go"))
	return err == nil && len(files) > 0
}

// reachesAny says whether a bug in one of the packages can show.
func (s *simulation) reachesAny(packages []string) bool {
	for _, have := range packages {
		for _, reached := range s.reaches {
			if have == reached {
				return true
			}
		}
	}
	return false
}

// throw runs n seeds at m and says how many it took.
func (s *simulation) throw(ctx context.Context, root string, m *mutant, n int) (string, error) {
	if !s.reachesAny(m.packages()) {
		return "", nil
	}
	dir, err := os.MkdirTemp("", "mutant-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	overlay, err := m.overlay(root, dir)
	if err != nil {
		return "", err
	}
	r, err := run{root: root, overlay: overlay, pkg: s.pkg, pattern: exactly(s.test), args: s.args(n), timeout: simulationTimeout}.do(ctx)
	if err != nil {
		return "", err
	}
	return s.read(r)
}

// read finds in a run's result how many seeds were needed.
func (s *simulation) read(r result) (string, error) {
	switch r.of(s.test) {
	case passed:
		return "-", nil
	case hung:
		return "hangs", nil
	case notBuilt, notRun:
		return "", fmt.Errorf("simulation %s: %s did not run:\n%s", s.column, s.test, r.tail())
	}
	found := s.seed.FindStringSubmatch(r.output)
	if found == nil {
		if strings.Contains(r.output, "panic: ") {
			return "crash", nil // it does not say of which seed
		}
		return "fails", nil
	}
	seed, err := strconv.Atoi(found[1])
	if err != nil {
		return "", fmt.Errorf("simulation %s: seed %q: %w", s.column, found[1], err)
	}
	return strconv.Itoa(seed - s.first + 1), nil
}
