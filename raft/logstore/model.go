package logstore

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/google/btree"

	"github.com/flotilla-kv/flotilla/raft"
)

// Model is a log in memory whose durability is in the caller's hands: what is
// appended waits in a queue, and the caller says how much of it becomes durable
// (Sync) and when the machine crashes (Crash). It outlives the ModelStores
// opened on it, as a disk does. Nothing runs by itself.
type Model struct {
	mu       sync.Mutex // guards all below
	volatile modelState // what readers see: all that was queued
	durable  modelState // what a crash leaves
	queue    []modelRequest
	cut      bool // the next Open finds the log cut
	opened   bool
	crashes  uint64 // stores from before the last one have no effect
}

// modelRequest is a change that is visible and not durable.
type modelRequest struct {
	state modelState // with it, and all before it
	done  func(error)
	err   error
}

// modelState is one version of everything. Its trees share what they have in
// common with other versions, and its maps are never changed.
type modelState struct {
	entries     *btree.BTreeG[modelEntry]
	groups      map[raft.ReplicaKey]modelGroup
	highest     map[raft.GroupID]raft.ReplicaID
	identity    Identity
	hasIdentity bool
	lost        bool
}

type modelEntry struct {
	id    raft.ReplicaKey
	entry raft.Entry
}

type modelGroup struct {
	record Record
	hard   raft.HardState
	begin  beginning
	last   raft.Index
}

const modelDegree = 8 // small, so that tests split nodes too

// NewModel makes an empty one.
func NewModel() *Model {
	less := func(a, b modelEntry) bool {
		return cmp.Or(cmp.Compare(a.id.Group, b.id.Group), cmp.Compare(a.id.Replica, b.id.Replica), cmp.Compare(a.entry.Index, b.entry.Index)) < 0
	}
	state := modelState{
		entries: btree.NewG(modelDegree, less),
		groups:  map[raft.ReplicaKey]modelGroup{},
		highest: map[raft.GroupID]raft.ReplicaID{},
	}
	return &Model{volatile: state, durable: state}
}

// Queued counts the requests that are not durable.
func (m *Model) Queued() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.queue)
}

// Known are the replicas that the disk would give back after a crash now,
// ascending.
func (m *Model) Known() []raft.ReplicaKey {
	m.mu.Lock()
	defer m.mu.Unlock()
	keys := make([]raft.ReplicaKey, 0, len(m.durable.groups))
	for id := range m.durable.groups {
		keys = append(keys, id)
	}
	slices.SortFunc(keys, func(a, b raft.ReplicaKey) int {
		return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Replica, b.Replica))
	})
	return keys
}

// Durable is what the disk would give back of a replica after a crash now: its
// term and vote, and the end of its log.
func (m *Model) Durable(id raft.ReplicaKey) (raft.HardState, raft.Index) {
	m.mu.Lock()
	defer m.mu.Unlock()
	g := m.durable.groups[id]
	return g.hard, g.last
}

// Sync makes the oldest n queued requests durable and then calls their dones,
// in order.
func (m *Model) Sync(n int) {
	m.mu.Lock()
	n = min(n, len(m.queue))
	synced := m.queue[:n:n]
	m.queue = m.queue[n:]
	if n > 0 {
		m.durable = synced[n-1].state
	}
	m.mu.Unlock()
	for _, r := range synced {
		r.done(r.err)
	}
}

// SyncAll is Sync of what is queued now.
func (m *Model) SyncAll() { m.Sync(m.Queued()) }

// Fail ends the queued requests with an error, as a disk that is full or
// broken does. What is queued from then on waits again: the store's owner stops.
func (m *Model) Fail(err error) {
	m.mu.Lock()
	failed := m.queue
	m.queue = nil
	m.mu.Unlock()
	for _, r := range failed {
		r.done(err)
	}
}

// CrashKeep is Crash, but the oldest n queued requests had reached the disk
// though nobody was told.
func (m *Model) CrashKeep(n int) {
	m.mu.Lock()
	if n = min(n, len(m.queue)); n > 0 {
		m.durable = m.queue[n-1].state
	}
	m.mu.Unlock()
	m.Crash()
}

