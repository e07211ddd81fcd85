// Package peer is one stand-alone Raft peer over the core of package raft,
// with the surface known from the teaching literature: [Make], [Raft.Start],
// [Raft.GetState], [Raft.Snapshot], [Raft.Kill], a persister, and a channel on
// which commands and snapshots come out. For one replicated log in one place it
// is all that is needed; for many, see package multiraft.
//
// # The contract
//
//   - Commands are numbered from 1 without gaps, whatever else Raft keeps in its
//     log. Start returns the number that a command will have if it is committed,
//     at once; another command under that number means that it was not.
//   - applyCh gets commands and snapshots in order, each once in a peer's life,
//     never backwards: behind command or snapshot n comes n+1 or a later
//     snapshot. What comes is committed and durable here. Nothing waits for the
//     reader but applyCh, and it may call any method of the peer, Kill included.
//   - A restarted peer goes on from what the persister holds. If that has a
//     snapshot, it comes first; commands follow from there on. (A state machine
//     that has read the persister by itself may ignore it: the index is the
//     same.)
//   - Snapshot returns when the log through its index is gone and saved as gone.
//   - Save always gets the whole state and the present snapshot, and the peer
//     promises nothing, to nobody, before Save has returned.
//   - All traffic is one RPC, "Raft.Deliver": a method [Raft.Deliver] with plain
//     exported structs, which gob and its like can carry as they are. Answers
//     ride back in its reply. No lock is held while a Call is out, nor while
//     applyCh is written to.
//
// A group elects within 5 seconds and agrees within 10 on a network that loses
// a tenth of the calls, and as many replies, delays others by seconds, reorders
// the rest, and lets what is lost hang for as long; peers may crash and restart
// meanwhile. Idle, a leader makes 8.3 calls a second to each follower. A
// command's bytes go to each follower once if nothing is lost or overtaken.
//
// # What it refuses
//
// Make panics on a persister that holds what this peer of this group cannot
// have saved, or a part of it: a peer that does not know what it has promised
// must not go on, and the surface has no way to say so. A group has at most 32
// peers, fixed for ever. Deliver drops what no peer would say: other
// addressees, impossible terms and indexes, entries out of order, more than one
// RPC in a request, snapshots that contradict the log; no input makes it panic.
// Start at a leader that has 16 MiB under way answers as one that does not
// lead. A snapshot travels in one piece.
//
// # How it runs
//
//	inputs      Start, Snapshot, Deliver, answers and ticks step the core under
//	            one lock, each for microseconds.
//	loop        one goroutine takes out what the core wants done, turn by turn:
//	            requests go to the lanes, then ONE Save for all that has come
//	            since the last turn, then answers and what is to be applied are
//	            let go.
//	lanes       one goroutine for each other peer. It makes a call with all that
//	            waits, and the next when that returns, or after 20 ms: so calls
//	            keep their order where the network is well, and a call that hangs
//	            holds nothing up where it is not. At most 256 calls to a peer are
//	            out; what waits is bounded, and Raft repairs what is dropped.
//	applier     one goroutine writes to applyCh. The core hands out 8 MiB at most
//	            beyond what was applied; a snapshot takes the place of what waits.
//
// The replica of replica.go is all of the peer that decides, as a value that is
// stepped; tests drive it without time or goroutines.
//
// # What the persister holds
//
// The snapshot is the caller's bytes as they are. The state is, integers
// big-endian:
//
//	offset  bytes
//	     0      4  "fpr1": the format and its version
//	     4      4  CRC-32C of all that follows
//	     8      4  number of peers
//	    12      4  this peer's place among them
//	    16      8  currentTerm
//	    24      8  votedFor: a peer's place + 1, or 0
//	    32      8  index of the last entry in the snapshot, 0 without one
//	    40      8  its term
//	    48      8  its number as a command: SnapshotIndex
//	    56      4  CRC-32C of the snapshot
//	    60      .  the entries behind it, each
//	                 uvarint  term * 2, + 1 if it is a no-op; else followed by
//	                 uvarint  length of the command
//	                 n        the command
//
// A no-op begins each term. It takes an index of Raft's, and no number: the
// command at entry i has the number at offset 48 plus the commands among the
// entries through i.
package peer
