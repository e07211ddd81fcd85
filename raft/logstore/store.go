package logstore

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/flotilla-kv/flotilla/internal/disk"
	"github.com/flotilla-kv/flotilla/raft"
)

// Store is the log of all groups of a node. All methods may be called from any
// goroutine.
type Store struct {
	options Options
	log     *slog.Logger
	stop    *disk.Stop
	claim   *disk.Claim
	cut     bool
	lost    bool

	queue    *queue
	evidence *evidenceKeeper

	// The writer's, and before it starts Open's.
	files   *segments
	seq     uint64 // the last number of a frame that was ever used
	logged  uint64 // that of the last frame in the log
	fresh   int64  // where the active segment's frames begin, behind the checkpoint
	frame   frame
	mover   mover
	tails   tailBudget
	highest map[raft.GroupID]raft.ReplicaID
	votes   *votesFile

	pending  pendingTurn
	written  chan struct{} // closed: the writer has ended
	closing  chan struct{} // closed: the fail loop may end
	failDone chan struct{}
	closed   sync.Once
	closeErr error

	mu          sync.RWMutex // guards all below
	groups      map[raft.ReplicaKey]*group
	identity    Identity
	hasIdentity bool
}

// Write is one group's part of a worker's turn.
type Write struct {
	ID    raft.ReplicaKey
	Write raft.Write
}

// State is what a replica's log holds when it starts.
type State struct {
	HardState   raft.HardState
	First, Last raft.Index // First is 1 behind what was compacted; Last is First-1 if empty
	FirstTerm   raft.Term  // of the entry at First-1
	// SnapshotMark is set if the log begins behind an installed snapshot and
	// has not been compacted since.
	SnapshotMark *raft.SnapshotMark
	Memberships  []raft.IndexedMembership // the membership entries in the log, ascending
	Suspect      bool                     // the log was cut and ClearSuspect was not called since
}

// Open opens the store in options.Dir, creating it if it is not there. Errors:
// disk.ErrInUse, disk.ErrForeign, *disk.FormatError, *DamagedError, ErrLogLost.
func Open(options Options) (*Store, error) {
	options, err := options.withDefaults()
	if err != nil {
		return nil, err
	}
	claim, err := disk.Take(options.FS, options.Dir, "logstore", formatVersion)
	if err != nil {
		return nil, err
	}
	s, err := open(options, claim)
	if err != nil {
		return nil, errors.Join(err, claim.Close())
	}
	go s.files.spare.loop()
	go s.writeLoop()
	go s.failLoop()
	go s.evidence.loop()
	return s, nil
}

func open(options Options, claim *disk.Claim) (*Store, error) {
	s := &Store{
		options: options,
		log:     options.Logger.With("store", "log"),
		claim:   claim,
		queue:   newQueue(options.QueueBytes),
		tails:   tailBudget{limit: options.TailBytes},
		highest: map[raft.GroupID]raft.ReplicaID{},
		groups:  map[raft.ReplicaKey]*group{},

		written:  make(chan struct{}),
		closing:  make(chan struct{}),
		failDone: make(chan struct{}),
	}
	s.stop = disk.NewStop(s.log, options.OnFatal)
	var err error
	if s.files, err = openSegments(options.FS, options.FS.PathJoin(options.Dir, segmentsDir), options.SegmentBytes); err != nil {
		return nil, &DamagedError{Dir: options.Dir, Err: err}
	}
	if err := s.recover(); err != nil {
		return nil, errors.Join(err, s.files.close())
	}
	return s, nil
}

// Append queues writes, which name each replica at most once, and calls done
// when all of them are durable, or with the reason why they never will be. It
// blocks while too much is queued. done is called once, from one of the
// store's goroutines in the order of the queue (or from this call, if the
// store has ended); it must neither block nor call back into the store, except
// for its readers. Entries and their Data belong to the store from now on.
func (s *Store) Append(writes []Write, done func(error)) {
	r := request{writes: writes, done: done}
	for _, w := range writes {
		r.bytes += entryOverheadBytes
		for _, e := range w.Write.Entries {
			r.bytes += entryBytes(e)
		}
	}
	if err := s.queue.push(r); err != nil {
		done(err)
	}
}

