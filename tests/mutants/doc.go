// Mutants plants bugs in Flotilla, one at a time, and demands of a named test
// that it notices. A suite that passes proves something only if it fails when
// the code is wrong; this is where that is tried.
//
//	make mutants                                   # all of them
//	go run ./tests/mutants -run 'vote'             # those whose name matches
//	go run ./tests/mutants -list                   # the table
//	go run ./tests/mutants -sim 2000               # thrown at the simulations too
//
// A mutant is a row of the table in table_*.go: the rule that it breaks, an
// exact piece of source that must occur once, what takes its place, and the
// tests that must fail. `go test -overlay` compiles the changed text instead
// of the file, so the work tree is never touched. First the named tests run
// without a mutant and must pass, each once.
//
// A mutant is killed if each of its tests was built, ran and failed (or hung,
// where the table says that this is how it shows). Whatever else comes of it,
// a text that is no longer found, a mutant that does not compile, a test that
// does not exist, is an error of the table and fails the run: a table that has
// rotted kills nothing.
//
// With -sim, each mutant is also thrown at the simulations that reach its
// file, and a column says how many seeds it took them; "-" says that they all
// passed. A simulation that needs more seeds than CI gives it is a hole as
// well, if a smaller one.
//
// The exit status is 0 if all are killed, 1 if one survives or the table is
// wrong, 2 for usage.
package main
