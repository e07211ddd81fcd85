package main

// keyMutants are bugs of keys, sessions and the client.
func keyMutants() []*mutant {
	const shardkv, client, routing = "./shardkv", "./client", "./client/routing"
	return []*mutant{
		{
			name:    "retry-applied-anew",
			breaks:  "a write takes effect once however often it is retried",
			changes: in("shardkv/machine.go", "if k, known := s.find(n.seq); known {", "if k, known := s.find(n.seq); known && n.seq == 0 {"),
			killers: by(shardkv, "TestARetryIsAnsweredNotApplied"),
		},
		{
			name:    "session-evicted-silently",
			breaks:  "a full table answers new sessions busy; nothing is evicted",
			changes: in("shardkv/machine.go", "\t\treturn nil, refusal(flotillav1.Code_BUSY, why), nil\n", "\t\tif s != nil {\n\t\t\ttable.raise(s, s.answers()[0].seq+1)\n\t\t}\n"),
			killers: by(shardkv, "TestAFullTableSaysBusy"),
		},
		{
			name:    "ended-session-writes",
			breaks:  "a write under an id whose hour is over is answered expired, entry or not",
			changes: in("shardkv/machine.go", "\tcase id.endsAt() <= m.state.time:\n\t\treturn refusal", "\tcase false:\n\t\treturn refusal"),
			killers: by(shardkv, "TestAnEndedSessionNeverWrites"),
		},
		{
			name:    "refused-condition-not-recorded",
			breaks:  "every answer that depends on the state is recorded, a refused condition too",
			changes: in("shardkv/machine.go", "\treturn a, m.record(b, s, n, kept)\n", "\tif len(a.results) == 0 || a.results[0].status != statusConditionFailed {\n\t\treturn a, m.record(b, s, n, kept)\n\t}\n\treturn a, nil\n"),
			killers: by(shardkv, "TestARefusalThatDependsOnTheStateIsRecorded"),
		},
		{
			name:    "outcome-leaves-the-number-open",
			breaks:  "a number that Outcome calls not applied is closed for good",
			changes: in("shardkv/machine.go", "\treturn a, m.record(b, s, n, a)\n", "\treturn a, nil\n"),
			killers: by(shardkv, "TestOutcomeClosesTheNumber"),
		},
		{
			name:    "session-table-lost-in-a-snapshot",
			breaks:  "a snapshot carries the table of answers",
			changes: in("shardkv/machine.go", "if sh == nil || sh.incarnation != p.inc {", "if sh == nil || sh.incarnation != p.inc || p.slot >= 0 {"),
			killers: by(shardkv, "TestARetryAfterASnapshotIsAnswered"),
		},
		{
			name:    "version-from-the-entry's-index",
			breaks:  "a key's version is its shard's count of writes, which moves with the shard",
			changes: in("shardkv/machine.go", "\tm.scratch.begin(len(e.Commands), e.Waited)\n", "\tfor _, sh := range m.shards {\n\t\tsh.writes = max(sh.writes, uint64(e.Index))\n\t}\n\tm.scratch.begin(len(e.Commands), e.Waited)\n"),
			killers: drawn(shardkv, "TestTheMachineIsTheSpec"),
		},
		{
			name:    "expiry-by-the-local-clock",
			breaks:  "a key expires when the group's time says so, which is the log's",
			changes: in("shardkv/machine.go", "\tm.state.time = max(m.state.time, e.Stamp)\n", "\tm.state.time = time.Now().UnixMilli()\n"),
			killers: by(shardkv, "TestKeysGoWhenGroupTimeSaysSo"),
		},
		{
			name:    "time-not-committed-first",
			breaks:  "a leader commits its time before it answers with a key whose expiry its clock has passed",
			changes: in("shardkv/read.go", "case soonest != 0 && r.exact && s.timeFirst(r, soonest):", "case soonest != 0 && r.exact && false:"),
			killers: by(shardkv, "TestALeaderCommitsItsTimeFirst"),
		},
		{
			name:    "read-of-a-shard-that-went",
			breaks:  "every read checks ownership in the state from which it answers",
			changes: in("shardkv/read.go", "case !record.state.serves():", "case false:"),
			killers: by(shardkv, "TestAReadChecksOwnershipInItsOwnState"),
		},
		{
			name:    "write-to-a-shard-that-went",
			breaks:  "ownership is checked when an entry is applied",
			changes: in("shardkv/machine.go", "\tcase !sh.state.serves():\n", "\tcase false:\n"),
			killers: by(shardkv, "TestAShardThatWentChangesNothing"),
		},
		{
			name:    "unknown-command-skipped",
			breaks:  "a committed command that is not understood stops the node",
			changes: in("shardkv/machine.go", "\t\tif err != nil {\n\t\t\treturn fmt.Errorf(\"command %d: %w\", i, err)\n\t\t}\n\t\ta, err := m.applyCommand(b, c)", "\t\tif err != nil {\n\t\t\tcontinue\n\t\t}\n\t\ta, err := m.applyCommand(b, c)"),
			killers: by(shardkv, "TestWhatIsNotUnderstoodStops"),
		},
		{
			name:    "unknown-taken-for-failed",
			breaks:  "a write that was sent and not answered may have happened, and its error says so",
			changes: in("client/routing/rules.go", "return rule{next: stepOtherMember, possible: true}\n\tcase CauseUnsent:", "return rule{next: stepOtherMember}\n\tcase CauseUnsent:"),
			killers: by(routing, "TestWhetherAWriteMayHaveHappened"),
		},
		{
			name:    "renumbered-after-a-possible-effect",
			breaks:  "a write that may have had an effect is never sent under another number",
			changes: in("client/routing/router.go", "!c.numbered || c.possible || c.renewals > renewalsMax", "!c.numbered || c.renewals > renewalsMax"),
			killers: by(routing, "TestAnExpiredSessionEndsAWriteThatMayHaveHappened"),
		},
		{
			name:    "event-before-commit",
			breaks:  "nothing is told before it is committed",
			changes: in("shardkv/machine.go", "func (m *Machine) Finish(b *statestore.Batch) {\n", "func (m *Machine) Finish(b *statestore.Batch) {\n\tm.history.publish(m.notes.index, nil)\n"),
			killers: by(shardkv, "TestNothingIsToldBeforeItIsCommitted"),
		},
		{
			name:    "expired-keys-not-counted",
			breaks:  "each change has a version of its own, the removal of an expired key too",
			changes: in("shardkv/machine.go", "\td.shard.writes++\n", ""),
			killers: drawn(shardkv, "TestEventsAreTheWrites"),
		},
		{
			name:    "lost-events-not-compacted",
			breaks:  "who has fallen behind what is kept is told so",
			changes: in("shardkv/history.go", "\tif lost {\n\t\th.sharpen()\n\t}\n", ""),
			killers: by(shardkv, "TestASlowWatchIsCompacted"),
		},
		{
			name:    "watch-goes-on-at-a-deposed-leader",
			breaks:  "a watch ends when its node leads no longer",
			changes: in("shardkv/watch.go", "\tif !w.leads() {\n\t\treturn false, true, w.send", "\tif false {\n\t\treturn false, true, w.send"),
			killers: by(shardkv, "TestAWatchEndsAtADeposedLeader"),
		},
		{
			name:    "watch-goes-on-without-a-quorum",
			breaks:  "a watch ends at a leader that is cut off, though it sleeps and does not notice",
			changes: in("shardkv/watch.go", " && w.server.options.HasQuorum(w.group.id)\n", "\n"),
			killers: by(shardkv, "TestAWatchEndsWhereTheQuorumIsLost"),
		},
		{
			name:    "resume-skips-one",
			breaks:  "a watch goes on behind the last event that was told",
			changes: in("client/watch.go", "sh.start, sh.version = flotillav1.WatchFrom_AFTER, at-1", "sh.start, sh.version = flotillav1.WatchFrom_AFTER, at"),
			killers: by(client, "TestACompactedShardIsReset"),
		},
		{
			name:    "gap-passed-by",
			breaks:  "what a server leaves out is noticed",
			changes: in("client/watchstream.go", " || p.GetAfter() > sh.version {", " {"),
			killers: by(client, "TestAGapEndsAWatch"),
		},
	}
}
