// Package multiraft runs the replicas of many groups on one node.
//
// A [Host] brings together what the node has one of (the log store, the state
// store, the transport) with what it has many of: replicas, each a core of
// package raft and a [StateMachine]. The core decides; the host moves bytes
// and keeps the order in which things become durable, sent and applied.
//
// # Who owns what
//
//	worker      one goroutine each; a group belongs to worker id mod n. It owns
//	            the cores of its groups and everything in a replica that is not
//	            named below. Others leave word in its inbox.
//	applier     a pool beside the workers. A replica is with one applier at a
//	            time, in the order of its log; replicas are applied in parallel.
//	            It owns the state machine and the state store's batch.
//	outcomes    what waits for an index of a replica (proposals, reads): filled
//	            by the worker, resolved by the applier, under a lock of its own.
//	trimmer     one goroutine: decides what the log no longer needs, and when the
//	            state store is flushed.
//	snapshots   at most SnapshotSendsMax goroutines stream to followers; a stream
//	            that comes in runs in the transport's goroutine.
//
// No lock is held while a store, the transport, a state machine or a callback
// is called.
//
// # One turn of a worker
//
//  1. Take the inbox: durable writes, applied indexes, messages, proposals,
//     reads, orders. Read the clock after that, so that a lease is never
//     checked against a time before the read was asked.
//  2. Step them into the cores; tick the awake ones as often as time demands.
//  3. For each group that was touched: join the queued proposals into an entry
//     (up to EntryBytes; more entries if need be), the queued reads into one
//     round, and take the core's Ready.
//  4. Hand the messages of all groups to the transport, per node. What has to
//     wait for the disk is not among them: the core keeps it back.
//  5. ONE Append to the log store for the writes of all groups. The worker does
//     not wait: when the batch is durable the store's goroutine leaves word in
//     the inbox, and that releases votes, acknowledgements and commitment.
//  6. Pass committed entries to the appliers.
//
// A worker never blocks. While its writes under way exceed its share of
// LogQueueBytes it
// takes no proposals into the log and drops AppendEntries that carry entries
// (Raft repairs), but ticks and heartbeats go on.
//
// # Apply
//
// An applier takes what is queued of a replica, up to ApplyBatchBytes, into
// one batch of the state store: the state machine's writes, the applied index
// and its term. After the commit it delivers the results, answers reads and
// tells the worker. The core hands out no more than UnappliedBytes ahead of
// what was applied; the rest waits in the log. Only durable entries are
// applied, and the state store is not synced: the log is its write-ahead log.
//
// # Entries
//
// Proposals that were queued for a group since its last turn travel as one
// entry of kind EntryCommand, integers big-endian:
//
//	0   version   1   1; another version stops the node
//	1   stamp     8   unix ms: lower median of the clocks of the group's voters
//	                  at the leader, never below that leader's stamp before it;
//	                  state machines take the largest applied as the group's time
//	9   count     uvarint
//	    count times: length uvarint | command
//
// # What becomes of a proposal
//
// Refused on the spot (ErrBusy, ErrNoGroup, ErrStopped, ErrTooLarge) or before
// it entered a log (ErrNotLeader): no effect, ever. Once proposed it waits at
// (index, term). When its index is applied with that term, its result comes
// back; with another term, it is certain that it has no effect (ErrNotLeader).
// A change of leader alone decides nothing. After ProposalTimeout, when a
// snapshot jumps over the index, or when the replica stops: ErrUnknown.
// Admission counts the bytes of all proposals not yet answered, per group and
// per node.
//
// # Snapshots
//
// The leader streams the state store's snapshot when a follower's next entry is
// gone from its log. At the follower: the worker says whether the snapshot is
// wanted, the replica's apply is paused, the state is replaced as a whole and
// durable, the state machine is rebuilt, then the core is told; its log begins
// anew after the mark in a synced batch, and only then it acknowledges. After
// a crash in between the applied index lies beyond the end of the log: if the
// state's own mark says that it came by snapshot, the log begins there,
// otherwise the log was cut and the replica is suspect.
//
// # The log is kept
//
// behind what the state store has flushed and what a member of the group still
// needs, which the leader tells the others (who may lead next), within
// LogKeepBytes for the whole node; past that
// the group with the most is cut first. A leader that streams a snapshot keeps
// the log behind its mark, and goes on so for as long as the follower, which has
// the snapshot, comes nearer to the log's end. The state store is flushed when the oldest unflushed
// apply is FlushAfter old or the kept log exceeds its budget.
//
// # Sleep
//
// Groups without work for SleepAfter fall asleep (the core says whether they
// may); a worker without awake groups has no timer. Work wakes a group, also
// the death or a new boot of its leader's node, and, at its leader, the return
// of a node with a member that lags or was restarted.
//
// # Elections
//
// A replica without a leader that starts, or whose leader's node died, stands
// for election after a delay that grows with its rank: the preferred node
// first, then the voters in an order that differs between groups, so that
// leaders spread. Only CampaignsMax campaigns of a worker are under way at
// once, a fruitless one is repeated with a growing pause, and while no majority
// is alive nobody stands in vain: such a replica's election timer runs at an
// eighth of its pace.
//
// # Refusals
//
// Messages for groups that are not here, or for another replica of them, are
// dropped and counted. A replica id that was used before is not started
// (logstore.ErrOldReplica). An entry that cannot be read stops the node. So
// does a store that fails: all that is under way ends with ErrUnknown.
//
// # Without goroutines
//
// With Options.Manual the host starts none: the caller runs [Host.RunOnce]
// whenever it likes and calls into the host from one goroutine, over stores and
// a transport of its own, with a clock of its own. That is how a simulator
// drives the real turns. With Options.Go it also runs, as it likes, what waits
// for a snapshot on its way; Close cancels that and does not wait for it.
package multiraft
