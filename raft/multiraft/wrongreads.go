//go:build wrongreads

package multiraft

// wrongReads makes every replica that may be asked answer a read from what it
// has applied so far, without the ReadIndex round: a follower does not know
// what was committed since, and a leader not whether it still is one. The tests
// build a binary so, to prove that flotilla check finds what it looks for.
const wrongReads = true
