package statestore

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
)

// Limits of what waits in memory on its way to Pebble.
const (
	bufferBytesMax = 16 << 20 // of one replica's table, give or take its spread; there may be a second that is being drained
	bufferBytesMin = 64 << 10 // likewise, however many replicas there are
	drainsAtOnce   = 2
)

// buffer holds what was committed to one replica and is not in Pebble yet. A
// hash table takes a write for a tenth of what Pebble's memtable takes, and most
// of what is written is soon written over: the answers of sessions, the applied
// record, hot keys. When the table is full it is drained: what it holds goes into
// Pebble as one batch, in order, while commits go on in another table.
//
// The Raft log has it all, as it has what is in the memtable: neither survives
// a crash.
type buffer struct {
	set    *buffers
	prefix [prefixBytes]byte
	spread int           // percent of its room: replicas of a group need not be full at once
	order  sync.Mutex    // of commits, drains and replacements: one at a time
	seen   atomic.Uint64 // the last commit that a view may look at

	mu      sync.RWMutex // guards all below; who changes table holds order too
	table   *table       // what was committed last; nil: nothing
	older   *table       // what is being drained; nil: nothing
	drained chan struct{}
	commit  uint64 // the last one
}

// buffers are those of a store.
type buffers struct {
	db     *pebble.DB
	fail   func(error)   // told when a drain in the background fails
	budget int           // bytes that the tables which are not empty share; see room and owe
	used   atomic.Int32  // how many are not empty
	owed   atomic.Int64  // bytes committed since the last flush
	most   int64         // owed
	full   chan struct{} // that much is owed; capacity 1
	slots  chan struct{} // of drains in the background
	drains sync.WaitGroup
	spares spares
	closed atomic.Bool
	broken atomic.Bool // a drain failed

	mu  sync.RWMutex
	all map[[prefixBytes]byte]*buffer
}

func newBuffers(db *pebble.DB, bytes uint64, fail func(error)) *buffers {
	return &buffers{
		db: db, fail: fail, budget: int(bytes), most: int64(bytes),
		full: make(chan struct{}, 1), slots: make(chan struct{}, drainsAtOnce), spares: spares{room: int(bytes)},
		all: make(map[[prefixBytes]byte]*buffer),
	}
}

// of is the buffer of the replica whose prefix a key begins with.
func (s *buffers) of(key []byte) *buffer {
	id := [prefixBytes]byte(key)
	s.mu.RLock()
	b := s.all[id]
	s.mu.RUnlock()
	if b != nil {
		return b
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if b = s.all[id]; b == nil {
		b = &buffer{set: s, prefix: id, spread: 70 + int(hashKey(id[:])%61)}
		s.all[id] = b
	}
	return b
}

// forget drops the buffer of a replica that is gone; it has been drained.
func (s *buffers) forget(prefix []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, [prefixBytes]byte(prefix[:prefixBytes]))
}

// room is what one replica's may hold.
func (b *buffer) room() int {
	share := b.set.budget / max(1, int(b.set.used.Load()))
	return min(max(share, bufferBytesMin), bufferBytesMax) * b.spread / 100
}

// owe counts what was committed. The Raft log keeps it until it is flushed, so
// once it is as much as Options.MemTableBytes all is to be flushed, however little
// is left of it here. That bounds the tables together, too.
func (s *buffers) owe(bytes int) {
	if s.owed.Add(int64(bytes)) < s.most {
		return
	}
	select {
	case s.full <- struct{}{}:
	default:
	}
}

// drain empties all of them into Pebble: what was committed when it was called.
// Commits go on, but for those of a replica that is being drained already.
// Pebble takes them about in order, so that its files overlap little.
func (s *buffers) drain() error {
	s.mu.RLock()
	all := slices.Collect(maps.Values(s.all))
	s.mu.RUnlock()
	slices.SortFunc(all, func(a, b *buffer) int { return bytes.Compare(a.prefix[:], b.prefix[:]) })
	drains := make([]<-chan struct{}, 0, len(all))
	for _, b := range all {
		drained, err := b.beginDrain()
		if err != nil {
			return err
		}
		drains = append(drains, drained)
	}
	for _, drained := range drains {
		if drained != nil {
			<-drained
		}
	}
	if s.broken.Load() {
		return errDrain
	}
	return nil
}

