package main

import "slices"

// Bugs of moving shards come with moving shards: a source deleted before its
// target is active, a session table left behind, ownership taken back by a
// timer, a late range delete that hits the next incarnation, a target's time
// not lifted at Activate, Cancel applied at the target first.

// allMutants is the table.
func allMutants() []*mutant {
	return slices.Concat(coreMutants(), nodeMutants(), storeMutants(), keyMutants())
}

// by is one killer.
func by(pkg, test string) []killer { return []killer{{pkg: pkg, test: test}} }

// drawn is one killer that draws its cases, with package rapid: it is not to
// leave a file with the case that failed in the work tree.
func drawn(pkg, test string) []killer {
	return []killer{{pkg: pkg, test: test, args: []string{"-rapid.nofailfile"}}}
}

// in is one change.
func in(file, old, new string) []change { return []change{{file: file, old: old, new: new}} }
