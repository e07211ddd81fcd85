package main

// coreMutants are bugs of one group: elections, log, commitment, reads and
// membership.
func coreMutants() []*mutant {
	const raft = "./raft"
	return []*mutant{
		{
			name:    "vote-not-durable",
			breaks:  "a vote and a term are durable before they are answered",
			changes: in("raft/durability.go", "seq = max(seq, r.disk.hardSeq)", "seq = max(seq, 0)"),
			killers: by(raft, "TestVoteIsDurableFirst"),
		},
		{
			name:    "own-vote-not-durable",
			breaks:  "a candidate counts its own vote once that is durable",
			changes: in("raft/elections.go", "e.ownVote != 0 && e.ownVote <= r.disk.ackedSeq", "e.ownVote != 0"),
			killers: by(raft, "TestOwnVoteNeedsItsOwnWrite"),
		},
		{
			name:    "two-votes-a-term",
			breaks:  "a replica votes at most once a term",
			changes: in("raft/elections.go", "r.role != Leader && (r.votedFor == 0 || r.votedFor == m.From)", "r.role != Leader"),
			killers: by(raft, "TestOneVoteATerm"),
		},
		{
			name:    "vote-for-a-shorter-log",
			breaks:  "a vote goes only to a log at least as up to date (section 5.4.1)",
			changes: in("raft/elections.go", "r.mayVote(m, b) && r.log.isUpToDate(b.LastLogIndex, b.LastLogTerm)", "r.mayVote(m, b)"),
			killers: by(raft, "TestVoterComparesLogs"),
		},
		{
			name:    "append-acknowledged-before-sync",
			breaks:  "a follower acknowledges entries, the last one included, once they are durable",
			changes: in("raft/append_entries.go", "r.sendAfter(r.seqCovering(lastNew), to, reply)", "r.send(to, reply)"),
			killers: by(raft, "TestLeaderReplicatesInParallel"),
		},
		{
			name:    "leader-counts-what-it-has-not-synced",
			breaks:  "a leader's own append counts once it is durable",
			changes: in("raft/commit.go", "return r.log.durable\n", "return r.log.last\n"),
			killers: by(raft, "TestCommitByMajority"),
		},
		{
			name:    "acknowledgement-of-a-replaced-entry",
			breaks:  "a durable write vouches for nothing that replaced it since",
			changes: in("raft/append_entries.go", "\tr.disk.replaced(last)\n", ""),
			killers: by(raft, "TestAReplacedWriteVouchesForNothing"),
		},
		{
			name:    "old-term-counted",
			breaks:  "only entries of the own term are committed by counting (section 5.4.2, figure 8)",
			changes: in("raft/commit.go", "n <= r.log.commit || n < r.leading.termStart", "n <= r.log.commit"),
			killers: by(raft, "TestOldTermsAreNotCounted"),
		},
		{
			name:    "commit-through-the-end-of-the-log",
			breaks:  "a follower commits through the last new entry of the message, not the end of its log",
			changes: in("raft/append_entries.go", "min(a.LeaderCommit, lastNew)", "min(a.LeaderCommit, r.log.last)"),
			killers: by(raft, "TestCommitOnlyWhatTheMessageVouchesFor"),
		},
		{
			name:    "late-append-truncates",
			breaks:  "only an entry that conflicts removes what follows it: a late AppendEntries cuts nothing",
			changes: in("raft/append_entries.go", "if err == nil && have == e.Term || err != nil && e.Index <= r.log.commit {", "if e.Index <= r.log.commit {"),
			killers: by(raft, "TestTruncateOnlyOnConflict"),
		},
		{
			name:    "applied-before-durable-here",
			breaks:  "a replica applies only what is durable in its own log",
			changes: in("raft/commit.go", "return min(r.log.commit, r.log.durable)", "return r.log.commit"),
			killers: by(raft, "TestAppliesOnlyWhatIsDurableHere"),
		},
		{
			name:    "read-before-own-term-commit",
			breaks:  "a leader serves no read before it has committed an entry of its own term (section 8)",
			changes: in("raft/readindex.go", " || !r.committedOwnTerm() {", " {"),
			killers: by(raft, "TestReadWaitsForOwnTerm"),
		},
		{
			name:    "read-without-a-quorum",
			breaks:  "a read waits until a quorum has confirmed a round that began after it",
			changes: in("raft/readindex.go", "len(reads.confirming) == 0 || confirmed < reads.inRound", "len(reads.confirming) == 0"),
			killers: by(raft, "TestReadNeedsARoundOfItsOwn"),
		},
		{
			name:    "read-answer-of-an-earlier-life",
			breaks:  "an answer to a read of an earlier life of the process is not taken for one to this",
			changes: in("raft/readindex.go", "uint64(r.rand(1<<31-1)+1) << 32", "1 << 32"),
			killers: by(raft, "TestReadAnswerOfAnEarlierLife"),
		},
		{
			name:    "lease-without-acknowledgement",
			breaks:  "a lease rests on replicas that have acknowledged a heartbeat of the leader's term",
			changes: in("raft/readindex.go", "reads.lease.confirmed(confirmed)", "reads.lease.confirmed(reads.round)"),
			killers: by(raft, "TestLeaseEnds"),
		},
		{
			name:    "lease-counts-from-the-answer",
			breaks:  "a reply confirms the round that it echoes, not the latest",
			changes: in("raft/replication.go", "r.confirmRound(p, b.ReadRound)", "r.confirmRound(p, l.reads.round)"),
			killers: []killer{{pkg: raft, test: "TestLeaseEnds"}, {pkg: raft, test: "TestReadNeedsARoundOfItsOwn"}},
		},
		{
			name:    "lease-kept-over-a-transfer",
			breaks:  "a leader drops its lease before it sends TimeoutNow",
			changes: in("raft/transfer.go", "l.reads.lease.waived = true", "l.reads.lease.waived = false"),
			killers: by(raft, "TestTransferDropsLease"),
		},
		{
			name:    "promise-forgotten-at-restart",
			breaks:  "after a start a replica grants no vote until the longest promise it can have given is over",
			changes: in("raft/raft.go", "\tr.suspicion.on = c.Suspect\n", "\tr.suspicion.on = c.Suspect\n\tr.election.sinceLeader = options.ElectionTicks\n"),
			killers: by(raft, "TestPromiseOutlivesSuspicionAndRestart"),
		},
		{
			name:    "suspect-votes",
			breaks:  "a replica whose log was cut does not vote",
			changes: in("raft/elections.go", "case r.suspicion.on || r.memberships.current().Epoch == 0:", "case r.memberships.current().Epoch == 0:"),
			killers: by(raft, "TestSuspectDoesNotVote"),
		},
		{
			name:    "suspect-counts",
			breaks:  "what a replica with a cut log acknowledges counts for nothing",
			changes: in("raft/commit.go", "p != nil && !p.suspect {", "p != nil {"),
			killers: by(raft, "TestSuspectDoesNotCount"),
		},
		{
			name:    "suspect-trusted-before-it-is-whole",
			breaks:  "a suspect replica is trusted again when its log is durably whole",
			changes: in("raft/suspect.go", "s.matches >= s.target && r.log.durable >= s.target", "s.matches >= s.target"),
			killers: by(raft, "TestSuspectIsTrustedWhenWhole"),
		},
		{
			name:    "membership-before-own-term-commit",
			breaks:  "a leader changes no membership before it has committed an entry of its own term",
			changes: in("raft/reconfigure.go", "case !r.committedOwnTerm():", "case false:"),
			killers: by(raft, "TestOneMembershipChangeAtATime"),
		},
		{
			name:    "membership-outlives-its-entry",
			breaks:  "a membership whose entry is truncated is no longer in effect",
			changes: in("raft/append_entries.go", "\tr.memberships.truncate(last)\n", ""),
			killers: by(raft, "TestMembershipFollowsTheLog"),
		},
		{
			name:    "joint-commit-by-one-majority",
			breaks:  "in a joint phase an entry is committed by both majorities",
			changes: in("raft/membership.go", "v = min(v, majorityValue(m.Outgoing, at))", "v = max(v, majorityValue(m.Outgoing, at))"),
			killers: by(raft, "TestJointNeedsBothMajorities"),
		},
		{
			name:    "joint-election-by-one-majority",
			breaks:  "in a joint phase a leader is elected by both majorities",
			changes: in("raft/membership.go", "return majority(m.Voters, yes) && (len(m.Outgoing) == 0 || majority(m.Outgoing, yes))", "return majority(m.Voters, yes)"),
			killers: by(raft, "TestJointElectionNeedsBothMajorities"),
		},
		{
			name:    "joint-phase-left-early",
			breaks:  "the final membership follows when the joint one is committed, not before",
			changes: in("raft/reconfigure.go", "if r.memberships.index() > r.log.commit {", "if false {"),
			killers: by(raft, "TestJointPhaseEndsWhenItIsCommitted"),
		},
		{
			name:    "lost-replicas-are-heard",
			breaks:  "a group that was recovered hears nothing of those that it was recovered from",
			changes: in("raft/admit.go", "case r.memberships.current().lost(m.From):", "case m.From == 0:"),
			killers: by(raft, "TestRecover"),
		},
		{
			name:    "lost-replicas-are-heard-by-new-ones",
			breaks:  "so do the replicas that it gets later",
			changes: in("raft/reconfigure.go", "Learners: slices.Clone(learners), Floor: now.Floor, Survivor: now.Survivor}", "Learners: slices.Clone(learners)}"),
			killers: by(raft, "TestRecover"),
		},
		{
			name:    "snapshot-of-the-lost-taken",
			breaks:  "no state of a replica that the group was recovered from is put in place",
			changes: in("raft/snapshot.go", "return !r.memberships.current().lost(from) && index >", "return index >"),
			killers: by("./raft/multiraft", "TestASnapshotOfTheLostIsNotTaken"),
		},
		{
			name:    "learner-counted",
			breaks:  "learners get the log and do not count",
			changes: in("raft/membership.go", "v := majorityValue(m.Voters, at)", "v := majorityValue(append(m.Voters[:len(m.Voters):len(m.Voters)], m.Learners...), at)"),
			killers: by(raft, "TestLearnersDoNotCount"),
		},
		{
			name:    "voter-that-is-not-caught-up",
			breaks:  "a new voter durably has the log through the membership in effect",
			changes: in("raft/reconfigure.go", "p == nil || p.suspect || p.match < r.memberships.index()", "p == nil || p.suspect"),
			killers: by(raft, "TestNewVoterHasCaughtUp"),
		},
		{
			name:    "snapshot-skips-an-entry",
			breaks:  "behind a snapshot at index i the next entry applied is i+1",
			changes: in("raft/snapshot.go", "\tr.skipTo(s.Index)\n", "\tr.skipTo(s.Index + 1)\n"),
			killers: by(raft, "TestLaggardGetsSnapshot"),
		},
	}
}
