package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// verdict is what became of a mutant.
type verdict struct {
	survived []string // killers that passed
	err      error    // of the table
	took     time.Duration
}

// errTable says what is wrong with the table.
func errTable(m *mutant, k killer, what string, r result) error {
	return fmt.Errorf("the table is wrong: %s: %s: %s\n%s", m.name, k, what, r.tail())
}

// judge plants m and runs its killers. The error is one of the surroundings.
func judge(ctx context.Context, root string, m *mutant, timeout time.Duration) (verdict, error) {
	start := time.Now()
	var v verdict
	dir, err := os.MkdirTemp("", "mutant-")
	if err != nil {
		return v, err
	}
	defer os.RemoveAll(dir)
	overlay, err := m.overlay(root, dir)
	if err != nil {
		return verdict{err: err}, nil
	}
	for _, k := range m.killers {
		r, err := run{root: root, overlay: overlay, pkg: k.pkg, pattern: exactly(k.test), args: k.args, timeout: timeout}.do(ctx)
		if err != nil {
			return v, err
		}
		switch r.of(k.test) {
		case passed:
			v.survived = append(v.survived, k.String())
		case failed:
		case hung:
			if !m.hangs {
				v.err = errTable(m, k, "the test hangs, and the row does not say so", r)
			}
		case notBuilt:
			v.err = errTable(m, k, "it does not compile", r)
		case notRun:
			v.err = errTable(m, k, "the test did not run", r)
		}
	}
	v.took = time.Since(start)
	return v, nil
}

// baseline runs the killers of all mutants as the code is, each once: a test
// that fails by itself kills nothing.
func baseline(ctx context.Context, root string, mutants []*mutant, timeout time.Duration, note func(format string, args ...any)) error {
	type command struct{ pkg, args string }
	tests := make(map[command][]killer)
	var order []command
	for _, m := range mutants {
		for _, k := range m.killers {
			c := command{k.pkg, strings.Join(k.args, " ")}
			if len(tests[c]) == 0 {
				order = append(order, c)
			}
			if !slices.ContainsFunc(tests[c], func(have killer) bool { return have.test == k.test }) {
				tests[c] = append(tests[c], k)
			}
		}
	}
	for _, c := range order {
		var names []string
		for _, k := range tests[c] {
			names = append(names, k.test)
		}
		start := time.Now()
		r, err := run{root: root, pkg: c.pkg, pattern: exactly(names...), args: strings.Fields(c.args), timeout: time.Duration(len(names)) * timeout}.do(ctx)
		if err != nil {
			return err
		}
		for _, k := range tests[c] {
			if r.of(k.test) != passed {
				return fmt.Errorf("without any mutant %s does not pass:\n%s", k, r.tail())
			}
		}
		note("without a mutant: %d tests of %s pass in %.1f s\n", len(names), c.pkg, time.Since(start).Seconds())
	}
	return nil
}
