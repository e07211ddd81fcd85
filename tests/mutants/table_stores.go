package main

// storeMutants are bugs of what lies on disk.
func storeMutants() []*mutant {
	const logstore, statestore = "./raft/logstore", "./raft/statestore"
	return []*mutant{
		{
			name:    "log-answers-before-the-sync",
			breaks:  "a write to the log is answered once it is synced",
			changes: in("raft/logstore/writer.go", "\tif err := s.files.active().sync(); err != nil {\n\t\treturn err\n\t}\n\tif len(t.votes)", "\tif len(t.votes)"),
			killers: drawn(logstore, "TestModelAgreesWithPebble"),
		},
		{
			name:    "last-entry-of-a-write-dropped",
			breaks:  "all entries of a write are durable with it, the last one too",
			changes: in("raft/logstore/writer.go", "s.frame.entries(recordEntries, g.id, entries)", "s.frame.entries(recordEntries, g.id, entries[:max(1, len(entries)-1)])"),
			killers: by(logstore, "TestWhatWasAppendedIsReadBackAfterReopen"),
		},
		{
			name:    "evidence-before-the-sync",
			breaks:  "the evidence of what is durable is never ahead of the sync that covers it",
			changes: in("raft/logstore/writer.go", "\tif err := s.files.active().sync(); err != nil {\n\t\treturn err\n\t}\n\tif len(t.votes)", "\ts.evidence.note(evidence{seq: t.seq, votes: s.votes.state.number})\n\tif err := s.files.active().sync(); err != nil {\n\t\treturn err\n\t}\n\tif len(t.votes)"),
			killers: by(logstore, "TestEvidenceIsNeverAheadOfTheSync"),
		},
		{
			name:    "no-second-copy-of-votes",
			breaks:  "terms and votes are durable in two places before they are answered",
			changes: in("raft/logstore/writer.go", "if len(t.votes) > 0 {", "if false {"),
			killers: by(logstore, "TestCutLogIsNoticed"),
		},
		{
			name:    "replica-id-used-again",
			breaks:  "a ReplicaID is never used again on a node",
			changes: in("raft/logstore/replica.go", "id.Replica <= highest {", "id.Replica < highest {"),
			killers: by(logstore, "TestReplicaIDIsNeverReused"),
		},
		{
			name:   "log-reset-before-the-ingest-is-flushed",
			breaks: "an installed snapshot is durable before the log is reset to it",
			changes: []change{
				{"raft/statestore/pebble.go", "po.Experimental.DisableIngestAsFlushable = func() bool { return true }", ""},
				{"raft/statestore/pebble.go", "if err == nil && !ok {", "if err == nil && !ok && false {"},
				{"raft/statestore/install.go", "in.err = in.verify()", "in.err = nil"},
			},
			killers: by(statestore, "TestPowerCutDuringInstall"),
		},
		{
			name:    "truncated-stream-installed",
			breaks:  "a snapshot stream that was cut short is not installed",
			changes: in("raft/statestore/install.go", "if in.err == nil && !in.stream.ended {", "if false {"),
			killers: by(statestore, "TestBadStreamsAreRefusedAndChangeNothing"),
		},
	}
}