// Crash loses what is not durable; its dones are never called.
func (m *Model) Crash() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.queue = nil
	m.volatile = m.durable
	m.opened = false
	m.crashes++
}

// CrashCut is a crash whose disk lost, beside that, the last entries of id
// that it had promised to keep: the next Open finds a cut log. Terms, votes and
// replica records survive in their second copy.
func (m *Model) CrashCut(id raft.ReplicaKey, entries int) {
	m.Crash()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.durable = m.durable.edit(func(s *modelState) {
		g, ok := s.groups[id]
		if !ok {
			return
		}
		last := max(g.begin.index, g.last-min(g.last, raft.Index(entries)))
		s.truncate(id, &g, last+1)
		s.groups[id] = g
		for id, g := range s.groups {
			g.record.Suspect = true
			s.groups[id] = g
		}
	})
	m.volatile = m.durable
	m.cut = true
}

// CrashLost is CrashCut of nothing, whose disk lost the second copy too: the
// next Open finds the votes lost, for good.
func (m *Model) CrashLost() {
	m.CrashCut(raft.ReplicaKey{}, 0)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.durable = m.durable.edit(func(s *modelState) { s.lost = true })
	m.volatile = m.durable
}

// Open opens a store on the model; there may be one at a time, until Close or
// Crash.
func (m *Model) Open() (*ModelStore, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.opened {
		return nil, errors.New("log model is in use")
	}
	s := &ModelStore{model: m, crashes: m.crashes, cut: m.cut}
	m.opened, m.cut = true, false
	return s, nil
}

// edit makes a new version.
func (s modelState) edit(change func(*modelState)) modelState {
	next := s
	next.entries = s.entries.Clone()
	next.groups = make(map[raft.ReplicaKey]modelGroup, len(s.groups))
	for id, g := range s.groups {
		next.groups[id] = g
	}
	next.highest = make(map[raft.GroupID]raft.ReplicaID, len(s.highest))
	for id, replica := range s.highest {
		next.highest[id] = replica
	}
	change(&next)
	return next
}

// truncate forgets the entries of id from index on.
func (s *modelState) truncate(id raft.ReplicaKey, g *modelGroup, index raft.Index) {
	for ; g.last >= index; g.last-- {
		s.entries.Delete(modelEntry{id: id, entry: raft.Entry{Index: g.last}})
	}
}

// compact forgets the entries of id through b.index.
func (s *modelState) compact(id raft.ReplicaKey, g *modelGroup, b beginning) {
	for index := g.begin.index + 1; index <= min(b.index, g.last); index++ {
		s.entries.Delete(modelEntry{id: id, entry: raft.Entry{Index: index}})
	}
	g.begin = b
}

func (s *modelState) write(w Write) {
	g := s.groups[w.ID]
	if mark := w.Write.Reset; mark != nil {
		s.truncate(w.ID, &g, g.begin.index+1)
		g.begin, g.last = beginning{index: mark.Index, term: mark.Term, mark: mark}, mark.Index
	}
	if len(w.Write.Entries) > 0 {
		s.truncate(w.ID, &g, w.Write.Entries[0].Index)
	}
	for _, e := range w.Write.Entries {
		s.entries.ReplaceOrInsert(modelEntry{id: w.ID, entry: e})
		g.last = e.Index
	}
	if w.Write.HardState != nil {
		g.hard = *w.Write.HardState
	}
	s.groups[w.ID] = g
}

// check says whether w fits, as group.check does.
func (s *modelState) check(w Write) error {
	g, ok := s.groups[w.ID]
	if !ok {
		return fmt.Errorf("group %d replica %d: %w", w.ID.Group, w.ID.Replica, ErrNoReplica)
	}
	return (&group{id: w.ID, begin: g.begin, last: g.last}).check(w.Write)
}

// ModelStore has Store's methods on a Model. Requests that wait (Create and
// the like) are made durable at once, with all that is queued before them: a
// caller that blocks must not need another goroutine to go on. After a crash of
// the model a store opened before does nothing and answers nobody; what waits
// fails with ErrClosed.
type ModelStore struct {
	model   *Model
	crashes uint64 // of the model, when it was opened
	cut     bool
}

