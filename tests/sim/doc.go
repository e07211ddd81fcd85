// Package sim runs whole clusters in one goroutine, from one seed.
//
// What is real: the Raft core and the turns of multiraft, the state machines
// of the config group and of the replica groups, the reconciler's steps, the
// server's request handling, its watches and its moves of shards, the liveness between nodes, and the client's
// router with its sessions and retries. What is of the world: time, the
// network, disks (the models of both stores, whose durability the world
// decides), the loops that turn the real parts, and who does what when. All of
// it is drawn from the seed, so a seed is a run: it gives the same trace hash
// wherever it runs.
//
// A run has three parts. The cluster is made: one node founds it, the others
// register, groups are created and born. Then faults come, as the seed's
// profile says (profile.go names them): messages are lost, repeated, late and
// cut off one way, in halves, rings, chains and by clogging; snapshots lose a
// bit on their way; nodes crash with any part of what they had not synced, stop
// gracefully, stand still, come back, lose the ends of their logs, synced or
// not (what is torn or damaged there the store takes for lost), or all they had; disks are slow, stand still or are full;
// clocks run at other rates and jump; all the while shards are ordered to move
// from group to group. Then all faults end, and within a bounded
// time everything must be well.
//
// What must hold is checked as it happens, each by its name:
//
//	Election Safety, Log Matching, Leader Append-Only, Leader Completeness,
//	State Machine Safety   figure 3 of the Raft paper (raft.go)
//	Quorum Commit          an entry is committed when a majority has acknowledged one of the leader's term (raft.go)
//	Group Time             is not made by one clock that is wrong, unless one voter is all (raft.go)
//	Durable Promise        a vote, term or acknowledgement that was sent is on the disk (raft.go)
//	One Owner              a shard has one group in one generation (state.go)
//	Replay                 decisions taken again from what is kept of them are the same (state.go)
//	Equal Replicas         replicas at one applied index hold the same bytes (state.go)
//	Explained              what is asked about shards, groups, nodes and decisions is answered, and true (state.go)
//	Equal Histories        a version of a shard is one change, wherever it is told (state.go)
//	Linearizability        of every key, unknown outcomes left open (history.go)
//	Exactly Once           a token that was acknowledged is there once, one that failed is not, one that
//	                       is unknown is there once at most (history.go)
//	Stale Reads            find what a key once was, under its version, and not long ago (history.go)
//	Watches                of all keys are told every change once and in order, or that they are not (watch.go)
//	Versions               no two writes of a shard share one (history.go)
//	Lanes                  what a client orders takes effect in that order (history.go)
//	Acknowledged Writes    are there at the end (history.go)
//	Progress               after the faults every group serves, has caught up and counts again (progress.go)
//	Bounded                queues stay within their limits (progress.go)
//	Assertion              nothing in the code has panicked (world.go)
//
// A violation names the property, what it concerns, and the command that
// replays the seed with its timeline.
package sim
