// Package raft is the consensus core of one group: a deterministic value that
// is stepped. Messages, ticks and proposals go in; a [Ready] comes out with
// what to persist, what to send and what to apply. The core does no I/O,
// starts no goroutine, takes no lock and never looks at a clock: its driver
// (package multiraft, a simulator, or raft/peer) does, and acknowledges.
//
// The contract with the driver, in the order of its loop:
//
//  1. Feed inputs: [Raft.Step], [Raft.Tick], [Raft.Propose], [Raft.ReadIndex]...
//  2. Take [Raft.Ready]. Send Ready.Messages at once: whatever has to wait for
//     the disk is not in there yet, the core holds it back itself.
//  3. Persist Ready.Write. Writes of a group reach the disk in the order in
//     which they were handed out; several may be under way.
//  4. When a write is durable, call [Raft.Persisted] with its [WriteAck]. That
//     releases votes, append acknowledgements and the leader's own vote for
//     commitment; an acknowledgement vouches for nothing that has replaced its
//     entries since.
//  5. Apply Ready.Committed in order, then call [Raft.Applied].
//
// What the core refuses: messages of another group or for another replica,
// entries out of order, proposals beyond the uncommitted-bytes limit, a second
// membership change while one is under way, and a membership change before the
// leader has committed an entry of its own term. No input makes it panic;
// only a broken promise of the driver does (for instance an acknowledgement of
// a write that was never handed out).
//
// The words are those of the Raft paper (Ongaro and Ousterhout 2014) and of
// Ongaro's thesis; rules are cited where they are coded.
package raft
