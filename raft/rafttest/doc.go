// Package rafttest is a world in which the core of package raft is tried: a
// network that drops, delays, repeats and reorders, disks that lose what was
// not synced, state machines that are flushed late, and checkers of the
// paper's properties that run after every step.
//
//   - [Replica] drives one core by hand: one turn, one sync, one apply at a
//     time. Paper tests and transcripts use it directly.
//   - [Sim] runs a group of replicas for some virtual time under faults drawn
//     from a seed. The same seed gives the same trace, hence the same hash.
//   - [Checker] holds the properties: Election Safety, Leader Append-Only, Log
//     Matching, Leader Completeness and State Machine Safety (figure 3 of the
//     paper); beyond them that what a message claims to be durable is on the
//     disk, that a commit is durable on a quorum, and that operations are
//     linearizable.
//
// Nothing here looks at a clock or starts a goroutine.
package rafttest