// dead says that the model has crashed since; its lock is held.
func (s *ModelStore) dead() bool { return s.crashes != s.model.crashes }

// request queues a change; if check fails it changes nothing.
func (s *ModelStore) request(check func(*modelState) error, change func(*modelState), done func(error)) {
	m := s.model
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.dead() {
		return
	}
	err := check(&m.volatile)
	if err == nil {
		m.volatile = m.volatile.edit(change)
	}
	m.queue = append(m.queue, modelRequest{state: m.volatile, done: done, err: err})
}

func (s *ModelStore) requestWait(check func(*modelState) error, change func(*modelState)) error {
	result := ErrClosed
	s.request(check, change, func(err error) { result = err })
	s.model.SyncAll()
	return result
}

func anyway(*modelState) error { return nil }

// Append is Store.Append; it never blocks.
func (s *ModelStore) Append(writes []Write, done func(error)) {
	s.request(func(state *modelState) error {
		for _, w := range writes {
			if err := state.check(w); err != nil {
				return err
			}
		}
		return nil
	}, func(state *modelState) {
		for _, w := range writes {
			state.write(w)
		}
	}, done)
}

// Compact is Store.Compact. It is durable with the next Sync of anything.
func (s *ModelStore) Compact(id raft.ReplicaKey, through raft.Index) {
	r := s.Reader(id)
	through = min(through, r.LastIndex())
	if through < r.FirstIndex() {
		return
	}
	term, err := r.Term(through)
	if err != nil {
		return
	}
	m := s.model
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.dead() {
		return
	}
	m.volatile = m.volatile.edit(func(state *modelState) {
		g, ok := state.groups[id]
		if !ok || through <= g.begin.index || through > g.last {
			return
		}
		state.compact(id, &g, beginning{index: through, term: term})
		state.groups[id] = g
	})
}

// Create is Store.Create.
func (s *ModelStore) Create(id raft.ReplicaKey, first raft.Membership) error {
	exists := false
	return s.requestWait(func(state *modelState) error {
		if _, exists = state.groups[id]; exists {
			return nil
		}
		if state.lost {
			return fmt.Errorf("create replica %d of group %d: %w", id.Replica, id.Group, ErrVotesLost)
		}
		if highest := state.highest[id.Group]; id.Replica <= highest {
			return fmt.Errorf("create replica %d of group %d, which had %d: %w", id.Replica, id.Group, highest, ErrOldReplica)
		}
		return nil
	}, func(state *modelState) {
		if !exists {
			state.groups[id] = modelGroup{record: Record{ID: id, First: first}}
			state.highest[id.Group] = id.Replica
		}
	})
}

// Remove is Store.Remove.
func (s *ModelStore) Remove(id raft.ReplicaKey) error {
	return s.requestWait(anyway, func(state *modelState) {
		if g, ok := state.groups[id]; ok {
			state.truncate(id, &g, g.begin.index+1)
			delete(state.groups, id)
		}
	})
}

// SetIdentity is Store.SetIdentity.
func (s *ModelStore) SetIdentity(identity Identity) error {
	return s.requestWait(anyway, func(state *modelState) { state.identity, state.hasIdentity = identity, true })
}

// MarkSuspect is Store.MarkSuspect.
func (s *ModelStore) MarkSuspect() error {
	return s.requestWait(anyway, func(state *modelState) {
		for id, g := range state.groups {
			g.record.Suspect = true
			state.groups[id] = g
		}
	})
}

// ClearSuspect is Store.ClearSuspect.
func (s *ModelStore) ClearSuspect(id raft.ReplicaKey) error {
	return s.requestWait(func(state *modelState) error {
		if _, ok := state.groups[id]; !ok {
			return fmt.Errorf("group %d replica %d: %w", id.Group, id.Replica, ErrNoReplica)
		}
		return nil
	}, func(state *modelState) {
		g := state.groups[id]
		g.record.Suspect = false
		state.groups[id] = g
	})
}

func (s *ModelStore) now() modelState {
	s.model.mu.Lock()
	defer s.model.mu.Unlock()
	return s.model.volatile
}

// Identity is Store.Identity.
func (s *ModelStore) Identity() (Identity, bool) {
	state := s.now()
	return state.identity, state.hasIdentity
}