// close refuses what is committed from now on, and empties all into Pebble.
func (s *buffers) close() error {
	s.closed.Store(true)
	if err := s.drain(); err != nil { // after it no order is held by a commit that was let in before
		return err
	}
	s.drains.Wait()
	s.spares.close()
	return nil
}

// get looks a key up; found is false if the buffer knows nothing of it. The
// value is a copy.
func (b *buffer) get(key []byte) (value []byte, there, found bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return lookUp(key, b.table, b.older, b.commit)
}

// lookUp looks into a table, as of a commit, and into the older one.
func lookUp(key []byte, table, older *table, commit uint64) (value []byte, there, found bool) {
	if table == nil && older == nil {
		return nil, false, false
	}
	hash := hashKey(key)
	if table != nil {
		if value, there, found = table.get(hash, key, commit); found {
			return value, there, true
		}
	}
	if older != nil {
		return older.get(hash, key, commit)
	}
	return nil, false, false
}

// add commits what a batch has gathered.
func (b *buffer) add(batch *table) error {
	defer b.set.owe(batch.bytes())
	b.order.Lock()
	defer b.order.Unlock()
	if err := b.set.refuses(); err != nil {
		return err
	}
	room := b.room()
	if batch.bytes() > room {
		if err := b.drainLocked(); err != nil {
			return err
		}
		return b.apply(batch)
	}
	if b.table != nil && b.table.bytes()+batch.bytes() > room {
		if err := b.change(); err != nil {
			return err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.table == nil {
		b.table = b.set.spares.take()
		b.set.used.Add(1)
	}
	b.commit++
	seen := b.seen.Load()
	b.table.fetch(batch)
	for i := range batch.entries {
		e := &batch.entries[i]
		if key := batch.keyOf(e); e.deleted {
			b.table.remove(e.hash, key, b.commit, seen)
		} else {
			b.table.set(e.hash, key, batch.valueOf(e), nil, b.commit, seen)
		}
	}
	return nil
}

// addRanges commits a batch of Pebble's, which removes ranges.
func (b *buffer) addRanges(batch *pebble.Batch) error {
	defer b.set.owe(batch.Len())
	b.order.Lock()
	defer b.order.Unlock()
	if err := b.set.refuses(); err != nil {
		return err
	}
	if err := b.drainLocked(); err != nil {
		return err
	}
	return b.set.db.Apply(batch, pebble.NoSync)
}

// change begins to drain the table in the background. order is held.
func (b *buffer) change() error {
	if err := b.awaitDrain(); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.older, b.table = b.table, nil
	b.drained = make(chan struct{})
	b.set.used.Add(-1)
	b.set.drains.Add(1)
	go b.drainOlder()
	return nil
}

// drainOlder is the drain in the background. Reads go on: until the table is
// gone both it and Pebble have what it holds.
func (b *buffer) drainOlder() {
	defer b.set.drains.Done()
	defer close(b.drained)
	b.set.slots <- struct{}{}
	defer func() { <-b.set.slots }()
	if err := b.apply(b.older); err != nil {
		b.set.fail(fmt.Errorf("drain: %w", err)) // first: the cause is what is to be told
		b.set.broken.Store(true)
		return // the table stays, and nothing is committed any more
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.set.spares.give(b.older)
	b.older = nil
}

// awaitDrain waits for the drain in the background. order is held.
func (b *buffer) awaitDrain() error {
	if b.drained == nil {
		return nil
	}
	<-b.drained
	if b.set.broken.Load() {
		return errDrain
	}
	return nil
}

var errDrain = errors.New("a drain failed")

// refuses says why nothing may be committed any more.
func (s *buffers) refuses() error {
	switch {
	case s.closed.Load():
		return ErrClosed
	case s.broken.Load():
		return errDrain
	}
	return nil
}

// beginDrain drains in the background what was committed up to now. The channel
// is closed when that is done; nil: there is nothing.
func (b *buffer) beginDrain() (<-chan struct{}, error) {
	b.order.Lock()
	defer b.order.Unlock()
	if b.table != nil {
		if err := b.change(); err != nil {
			return nil, err
		}
	}
	return b.drained, nil
}

// drain empties the buffer into Pebble.
func (b *buffer) drain() error {
	b.order.Lock()
	defer b.order.Unlock()
	return b.drainLocked()
}

// drainLocked is drain for who holds order.
func (b *buffer) drainLocked() error {
	if err := b.awaitDrain(); err != nil {
		return err
	}
	if b.table == nil {
		return nil
	}
	if err := b.apply(b.table); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.set.used.Add(-1)
	b.set.spares.give(b.table)
	b.table = nil
	return nil
}

// apply writes the newest of a table into Pebble, in order. It is one batch: what
// is durable must never be the half of it. Pebble takes a large one as it is for
// a memtable; into the memtable that small ones go to, a key behind the one
// before goes in a third of the time.
func (b *buffer) apply(t *table) error {
	batch := b.set.db.NewBatchWithSize(t.drainBytes(), pebble.WithMaxRetainedSizeBytes(batchKeepBytes))
	defer func() { _ = batch.Close() }() // gives memory back; has nothing to report
	refs := drainRefs.Get().(*[]ref)
	defer drainRefs.Put(refs)
	*refs = t.refs((*refs)[:0], nil, nil)
	t.sort(*refs, 0)
	for _, r := range *refs {
		e := &t.entries[r.entry-1]
		if err := addTo(batch, b.prefix[:], t.keyOf(e), t.valueOf(e), e.deleted); err != nil {
			return err
		}
	}
	return b.set.db.Apply(batch, pebble.NoSync)
}

// drainRefs keeps memory that drains sort in.
var drainRefs = sync.Pool{New: func() any { return new([]ref) }}

// addTo puts a write into a batch of Pebble's.
func addTo(batch *pebble.Batch, prefix, key, value []byte, deleted bool) error {
	if deleted {
		op := batch.DeleteDeferred(len(prefix) + len(key))
		copy(op.Key[copy(op.Key, prefix):], key)
		return op.Finish()
	}
	op := batch.SetDeferred(len(prefix)+len(key), len(value))
	copy(op.Key[copy(op.Key, prefix):], key)
	copy(op.Value, value)
	return op.Finish()
}

// bufferView is a buffer as of one commit, together with Pebble as of then.
type bufferView struct {
	buffer *buffer
	table  *table
	older  *table
	commit uint64
}

// view pins what the buffer holds and calls open while the two agree: what is
// drained meanwhile is in a table too, and nothing is committed. It must be
// released.
func (b *buffer) view(open func() (*pebble.Iterator, error)) (bufferView, *pebble.Iterator, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	iter, err := open()
	if err != nil {
		return bufferView{}, nil, err
	}
	for seen := b.seen.Load(); seen < b.commit && !b.seen.CompareAndSwap(seen, b.commit); seen = b.seen.Load() {
	}
	v := bufferView{buffer: b, table: b.table, older: b.older, commit: b.commit}
	v.pin(1)
	return v, iter, nil
}

func (v bufferView) pin(by int32) {
	for _, t := range []*table{v.table, v.older} {
		if t != nil {
			t.views.Add(by)
		}
	}
}

func (v bufferView) release() { v.pin(-1) }

// get looks a key up as buffer.get does.
func (v bufferView) get(key []byte) (value []byte, there, found bool) {
	v.buffer.mu.RLock()
	defer v.buffer.mu.RUnlock()
	return lookUp(key, v.table, v.older, v.commit)
}

// collect lists what it holds of whole keys in [lo, hi).
func (v bufferView) collect(lo, hi []byte) []tableItem {
	lo, hi = v.buffer.bounds(lo, hi)
	v.buffer.mu.RLock()
	defer v.buffer.mu.RUnlock()
	return onTop(v.older.collect(lo, hi, v.commit), v.table.collect(lo, hi, v.commit))
}

// bounds are bounds of whole keys without the replica's prefix. A hi that lies
// behind all of the replica is none.
func (b *buffer) bounds(lo, hi []byte) (ownLo, ownHi []byte) {
	if len(hi) >= prefixBytes && string(hi[:prefixBytes]) == string(b.prefix[:]) {
		ownHi = hi[prefixBytes:]
	}
	return lo[prefixBytes:], ownHi
}

// onTop merges two sorted lists; where both have a key, above counts.
func onTop(below, above []tableItem) []tableItem {
	if len(below) == 0 {
		return above
	}
	if len(above) == 0 {
		return below
	}
	all := make([]tableItem, 0, len(below)+len(above))
	for len(below) > 0 && len(above) > 0 {
		switch c := bytes.Compare(below[0].key, above[0].key); {
		case c < 0:
			all, below = append(all, below[0]), below[1:]
		case c == 0:
			below = below[1:]
		default:
			all, above = append(all, above[0]), above[1:]
		}
	}
	return append(append(all, below...), above...)
}
