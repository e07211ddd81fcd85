package main

// moveMutants are bugs of moving shards, and of deciding where things are.
func moveMutants() []*mutant {
	const (
		shardkv    = "./shardkv"
		controller = "./shardctrler"
	)
	return []*mutant{
		{
			name:    "source-deleted-unverified",
			breaks:  "the source's copy is deleted only when what the target stores was read back",
			changes: in("shardkv/mover.go", "case x.in.verified:", "case true:"),
			killers: by(shardkv, "TestWhatIsStoredIsReadBack"),
		},
		{
			name:    "source-deletes-before-the-target-has-it",
			breaks:  "a copy goes when its target says so, and not at the hand-off",
			changes: in("shardkv/move.go", "case moveHandOff:\n\t\treturn m.handOff(c, sh), nil", "case moveHandOff:\n\t\tm.deleteCopy(b, sh)\n\t\treturn m.handOff(c, sh), nil"),
			killers: drawn(shardkv, "TestAMoveDoesNotShow"),
		},
		{
			name:    "session-table-left-behind",
			breaks:  "the answers that are waited for move with the shard",
			changes: in("shardkv/pull.go", "if head.seq >= x.lowest {", "if false {"),
			killers: drawn(shardkv, "TestAMoveDoesNotShow"),
		},
		{
			name:    "hand-off-taken-back",
			breaks:  "no wish to cancel takes back what was handed off",
			changes: in("shardkv/move.go", "\t\treturn refused(\"shard %d was handed to group %d: what was decided stands\", sh.id, sh.peer)", "\t\tm.endExport(b, sh, shardOwned)"),
			killers: drawn(shardkv, "TestAMoveDoesNotShow"),
		},
		{
			name:    "goes-to-one-that-has-just-died",
			breaks:  "a group gets no voters of whom a majority may be dead by what is known",
			changes: in("shardctrler/plan_replicas.go", "p.heard(m.Node).Alive && m.Lag >= 0 && m.Lag <= most", "p.heard(m.Node).Alive"),
			killers: by(controller, "TestAGroupGoesToThoseThatAreThere"),
		},
		{
			name:    "taken-back-by-a-timer",
			breaks:  "ownership changes by entries only: no silence, however long, takes back what was handed off",
			changes: in("shardkv/mover.go", "\tcase in.refused:\n", "\tcase in.refused || v.failures > 1 && !v.handedAt.IsZero():\n"),
			killers: by(shardkv, "TestNoTimerTakesAShardBack"),
		},
		{
			name:    "late-range-delete",
			breaks:  "who deletes a copy names the move that it was handed off by",
			changes: in("shardkv/move.go", "\tcase sh.state == shardHandedOff && sh.move == c.id:\n\tcase sh.move >= c.id", "\tcase sh.state == shardHandedOff:\n\tcase sh.move >= c.id"),
			killers: by(shardkv, "TestACancelOfAnotherMoveIsRefused"),
		},
		{
			name:    "target's-time-not-lifted",
			breaks:  "a group's time is never behind that of the group a shard came from",
			changes: in("shardkv/move.go", "m.state.time = max(m.state.time, c.time)", "m.state.time = max(m.state.time, 0)"),
			killers: by(shardkv, "TestATimeThatCameWithAShardStays"),
		},
		{
			name:    "cancel-applied-at-the-target-first",
			breaks:  "the target drops a copy only after the source's log has decided",
			changes: in("shardkv/mover.go", "return v.ask(x, flotillav1.PullRequest_WANT_CANCEL, nil)", "return v.propose(x.step(moveDropImport))"),
			killers: by(shardkv, "TestACancelledMoveStays"),
		},
		{
			name:    "served-whatever-the-digest",
			breaks:  "a shard is served only if its copy has the digest of what was handed off",
			changes: in("shardkv/move.go", "if in.digest != c.digest {", "if false {"),
			killers: by(shardkv, "TestADamageThatPassesTheChecksumIsNotServed"),
		},
		{
			name:    "handed-off-too-early",
			breaks:  "a shard is handed off when little is left to be taken in, as of then",
			changes: in("shardkv/source.go", "if err == nil && r.GetDone() {", "if err == nil {"),
			killers: by(shardkv, "TestNothingIsHandedOffWhileMuchIsLeft"),
		},
		{
			name:    "touched-twice-comes-once-behind-a-clear",
			breaks:  "what is behind a span that was cleared is put back",
			changes: in("shardkv/pull.go", "\t\t\tclear(seen)\n", ""),
			killers: by(shardkv, "TestAPageSaysOnceWhatIsSo"),
		},
		{
			name:    "writers-not-slowed",
			breaks:  "a move converges at any write rate",
			changes: in("shardkv/pace.go", "x.interval = min(since*paceTouches/time.Duration(max(1, x.touches)), paceMax)", "x.interval = 0"),
			killers: by(shardkv, "TestPace"),
		},
		{
			name:    "history-begin-off-by-one-after-activate",
			breaks:  "the history of a shard that came begins where it was handed off, and not before",
			changes: in("shardkv/move.go", "\tsh.begin = c.writes\n", "\tsh.begin = c.writes - 1\n"),
			killers: by(shardkv, "TestAWatchGoesOnWhereTheShardMoves"),
		},
		{
			name:    "moved-before-all-was-told",
			breaks:  "a watch is told that its shard moved when it was told all of it",
			changes: in("shardkv/watch.go", "if w.unsettled && end {\n\t\tw.endMoved", "if w.unsettled {\n\t\tw.endMoved"),
			killers: by(shardkv, "TestALateWatchIsToldAllOfAShardThatLeft"),
		},
		{
			name:    "moves-without-rest",
			breaks:  "a busy group rests between the shards that it takes in",
			changes: in("shardkv/movers.go", "&mover{retry: m.rests[id]}", "new(mover)"),
			killers: by(shardkv, "TestAGroupRestsBetweenMoves"),
		},
		{
			name:    "moves-without-rest-at-the-source",
			breaks:  "a busy group rests between the shards that it gives away",
			changes: in("shardkv/source.go", "if rest := p.server.movers.resting(p.group.id, p.server.now()); rest > 0 {", "if rest := p.server.movers.resting(p.group.id, p.server.now()); rest > time.Hour {"),
			killers: by(shardkv, "TestTheSourceRestsToo"),
		},
		{
			name:    "writes-wait-for-activate",
			breaks:  "what waits to be written follows Activate in the log at once",
			changes: in("shardkv/parking.go", "return p.opening[c.shard] && c.call.changes && c.until.IsZero()", "return p.opening[c.shard] && c.call.changes && !c.until.IsZero()"),
			killers: by(shardkv, "TestWritesFollowActivate"),
		},
		{
			name:    "writes-in-front-of-activate",
			breaks:  "no write of a shard that comes is in the log before its Activate",
			changes: in("shardkv/parking.go", "	p.opening[shard] = false", "	p.opening[shard] = true"),
			killers: by(shardkv, "TestWritesFollowActivate"),
		},
		{
			name:    "shut-out-forgotten",
			breaks:  "writes go behind Activate only while that is proposed",
			changes: in("shardkv/parking.go", "	delete(p.opening, shard)", ""),
			killers: by(shardkv, "TestWritesFollowActivate"),
		},
		{
			name:    "two-moves-of-a-shard",
			breaks:  "a shard has one move at a time",
			changes: in("shardctrler/moves.go", "if m, moving := d.movingShards()[c.Shard]; moving {", "if m, moving := d.movingShards()[c.Shard]; moving && m.Cancel {"),
			killers: by(controller, "TestOrderMove"),
		},
		{
			name:    "owner-before-the-target-serves",
			breaks:  "who owns a shard is recorded when its target says that it serves",
			changes: in("shardctrler/moves.go", "\td.putMove(m)\n\td.addMoveEvent(m, \"move\",", "\td.setOwner(m.Shard, shardmap.Assignment{Group: m.To, Generation: m.Generation + 1})\n\td.putMove(m)\n\td.addMoveEvent(m, \"move\","),
			killers: by(controller, "TestOrderMove"),
		},
		{
			name:    "decision-without-what-was-seen",
			breaks:  "a decision that is taken again from what is kept is the same",
			changes: in("shardctrler/decision.go", "packScene(s, o.needed(planned))", "packScene(s, Observed{})"),
			killers: drawn(controller, "TestPlansInAnyHistory"),
		},
		{
			name:    "loads-of-former-owners",
			breaks:  "a shard's load is that of the group that serves it",
			changes: in("shardctrler/load.go", "uint64(l.Shard) >= uint64(len(shards)) || shards[l.Shard].Group != group", "uint64(l.Shard) >= uint64(len(shards))"),
			killers: by(controller, "TestLoadsThatMoveNothing"),
		},
		{
			name:    "loads-balanced-for-ever",
			breaks:  "shards move for loads only where that is worth it",
			changes: in("shardctrler/plan_load.go", "loadOver     = 1.25             // times the mean of the groups: a group with more has too much\n\tloadGain     = 0.10             // of what the busiest group has: by so much the most must become less", "loadOver = 1.0\n\tloadGain = 0"),
			killers: drawn(controller, "TestLoadsAreEvenedOut"),
		},
		{
			name:    "membership-observed-uncommitted",
			breaks:  "a membership that may yet be undone is not recorded",
			changes: in("shardctrler/host.go", "return st.Unsettled || len(st.Membership.Outgoing) > 0", "return len(st.Membership.Outgoing) > 0"),
			killers: by(controller, "TestWhatMayBeUndoneIsNotObserved"),
		},
		{
			name:    "replica-id-given-again",
			breaks:  "a replica id is used once",
			changes: in("shardctrler/apply_operations.go", "\t\tg.LastReplica++\n\t\tmembers[i].Replica = g.LastReplica\n", "\t\tmembers[i].Replica = raft.ReplicaID(len(assigned) + 1)\n"),
			killers: drawn(controller, "TestPlansInAnyHistory"),
		},
		{
			name:    "learners-not-waited-for",
			breaks:  "a replica votes when it has the log",
			changes: in("shardctrler/plan_replicas.go", "return !slices.ContainsFunc(learners, func(m ObservedMember) bool { return m.Lag < 0 || m.Lag > learnerLagMax })", "return len(learners) > 0"),
			killers: by(controller, "TestConfigGroupGrowsLearnersFirst"),
		},
		{
			name:    "replaced-in-a-large-failure",
			breaks:  "when many nodes are down at once nothing is replaced",
			changes: in("shardctrler/plan_replicas.go", "return down > max(1, all/3)", "return down > all"),
			killers: by(controller, "TestNothingIsReplacedInALargeFailure"),
		},
	}
}