// Replicas is Store.Replicas.
func (s *ModelStore) Replicas() []Record {
	var records []Record
	state := s.now()
	for _, g := range state.groups {
		g.record.Lost = state.lost
		records = append(records, g.record)
	}
	slices.SortFunc(records, compareRecords)
	return records
}

// Load is Store.Load.
func (s *ModelStore) Load(id raft.ReplicaKey) (State, error) {
	state := s.now()
	if state.lost {
		return State{}, fmt.Errorf("group %d replica %d: %w", id.Group, id.Replica, ErrVotesLost)
	}
	g, ok := state.groups[id]
	if !ok {
		return State{}, fmt.Errorf("group %d replica %d: %w", id.Group, id.Replica, ErrNoReplica)
	}
	loaded := State{
		HardState: g.hard,
		First:     g.begin.index + 1, Last: g.last, FirstTerm: g.begin.term,
		SnapshotMark: g.begin.mark, Suspect: g.record.Suspect,
	}
	for _, e := range state.read(id, g.begin.index+1, g.last+1) {
		if e.Kind != raft.EntryMembership {
			continue
		}
		membership, err := raft.DecodeMembership(e.Data)
		if err != nil {
			return State{}, fmt.Errorf("membership entry %d: %w", e.Index, err)
		}
		loaded.Memberships = append(loaded.Memberships, raft.IndexedMembership{Index: e.Index, Term: e.Term, Membership: membership})
	}
	return loaded, nil
}

func (s *modelState) read(id raft.ReplicaKey, lo, hi raft.Index) (entries []raft.Entry) {
	s.entries.AscendRange(
		modelEntry{id: id, entry: raft.Entry{Index: lo}}, modelEntry{id: id, entry: raft.Entry{Index: hi}},
		func(e modelEntry) bool {
			entries = append(entries, e.entry)
			return true
		})
	return entries
}

// Reader is Store.Reader.
func (s *ModelStore) Reader(id raft.ReplicaKey) raft.LogReader { return modelReader{store: s, id: id} }

// Size is Store.Size.
func (s *ModelStore) Size(id raft.ReplicaKey) int64 {
	state := s.now()
	g := state.groups[id]
	var bytes int64
	for _, e := range state.read(id, g.begin.index+1, g.last+1) {
		bytes += int64(entryBytes(e))
	}
	return bytes
}

// Sizes is Store.Sizes.
func (s *ModelStore) Sizes() map[raft.ReplicaKey]int64 {
	sizes := map[raft.ReplicaKey]int64{}
	for id := range s.now().groups {
		sizes[id] = s.Size(id)
	}
	return sizes
}

// Lost is Store.Lost.
func (s *ModelStore) Lost() bool { return s.now().lost }

// Cut is Store.Cut.
func (s *ModelStore) Cut() bool { return s.cut }

// Close makes everything durable and closes the store.
func (s *ModelStore) Close() error {
	s.model.SyncAll()
	s.model.mu.Lock()
	defer s.model.mu.Unlock()
	if !s.dead() {
		s.model.durable = s.model.volatile
		s.model.opened = false
	}
	return nil
}

type modelReader struct {
	store *ModelStore
	id    raft.ReplicaKey
}

func (r modelReader) FirstIndex() raft.Index { return r.store.now().groups[r.id].begin.index + 1 }

func (r modelReader) LastIndex() raft.Index { return r.store.now().groups[r.id].last }

func (r modelReader) Term(i raft.Index) (raft.Term, error) {
	if begin := r.store.now().groups[r.id].begin; i == begin.index {
		return begin.term, nil
	}
	entries, err := r.Entries(i, i+1, 0)
	if err != nil {
		return 0, err
	}
	return entries[0].Term, nil
}

func (r modelReader) Entries(lo, hi raft.Index, maxBytes int) ([]raft.Entry, error) {
	state := r.store.now()
	g := state.groups[r.id]
	switch {
	case lo <= g.begin.index:
		return nil, raft.ErrCompacted
	case hi <= lo || hi > g.last+1:
		return nil, raft.ErrUnavailable
	}
	entries := state.read(r.id, lo, hi)
	return entries[:fit(entries, maxBytes)], nil
}
