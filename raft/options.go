package raft

import "fmt"

// Options are the timings and limits of a group; every replica of a group
// should have the same. Pre-vote and check-quorum are always on.
type Options struct {
	// HeartbeatTicks is how often a leader that has nothing else to say is
	// heard. Default 1.
	HeartbeatTicks int
	// ElectionTicks is the shortest election timeout; each is drawn anew from
	// [ElectionTicks, 2*ElectionTicks), longer after fruitless campaigns. At
	// least three heartbeats. Default 5.
	ElectionTicks int
	// QuorumTicks is how often a leader looks whether a quorum was heard since,
	// and resigns if not. At least ElectionTicks, the default: longer where an
	// answer may take longer than that.
	QuorumTicks int

	// MaxAppendBytes bounds the entries of one AppendEntries, one larger
	// entry excepted. Default 256 KiB.
	MaxAppendBytes int
	// MaxInflightMessages and MaxInflightBytes bound what is sent to one
	// follower and not yet acknowledged; at the limit nothing more is sent to
	// it. Defaults 64 and 4 MiB.
	MaxInflightMessages int
	MaxInflightBytes    int

	// MaxUncommittedBytes bounds what the leader takes in and has not yet
	// applied; at the limit Propose answers ErrUncommittedFull. One proposal
	// is always taken when nothing waits. Default 16 MiB.
	MaxUncommittedBytes int
	// MaxApplyBytes bounds Ready.Committed, one larger entry excepted.
	// Default 1 MiB.
	MaxApplyBytes int
	// MaxUnappliedBytes bounds what was handed out in Ready.Committed and not
	// reported with Applied; at the limit nothing more is handed out. Default
	// 8 MiB.
	MaxUnappliedBytes int
	// MaxPendingReads bounds the reads that wait for an answer; at the limit
	// ReadIndex answers ErrReadsFull. Default 10,000.
	MaxPendingReads int

	// LeaseReads lets the leader answer LeaseRead, and makes every replica
	// keep the promise that this rests on: having heard its leader, it grants
	// no vote for ElectionTicks, and none for as long after a start. Off, a
	// group elects faster after a known death. Turn it on only where the
	// driver's ticks follow a monotonic clock (see LeaseRead).
	LeaseReads bool
}

// withDefaults fills in what is zero.
func (o Options) withDefaults() Options {
	for _, d := range []struct {
		field *int
		value int
	}{
		{&o.HeartbeatTicks, 1},
		{&o.ElectionTicks, 5},
		{&o.MaxAppendBytes, 256 << 10},
		{&o.MaxInflightMessages, 64},
		{&o.MaxInflightBytes, 4 << 20},
		{&o.MaxUncommittedBytes, 16 << 20},
		{&o.MaxApplyBytes, 1 << 20},
		{&o.MaxUnappliedBytes, 8 << 20},
		{&o.MaxPendingReads, 10_000},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if o.QuorumTicks == 0 {
		o.QuorumTicks = o.ElectionTicks
	}
	return o
}

// validate says what contradicts itself.
func (o Options) validate() error {
	for _, f := range []struct {
		name  string
		value int
	}{
		{"HeartbeatTicks", o.HeartbeatTicks},
		{"MaxAppendBytes", o.MaxAppendBytes},
		{"MaxInflightMessages", o.MaxInflightMessages},
		{"MaxInflightBytes", o.MaxInflightBytes},
		{"MaxUncommittedBytes", o.MaxUncommittedBytes},
		{"MaxApplyBytes", o.MaxApplyBytes},
		{"MaxUnappliedBytes", o.MaxUnappliedBytes},
		{"MaxPendingReads", o.MaxPendingReads},
	} {
		if f.value <= 0 {
			return fmt.Errorf("raft: option %s is %d, must be positive", f.name, f.value)
		}
	}
	if o.ElectionTicks < 3*o.HeartbeatTicks {
		return fmt.Errorf("raft: option ElectionTicks is %d, must be at least three times HeartbeatTicks (%d): a lost heartbeat is not a dead leader",
			o.ElectionTicks, o.HeartbeatTicks)
	}
	if o.QuorumTicks < o.ElectionTicks {
		return fmt.Errorf("raft: option QuorumTicks is %d, must be at least ElectionTicks (%d)", o.QuorumTicks, o.ElectionTicks)
	}
	return nil
}
