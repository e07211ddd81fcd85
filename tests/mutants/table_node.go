package main

// nodeMutants are bugs of hosting many groups on a node.
func nodeMutants() []*mutant {
	const multiraft = "./raft/multiraft"
	return []*mutant{
		{
			name:    "entry-applied-twice",
			breaks:  "the applied index is that of the last entry whose effects lie beside it",
			changes: in("raft/multiraft/statemachine.go", "b.SetApplied(last.Index, last.Term, r.appliedMembership)", "b.SetApplied(last.Index-1, last.Term, r.appliedMembership)"),
			killers: by(multiraft, "TestARestartAppliesEachEntryOnce"),
		},
		{
			name:    "entry-skipped",
			breaks:  "nothing that is committed is left out by a restart",
			changes: in("raft/multiraft/statemachine.go", "b.SetApplied(last.Index, last.Term, r.appliedMembership)", "b.SetApplied(last.Index+1, last.Term, r.appliedMembership)"),
			killers: by(multiraft, "TestARestartAppliesEachEntryOnce"),
		},
		{
			name:   "applied-index-apart-from-the-data",
			breaks: "each batch sets the applied index together with its effects",
			changes: in("raft/multiraft/statemachine.go", "\tb.SetApplied(last.Index, last.Term, r.appliedMembership)\n", `	before, term, members, err := r.state.Applied()
	if err != nil {
		return n, err
	}
	b.SetApplied(before, term, members)
	if err := b.Commit(); err != nil {
		return n, err
	}
	b = r.state.NewBatch()
	b.SetApplied(last.Index, last.Term, r.appliedMembership)
`),
			killers: by(multiraft, "TestARestartAppliesEachEntryOnce"),
		},
		{
			name:    "snapshot-replays-an-entry",
			breaks:  "what a snapshot holds is not applied again behind it",
			changes: in("raft/multiraft/apply.go", "q.entries[0].Index <= index {", "q.entries[0].Index < index {"),
			killers: by(multiraft, "TestAJumpDropsWhatTheSnapshotHolds"),
		},
		{
			name:   "log-reset-before-the-install",
			breaks: "the log is reset to a snapshot only when its state is durably in place",
			changes: in("raft/multiraft/snapshots.go", "\terr := r.putInPlace(s, install)\n", `	r.worker.do(func() {
		r.frozen = false
		r.stepInstalled(s)
		r.worker.touch(r)
		r.frozen = true
		if r.core.HasReady() {
			r.worker.take(r, r.core.Ready())
			r.worker.persist()
		}
	})
	err := r.putInPlace(s, install)
`),
			killers: by(multiraft, "TestTheLogIsResetBehindTheInstall"),
		},
		{
			name:    "undecided-answered-as-failed",
			breaks:  "a proposal whose fate is open ends as unknown, not as failed",
			changes: in("raft/multiraft/replica.go", "\th.answerLost(lost, ErrUnknown)\n\tlate = append", "\th.answerLost(lost, r.notLeader())\n\tlate = append"),
			killers: by(multiraft, "TestReplacedIsNoEffectAndUndecidedIsUnknown"),
		},
		{
			name:    "answered-for-another-term",
			breaks:  "a proposal in whose place another entry was committed had no effect, and is told so",
			changes: in("raft/multiraft/apply.go", "if w.term != an.term {", "if false {"),
			killers: by(multiraft, "TestReplacedIsNoEffectAndUndecidedIsUnknown"),
		},
		{
			name:    "lease-not-checked-again",
			breaks:  "a lease read that had to wait for apply checks the lease again before it answers",
			changes: in("raft/multiraft/host.go", "if rd.leased == 0 {", "if true {"),
			killers: by(multiraft, "TestALeaseReadThatWaitedLooksAtTheLeaseAgain"),
		},
		{
			name:    "stamp-by-the-leader's-own-clock",
			breaks:  "an entry is stamped with the lower median of the clocks of its group's voters",
			changes: in("raft/multiraft/clock.go", "return lowerMedian(clocks), true", "return h.opts.Wall(), true"),
			killers: by(multiraft, "TestStampsFollowTheLowerMedian"),
		},
		{
			name:    "stamp-by-too-few-clocks",
			breaks:  "nothing is stamped before a quorum of the clocks was heard",
			changes: in("raft/multiraft/clock.go", "len(clocks) <= len(voters)/2", "len(clocks) == 0"),
			killers: by(multiraft, "TestNothingIsStampedByTooFewClocks"),
		},
		{
			name:    "cut-log-not-noticed",
			breaks:  "a state ahead of its log, without a snapshot's mark, means that the log was cut",
			changes: in("raft/multiraft/host.go", "cut = cut || !installed", "cut = cut && !installed"),
			killers: by(multiraft, "TestAStateAheadOfItsLogMakesSuspect"),
		},
		{
			name:    "half-open-connection-of-a-controller",
			breaks:  "a connection at whose other end nobody is any more is noticed",
			changes: in("node/conns.go", "\t\tgrpc.WithKeepaliveParams(keepalive.ClientParameters{Time: connAliveEvery, Timeout: connAliveTimeout, PermitWithoutStream: true}),\n", "\t\tgrpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 100 * connAliveEvery, Timeout: connAliveTimeout}),\n"),
			killers: by("./node", "TestHalfOpenConnectionsOfControllers"),
		},
		{
			name:    "impatience-ends-the-map's-stream",
			breaks:  "a newer map comes however often it is asked for",
			changes: in("shardctrler/mapsource.go", "look, kick = min(look, left), nil", "look = min(look, left)"),
			killers: by("./shardctrler", "TestImpatienceBringsTheMapNoLater"),
		},
		{
			name:    "next-leader-forgets-who-is-away",
			breaks:  "a new leader keeps the log that its predecessor kept for a member that it has not heard",
			changes: in("raft/replication.go", "next = max(next, r.neededFrom)", "next = 0"),
			killers: by("./raft/multiraft", "TestTheNextLeaderHasTheLogToo"),
		},
		{
			name:    "stale-read-without-its-bound",
			breaks:  "a stale read finds nothing older than it allows",
			changes: in("raft/multiraft/reads.go", "age <= bound &&", "age <= 1000*bound &&"),
			killers: by("./raft/multiraft", "TestStaleReadsStayWithinTheirBound"),
		},
		{
			name:    "log-cut-before-the-flush",
			breaks:  "the log is cut only behind what the state store cannot lose",
			changes: in("raft/multiraft/trimplan.go", "through := min(u.durable, u.needed-1, u.pinned-1)", "through := min(u.needed-1, u.pinned-1)"),
			killers: drawn(multiraft, "TestNoCutGoesBehindWhatIsDurableOrPinned"),
		},
		{
			name:    "gone-believed-from-an-old-map",
			breaks:  "a replica is removed only when its own log or the config group, asked linearizably, says so",
			changes: in("node/follow.go", "if err != nil || !answer.Removed {", "if err != nil || !answer.Removed && false {"),
			killers: by("./node", "TestAnOldMapRemovesNothing"),
		},
		{
			name:    "gone-believed-from-a-lagging-peer",
			breaks:  "an unknown higher ReplicaID is never gone: who lags does not know it yet",
			changes: in("shardctrler/state.go", "\tcase key.Replica == 0 || key.Replica > g.LastReplica:\n\t\treturn false, false\n", ""),
			killers: by("./shardctrler", "TestALaggingReplicaDoesNotSayWhatIsGone"),
		},
		{
			name:    "removal-answered-from-an-old-state",
			breaks:  "whether a replica was removed is answered from the config group's state as of now",
			changes: in("shardctrler/forward.go", "if err := host.Barrier(ctx); err != nil {", "if err := ctx.Err(); err != nil {"),
			killers: by("./shardctrler", "TestALaggingReplicaDoesNotSayWhatIsGone"),
		},
		{
			name:    "foreign-cluster-heard",
			breaks:  "an envelope of another cluster closes the stream",
			changes: in("raft/transport/codec.go", "case e.clusterID != self.ClusterID:", "case false:"),
			killers: by("./raft/transport", "TestEnvelopeCheck"),
		},
		{
			name:    "alive-without-an-echo",
			breaks:  "a peer is alive only if it hears us",
			changes: in("raft/transport/link.go", "now.Sub(l.heardAt) < within && now.Sub(l.provenAt) < within", "now.Sub(l.heardAt) < within"),
			killers: by("./raft/transport", "TestLinkDeafPeerGoesDown"),
		},
	}
}
