package main

import "slices"

// allMutants is the table.
func allMutants() []*mutant {
	return slices.Concat(coreMutants(), nodeMutants(), storeMutants(), keyMutants(), moveMutants())
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
