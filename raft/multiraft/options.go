package multiraft

import (
	"errors"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
)

// Options of a Host. Self, Log, States and Transport are required.
type Options struct {
	Self      raft.NodeID
	Log       Log
	States    States
	Transport Transport
	Logger    *slog.Logger     // nil: slog.Default
	Clock     func() time.Time // nil: time.Now. It drives ticks and leases, and never runs backwards
	Wall      func() int64     // nil: Clock's wall part, unix ms. It stamps entries, and may jump
	Rand      *rand.Rand       // nil: seeded by the runtime. A simulator gives its own; the host is its only user
	Manual    bool             // no goroutines: the caller drives with RunOnce
	// Go runs what blocks while a snapshot is on its way. nil: a goroutine, or,
	// with Manual, RunOnce itself. The function ends when Close is called.
	Go func(func())

	Workers  int // 0: number of cores
	Appliers int // 0: number of cores, at least 2

	// OnLeader is told when a group's leader, as known here, changes. It is
	// called by a worker and must not block nor call Host methods that wait.
	OnLeader func(LeaderChange)
	// OnRemoved is told when a replica's own log has removed it from its group.
	// As OnLeader; the owner then calls Remove, from a goroutine of its own.
	OnRemoved func(raft.ReplicaKey)
	// OnFatal is told once, in a goroutine of its own unless Manual, why the host
	// stopped by itself.
	OnFatal func(error)
	// Observe sees durations; its functions must not block.
	Observe Observers

	Limits Limits
	Timing Timing
}

// Observers are called with durations; nil ones are not.
type Observers struct {
	Commit func(time.Duration) // from the proposal of an entry to its results, once an entry
	Apply  func(time.Duration) // one batch of the state store
	Turn   func(time.Duration) // one turn of a worker
}

// Limits bound what the host holds. Zero fields take the default named behind
// them.
type Limits struct {
	EntryBytes       int   // proposals joined into one entry; 256 KiB
	AppendBytes      int   // entries of one AppendEntries, one larger entry aside; 256 KiB
	CommandBytesMax  int   // one command; 12 MiB. Beyond: ErrTooLarge
	GroupBytes       int64 // proposals of a group not yet answered; 32 MiB. Beyond: ErrBusy
	NodeBytes        int64 // the same for all groups of the node; 256 MiB
	ReadsMax         int64 // reads not yet answered, all groups; 100,000. Beyond: ErrBusy
	InboxBytes       int64 // messages a worker has not stepped yet; 64 MiB. Beyond: dropped
	LogQueueBytes    int64 // writes not yet durable, all workers; 32 MiB, half of what the log store queues. Beyond: no new entries
	UnappliedBytes   int   // entries a core hands out ahead of apply; 8 MiB
	ApplyBatchBytes  int   // entries in one batch of the state store; 1 MiB
	EffectBytes      int   // their effects; 64 MiB, small entries can have large ones
	CampaignsMax     int   // campaigns of a worker at once, when it starts them itself; 64
	SnapshotSendsMax int   // snapshots streamed at once; 2
	LogKeepBytes     int64 // kept log of all groups; 2 GiB
	// FollowerKeepBytes is what a follower keeps of its log behind what is
	// flushed even if the leader needs none of it, for what the leader said is
	// a little old; 4 MiB.
	FollowerKeepBytes int64
}

func (l Limits) withDefaults() Limits {
	setDefault(&l.EntryBytes, 256<<10)
	setDefault(&l.AppendBytes, 256<<10)
	setDefault(&l.CommandBytesMax, 12<<20)
	setDefault(&l.GroupBytes, 32<<20)
	setDefault(&l.NodeBytes, 256<<20)
	setDefault(&l.ReadsMax, 100_000)
	setDefault(&l.InboxBytes, 64<<20)
	setDefault(&l.LogQueueBytes, 32<<20)
	setDefault(&l.UnappliedBytes, 8<<20)
	setDefault(&l.ApplyBatchBytes, 1<<20)
	setDefault(&l.EffectBytes, 64<<20)
	setDefault(&l.CampaignsMax, 64)
	setDefault(&l.SnapshotSendsMax, 2)
	setDefault(&l.LogKeepBytes, 2<<30)
	setDefault(&l.FollowerKeepBytes, 4<<20)
	return l
}

// Timing of the host. Zero fields take the default named behind them.
type Timing struct {
	Tick            time.Duration // 50 ms
	Heartbeat       time.Duration // 100 ms; rounded to ticks
	Election        time.Duration // 500 ms at the least, twice that at most
	SleepAfter      time.Duration // without work; 1 s
	ProposalTimeout time.Duration // a proposal that waits longer ends with ErrUnknown; 10 s
	ReadTimeout     time.Duration // a read that waits longer ends with ErrNoQuorum; 5 s
	FlushAfter      time.Duration // age of the oldest unflushed apply; 10 s
	TrimEvery       time.Duration // how often the kept log is looked at; 1 s
}

func (t Timing) withDefaults() Timing {
	setDefault(&t.Tick, 50*time.Millisecond)
	setDefault(&t.Heartbeat, 100*time.Millisecond)
	setDefault(&t.Election, 500*time.Millisecond)
	setDefault(&t.SleepAfter, time.Second)
	setDefault(&t.ProposalTimeout, 10*time.Second)
	setDefault(&t.ReadTimeout, 5*time.Second)
	setDefault(&t.FlushAfter, 10*time.Second)
	setDefault(&t.TrimEvery, time.Second)
	return t
}

// ticks rounds d to ticks, at least one.
func (t Timing) ticks(d time.Duration) int { return max(1, int((d+t.Tick/2)/t.Tick)) }

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (o Options) withDefaults() (Options, error) {
	if o.Self == 0 || o.Log == nil || o.States == nil || o.Transport == nil {
		return o, errors.New("multiraft: Self, Log, States and Transport are required")
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Go == nil && !o.Manual {
		o.Go = func(f func()) { go f() }
	}
	if o.Wall == nil {
		clock := o.Clock
		o.Wall = func() int64 { return clock().UnixMilli() }
	}
	if o.Rand == nil {
		o.Rand = rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	}
	setDefault(&o.Workers, runtime.NumCPU())
	setDefault(&o.Appliers, max(2, runtime.NumCPU()))
	o.Limits = o.Limits.withDefaults()
	o.Timing = o.Timing.withDefaults()
	if o.Timing.Election <= o.Timing.Heartbeat || o.Timing.Heartbeat < o.Timing.Tick {
		return o, errors.New("multiraft: the election timeout must exceed the heartbeat, and that be at least a tick")
	}
	return o, nil
}