// Load tells what the log of id holds. It is for starting a replica: writes of
// id that are under way may be in it or not. Of a store whose votes are lost it
// tells nothing (ErrVotesLost).
func (s *Store) Load(id raft.ReplicaKey) (State, error) {
	if s.lost {
		return State{}, fmt.Errorf("group %d replica %d: %w", id.Group, id.Replica, ErrVotesLost)
	}
	g, ok := s.group(id)
	if !ok {
		return State{}, fmt.Errorf("group %d replica %d: %w", id.Group, id.Replica, ErrNoReplica)
	}
	memberships, err := s.Reader(id).(reader).memberships()
	if err != nil {
		return State{}, err
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	// What was compacted or truncated meanwhile does not count.
	memberships = slices.DeleteFunc(memberships, func(m raft.IndexedMembership) bool {
		return !slices.Contains(g.memberships, m.Index)
	})
	return State{
		HardState: g.hard,
		First:     g.begin.index + 1, Last: g.last, FirstTerm: g.begin.term,
		SnapshotMark: g.begin.mark,
		Memberships:  memberships,
		Suspect:      g.record.Suspect,
	}, nil
}

// Reader reads the log of id. It stays valid for as long as the store; of a
// replica that does not exist it knows an empty log.
func (s *Store) Reader(id raft.ReplicaKey) raft.LogReader {
	g, ok := s.group(id)
	if !ok {
		g = &group{id: id}
	}
	return reader{store: s, g: g}
}

// Compact forgets the entries of id through the given index, some time later
// and not synced: after a crash they may be back. Never past what the state
// machine has durably applied; past the end of the log it goes to the end.
func (s *Store) Compact(id raft.ReplicaKey, through raft.Index) {
	r := s.Reader(id)
	through = min(through, r.LastIndex())
	if through < r.FirstIndex() {
		return
	}
	term, err := r.Term(through)
	if errors.Is(err, raft.ErrCompacted) || errors.Is(err, raft.ErrUnavailable) {
		return
	}
	if err != nil {
		s.stop.Fail(fmt.Errorf("compact log: %w", err))
		return
	}
	s.queue.pushCompact(id, beginning{index: through, term: term})
}

// Size is about how many bytes the log of id keeps.
func (s *Store) Size(id raft.ReplicaKey) int64 {
	g, ok := s.group(id)
	if !ok {
		return 0
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.sizes.total
}

// Sizes is the Size of every replica.
func (s *Store) Sizes() map[raft.ReplicaKey]int64 {
	sizes := map[raft.ReplicaKey]int64{}
	for _, g := range s.all() {
		g.mu.RLock()
		sizes[g.id] = g.sizes.total
		g.mu.RUnlock()
	}
	return sizes
}

// Cut says that the log was found cut by this Open: all replicas are suspect.
func (s *Store) Cut() bool { return s.cut }

// Lost says that the log was cut, by this Open or an earlier one, while the
// second copy of the votes was damaged: what the replicas have voted and
// acknowledged is not known, nor which there were. None of them runs again, and
// none is created.
func (s *Store) Lost() bool { return s.lost }

// Close writes down what is queued, and how far the log is, and closes the
// store. After a failed disk it returns the failure and leaves the rest to the
// end of the process.
func (s *Store) Close() error {
	s.closed.Do(func() { s.closeErr = s.close() })
	return s.closeErr
}

func (s *Store) close() error {
	s.queue.end(ErrClosed)
	select {
	case <-s.written:
	case <-s.stop.Failed():
	}
	close(s.closing)
	<-s.failDone
	if err := s.stop.Err(); err != nil {
		close(s.files.spare.stop)
		return errors.Join(err, s.evidence.close())
	}
	if err := errors.Join(s.files.spare.close(), s.evidence.close()); err != nil {
		return err
	}
	return errors.Join(s.votes.close(), s.files.close(), s.claim.Close())
}

func (s *Store) group(id raft.ReplicaKey) (*group, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	g, ok := s.groups[id]
	return g, ok
}

// all lists the groups in no order.
func (s *Store) all() []*group {
	s.mu.RLock()
	defer s.mu.RUnlock()
	groups := make([]*group, 0, len(s.groups))
	for _, g := range s.groups {
		groups = append(groups, g)
	}
	return groups
}
