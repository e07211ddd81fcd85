package statestore

import (
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
)

// Limits of what waits in memory on its way to Pebble.
const (
	bufferBytesMax = 4 << 20  // of one replica
	bufferBytesMin = 64 << 10 // of one replica, however many there are
	buffersPart    = 2        // all together: one part in so many of a memtable
)

// buffer holds what was committed to one replica and is not in Pebble yet. A
// hash table takes a write for a tenth of what Pebble's memtable takes, and most
// of what is written is soon written over: the answers of sessions, the applied
// record, hot keys. When the buffer is full, or when all is to be flushed, it is
// drained: what it holds goes into Pebble as one batch, in order.
//
// The Raft log has it all, as it has what is in the memtable: neither survives
// a crash.
type buffer struct {
	set   *buffers
	order sync.Mutex    // of commits, drains and replacements: one at a time
	seen  atomic.Uint64 // the last commit that a view may look at

	mu     sync.RWMutex // guards all below; writers hold order too
	table  *table
	commit uint64 // the last one
}

// buffers are those of a store.
type buffers struct {
	db     *pebble.DB
	budget int           // bytes in all of them together
	used   atomic.Int32  // how many are not empty
	owed   atomic.Int64  // bytes committed since the last drain of all
	most   int64         // owed
	full   chan struct{} // that much is owed; capacity 1

	mu  sync.RWMutex
	all map[[prefixBytes]byte]*buffer
}

func newBuffers(db *pebble.DB, memTableBytes uint64) *buffers {
	return &buffers{
		db: db, budget: int(memTableBytes / buffersPart), most: int64(memTableBytes),
		full: make(chan struct{}, 1), all: make(map[[prefixBytes]byte]*buffer),
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
		b = &buffer{set: s, table: new(table)}
		s.all[id] = b
	}
	return b
}

// room is what one replica's may hold.
func (s *buffers) room() int {
	share := s.budget / max(1, int(s.used.Load()))
	return min(max(share, bufferBytesMin), bufferBytesMax)
}

// owe counts what was committed. The Raft log keeps it until it is flushed, so
// once it would fill a memtable all is to be flushed, however little is left of
// it here.
func (s *buffers) owe(bytes int) {
	if s.owed.Add(int64(bytes)) < s.most {
		return
	}
	select {
	case s.full <- struct{}{}:
	default:
	}
}

// drain empties all of them into Pebble.
func (s *buffers) drain() error {
	s.owed.Store(0)
	s.mu.RLock()
	all := make([]*buffer, 0, len(s.all))
	prefixes := make([][prefixBytes]byte, 0, len(s.all))
	for prefix, b := range s.all {
		all, prefixes = append(all, b), append(prefixes, prefix)
	}
	s.mu.RUnlock()
	for i, b := range all {
		if err := b.drain(prefixes[i][:]); err != nil {
			return err
		}
	}
	return nil
}

// get looks a key up; found is false if the buffer knows nothing of it. The
// value is a copy.
func (b *buffer) get(key []byte) (value []byte, there, found bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.table.get(key, b.commit)
}

// add commits what a batch has gathered.
func (b *buffer) add(prefix []byte, batch *table) error {
	defer b.set.owe(batch.bytes())
	b.order.Lock()
	defer b.order.Unlock()
	room := b.set.room()
	if b.table.keys > 0 && b.table.bytes()+batch.bytes() > room {
		if err := b.drainLocked(prefix); err != nil {
			return err
		}
	}
	if batch.bytes() > room {
		return b.apply(prefix, batch)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.table.keys == 0 {
		b.set.used.Add(1)
	}
	b.commit++
	seen := b.seen.Load()
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

// drain empties the buffer into Pebble.
func (b *buffer) drain(prefix []byte) error {
	b.order.Lock()
	defer b.order.Unlock()
	return b.drainLocked(prefix)
}

// drainLocked is drain for who holds order. Reads go on: until the table is
// changed for an empty one both it and Pebble have what it holds.
func (b *buffer) drainLocked(prefix []byte) error {
	if b.table.keys == 0 {
		return nil
	}
	if err := b.apply(prefix, b.table); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.set.used.Add(-1)
	if b.table.views.Load() > 0 {
		b.table = new(table)
	} else {
		b.table.reset()
	}
	return nil
}

// apply writes the newest of a table into Pebble, in order: its memtable takes a
// key behind the one before in a third of the time.
func (b *buffer) apply(prefix []byte, t *table) error {
	batch := b.set.db.NewBatch(pebble.WithMaxRetainedSizeBytes(batchKeepBytes))
	defer func() { _ = batch.Close() }() // gives memory back; has nothing to report
	refs := drainRefs.Get().(*[]ref)
	defer drainRefs.Put(refs)
	*refs = t.refs((*refs)[:0], nil, nil)
	t.sort(*refs, 0)
	for _, r := range *refs {
		e := &t.entries[r.entry-1]
		if err := addTo(batch, prefix, t.keyOf(e), t.valueOf(e), e.deleted); err != nil {
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
	commit uint64
	prefix []byte
}

// view pins what the buffer holds and calls open while the two agree: what is
// drained meanwhile was in the table, and nothing is committed. It must be
// released.
func (b *buffer) view(prefix []byte, open func() (*pebble.Iterator, error)) (bufferView, *pebble.Iterator, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	iter, err := open()
	if err != nil {
		return bufferView{}, nil, err
	}
	for seen := b.seen.Load(); seen < b.commit && !b.seen.CompareAndSwap(seen, b.commit); seen = b.seen.Load() {
	}
	b.table.views.Add(1)
	return bufferView{buffer: b, table: b.table, commit: b.commit, prefix: prefix}, iter, nil
}

func (v bufferView) release() { v.table.views.Add(-1) }

// get looks a key up as buffer.get does.
func (v bufferView) get(key []byte) (value []byte, there, found bool) {
	v.buffer.mu.RLock()
	defer v.buffer.mu.RUnlock()
	return v.table.get(key, v.commit)
}

// collect lists what it holds of whole keys in [lo, hi).
func (v bufferView) collect(lo, hi []byte) []tableItem {
	v.buffer.mu.RLock()
	defer v.buffer.mu.RUnlock()
	if v.table.keys == 0 {
		return nil
	}
	if len(lo) >= prefixBytes {
		lo = lo[prefixBytes:]
	} else {
		lo = nil
	}
	if len(hi) > prefixBytes && string(hi[:prefixBytes]) == string(v.prefix) {
		hi = hi[prefixBytes:]
	} else {
		hi = nil
	}
	return v.table.collect(lo, hi, v.commit)
}
