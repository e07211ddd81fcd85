package multiraft

import (
	"sync/atomic"

	"github.com/flotilla-kv/flotilla/raft"
)

// Stats are the host's counters since its start, and what it holds now.
type Stats struct {
	Turns            uint64 // of all workers
	Appends          uint64 // writes handed to the log store, each of one turn
	EntriesProposed  uint64
	CommandsProposed uint64
	EntriesApplied   uint64
	Busy             uint64 // refused for load
	LeaderChanges    uint64 // as seen by the replicas here
	Campaigns        uint64 // begun by the host, not by a core's timer

	MessagesDropped uint64 // no room, or no address
	MessagesRefused uint64 // by a core
	UnknownGroup    uint64 // for a group that is not here

	SnapshotsSent      uint64
	SnapshotsFailed    uint64
	SnapshotsInstalled uint64
	Flushes            uint64 // of the state store, begun by the host
	LogCuts            uint64

	Groups        int
	Awake         int
	Leaders       int
	InFlightBytes int64 // admitted and not yet answered
	ReadsWaiting  int64
	ApplyLag      uint64 // entries committed and not yet applied, of all groups
}

// counters are the live Stats.
type counters struct {
	turns, appends                                          atomic.Uint64
	entriesProposed, commandsProposed, entriesApplied, busy atomic.Uint64
	leaderChanges, campaigns                                atomic.Uint64
	messagesDropped, messagesRefused, unknownGroup          atomic.Uint64
	snapshotsSent, snapshotsFailed, snapshotsInstalled      atomic.Uint64
	flushes, logCuts                                        atomic.Uint64
}

// Stats asks the workers: not to be called from one of the host's callbacks.
func (h *Host) Stats() Stats {
	c := &h.stats
	s := Stats{
		Turns: c.turns.Load(), Appends: c.appends.Load(),
		EntriesProposed: c.entriesProposed.Load(), CommandsProposed: c.commandsProposed.Load(),
		EntriesApplied: c.entriesApplied.Load(), Busy: c.busy.Load(),
		LeaderChanges: c.leaderChanges.Load(), Campaigns: c.campaigns.Load(),
		MessagesDropped: c.messagesDropped.Load(), MessagesRefused: c.messagesRefused.Load(), UnknownGroup: c.unknownGroup.Load(),
		SnapshotsSent: c.snapshotsSent.Load(), SnapshotsFailed: c.snapshotsFailed.Load(), SnapshotsInstalled: c.snapshotsInstalled.Load(),
		Flushes: c.flushes.Load(), LogCuts: c.logCuts.Load(),
		InFlightBytes: h.inFlight.Load(), ReadsWaiting: h.reads.Load(),
	}
	for _, w := range h.workers {
		w.do(func() { w.addStats(&s) })
	}
	return s
}

func (w *worker) addStats(s *Stats) {
	s.Groups += len(w.groups)
	s.Awake += len(w.awake)
	for _, r := range w.groups {
		if r.view.Role == raft.Leader {
			s.Leaders++
		}
		if commit, applied := r.core.CommitIndex(), r.apply.appliedIndex(); commit > applied {
			s.ApplyLag += uint64(commit - applied)
		}
	}
}
