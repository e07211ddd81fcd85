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
//  6. For each of Ready.Snapshots stream a snapshot, then [Raft.SnapshotDone]. At
//     the receiver ask [Raft.WantsSnapshot], put the state durably in place, and
//     step the InstallSnapshot message, with no other turn of that replica in
//     between; the log is reset by the Write that follows.
//
// Several inputs may come before one Ready: what is due to each follower, and
// the round that all waiting reads share, are worked out once there.
//
// A replica whose log was found cut starts with Config.Suspect and must start
// so again until [Raft.Suspect] is false: that has to outlive restarts.
//
// What the core refuses: messages of another group or for another replica,
// entries out of order, of an unknown kind or with a membership that does not
// decode, impossible terms, acknowledgements, votes and reads of who is no
// member, proposals beyond the uncommitted-bytes limit, a second membership
// change while one is under way, a membership change before the leader has
// committed an entry of its own term, and a new voter that is not a learner
// which has caught up. No input makes it panic; only a broken promise of the
// driver does (for instance an acknowledgement of a write that was never handed
// out).
//
// Requests of a replica outside the membership are heard: it may have been added
// by an entry that is not here yet (thesis section 4.1).
//
// Where to read: raft.go is the surface and the rules for terms; then a file for
// each part of the paper: elections.go, replication.go (the leader's side of
// AppendEntries, with progress.go), append_entries.go (the follower's),
// commit.go, reconfigure.go (with membership.go), snapshot.go, readindex.go,
// transfer.go. durability.go says what waits for which write, log.go is the log,
// admit.go what is refused. lease.go, sleep.go and suspect.go are ours.
// invariants.go holds after every step.
//
// The words are those of the Raft paper (Ongaro and Ousterhout 2014) and of
// Ongaro's thesis; rules are cited where they are coded.
package raft
