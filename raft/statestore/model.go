package statestore

import (
	"bytes"
	"slices"
	"sync"

	"github.com/google/btree"
)

// Model is a store in memory whose durability is in the caller's hands: every
// commit makes a new version, and the caller says how far versions have become
// durable (Flush, FlushSome) and when the machine crashes (Crash). It outlives
// the Stores opened on it, as a disk does.
type Model struct {
	mu        sync.Mutex
	onFlushed func()
	durable   *modelTree
	// versions are the commits that are not durable, oldest first; the last
	// one is what reads see. The trees share what they have in common.
	versions    []*modelTree
	flushWanted bool
	generation  uint64 // counts crashes: stores from before have no effect
}

type modelTree = btree.BTreeG[modelPair]

type modelPair struct{ key, value []byte }

// modelDegree is the B-tree's; small, so that tests split nodes too.
const modelDegree = 8

// NewModel makes an empty one.
func NewModel() *Model {
	less := func(a, b modelPair) bool { return bytes.Compare(a.key, b.key) < 0 }
	return &Model{durable: btree.NewG(modelDegree, less)}
}

// OpenModel opens a store on m. onFlushed, if not nil, is called by Flush,
// FlushSome and installs.
func OpenModel(m *Model, onFlushed func()) *Store {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.onFlushed = onFlushed
	return &Store{engine: modelEngine{model: m, generation: m.generation}}
}

// Unflushed counts the commits that a crash would lose.
func (m *Model) Unflushed() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.versions)
}

// FlushWanted says whether AsyncFlush was called since the last flush.
func (m *Model) FlushWanted() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.flushWanted
}

// FlushSome makes the oldest n unflushed commits durable.
func (m *Model) FlushSome(n int) {
	m.mu.Lock()
	if n = min(n, len(m.versions)); n > 0 {
		m.durable = m.versions[n-1]
		m.versions = append([]*modelTree(nil), m.versions[n:]...)
	}
	m.flushWanted = m.flushWanted && len(m.versions) > 0
	onFlushed := m.onFlushed
	m.mu.Unlock()
	if onFlushed != nil {
		onFlushed()
	}
}

// Flush makes all commits durable.
func (m *Model) Flush() { m.FlushSome(m.Unflushed()) }

// Crash loses what is not durable. Whatever a store opened before still does
// fails with ErrClosed and changes nothing.
func (m *Model) Crash() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.versions = nil
	m.flushWanted = false
	m.generation++
	m.onFlushed = nil
}

// newest is the tree that reads see; the lock is held.
func (m *Model) newest() *modelTree {
	if n := len(m.versions); n > 0 {
		return m.versions[n-1]
	}
	return m.durable
}

// read is a private copy of what reads see.
func (m *Model) read() *modelTree {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.newest().Clone()
}

// readDurable is a private copy of what a crash would leave.
func (m *Model) readDurable() *modelTree {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.durable.Clone()
}

// change makes a new version.
func (m *Model) change(generation uint64, ops []modelOp) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if generation != m.generation {
		return ErrClosed
	}
	next := m.newest().Clone()
	for _, op := range ops {
		op(next)
	}
	m.versions = append(m.versions, next)
	return nil
}

// replace puts pairs in place of lo..hi, durably, and leaves the durability of
// all else as it is.
func (m *Model) replace(generation uint64, lo, hi []byte, pairs []modelPair) error {
	m.mu.Lock()
	if generation != m.generation {
		m.mu.Unlock()
		return ErrClosed
	}
	for _, tree := range append(m.versions, m.durable) {
		deleteSpan(tree, lo, hi)
		for _, p := range pairs {
			tree.ReplaceOrInsert(p)
		}
	}
	onFlushed := m.onFlushed
	m.mu.Unlock()
	if onFlushed != nil {
		onFlushed()
	}
	return nil
}

func deleteSpan(tree *modelTree, lo, hi []byte) {
	var gone []modelPair
	ascend(tree, lo, hi, func(p modelPair) bool {
		gone = append(gone, p)
		return true
	})
	for _, p := range gone {
		tree.Delete(p)
	}
}

func ascend(tree *modelTree, lo, hi []byte, visit func(modelPair) bool) {
	tree.AscendGreaterOrEqual(modelPair{key: lo}, func(p modelPair) bool {
		return (hi == nil || bytes.Compare(p.key, hi) < 0) && visit(p)
	})
}

func treeGet(tree *modelTree, key []byte) ([]byte, bool) {
	p, ok := tree.Get(modelPair{key: key})
	if !ok {
		return nil, false
	}
	return append([]byte{}, p.value...), true
}

// modelEngine is the engine on a Model.
type modelEngine struct {
	model      *Model
	generation uint64
}

func (e modelEngine) get(key []byte) ([]byte, bool, error) {
	e.model.mu.Lock()
	defer e.model.mu.Unlock()
	value, ok := treeGet(e.model.newest(), key)
	return value, ok, nil
}

func (e modelEngine) newIter(lo, hi []byte) (rawIter, error) {
	return &modelIter{tree: e.model.read(), lo: lo, hi: hi}, nil
}

func (e modelEngine) newDurableIter(lo, hi []byte) (rawIter, error) {
	return &modelIter{tree: e.model.readDurable(), lo: lo, hi: hi}, nil
}

func (e modelEngine) newBatch(prefix []byte) rawBatch { return &modelBatch{engine: e, prefix: prefix} }

func (e modelEngine) newView([]byte, []byte) (rawView, error) { return modelView{e.model.read()}, nil }

func (e modelEngine) newSnapshot([]byte, []byte) (rawView, error) {
	return modelView{e.model.read()}, nil
}

func (e modelEngine) newInstall(lo, hi []byte) rawInstall {
	return &modelInstall{engine: e, lo: lo, hi: hi}
}

func (e modelEngine) excise(lo, hi []byte) error {
	return e.model.replace(e.generation, lo, hi, nil)
}

func (e modelEngine) flush() error {
	if !e.current() {
		return ErrClosed
	}
	e.model.Flush()
	return nil
}

// current says that there was no crash since.
func (e modelEngine) current() bool {
	e.model.mu.Lock()
	defer e.model.mu.Unlock()
	return e.generation == e.model.generation
}

func (e modelEngine) asyncFlush() error {
	e.model.mu.Lock()
	defer e.model.mu.Unlock()
	e.model.flushWanted = true
	return nil
}

func (e modelEngine) close() error { return e.flush() }

// modelOp is one change of a batch.
type modelOp func(*modelTree)

type modelBatch struct {
	engine  modelEngine
	prefix  []byte
	ops     []modelOp
	size    int
	scratch *modelTree // the state with ops applied; nil until something is read
}

func (b *modelBatch) do(op modelOp) {
	b.ops = append(b.ops, op)
	if b.scratch != nil {
		op(b.scratch)
	}
}

func (b *modelBatch) set(key, head, tail []byte) {
	p := modelPair{key: slices.Concat(b.prefix, key), value: slices.Concat(head, tail)}
	b.size += len(p.key) + len(p.value)
	b.do(func(t *modelTree) { t.ReplaceOrInsert(p) })
}

func (b *modelBatch) delete(key []byte) {
	p := modelPair{key: slices.Concat(b.prefix, key)}
	b.do(func(t *modelTree) { t.Delete(p) })
}

func (b *modelBatch) deleteRange(lo, hi []byte) {
	lo, hi = append([]byte{}, lo...), append([]byte{}, hi...)
	b.do(func(t *modelTree) { deleteSpan(t, lo, hi) })
}

func (b *modelBatch) changes() int { return len(b.ops) }
func (b *modelBatch) bytes() int   { return b.size }

func (b *modelBatch) read() *modelTree {
	if b.scratch == nil {
		b.scratch = b.engine.model.read()
		for _, op := range b.ops {
			op(b.scratch)
		}
	}
	return b.scratch
}

func (b *modelBatch) get(key []byte) ([]byte, bool, error) {
	value, ok := treeGet(b.read(), slices.Concat(b.prefix, key))
	return value, ok, nil
}

func (b *modelBatch) newIter(lo, hi []byte) (rawIter, error) {
	return &modelIter{tree: b.read().Clone(), lo: lo, hi: hi}, nil
}

func (b *modelBatch) commit() error {
	return b.engine.model.change(b.engine.generation, b.ops)
}

func (b *modelBatch) close() {}

type modelView struct{ tree *modelTree }

func (v modelView) get(key []byte) ([]byte, bool, error) {
	value, ok := treeGet(v.tree, key)
	return value, ok, nil
}

func (v modelView) newIter(lo, hi []byte) (rawIter, error) {
	return &modelIter{tree: v.tree.Clone(), lo: lo, hi: hi}, nil
}

func (v modelView) close() error { return nil }

type modelInstall struct {
	engine modelEngine
	lo, hi []byte
	pairs  []modelPair
}

func (in *modelInstall) add(key, value []byte) error {
	in.pairs = append(in.pairs, modelPair{key: append([]byte{}, key...), value: append([]byte{}, value...)})
	return nil
}

func (in *modelInstall) finish() error {
	return in.engine.model.replace(in.engine.generation, in.lo, in.hi, in.pairs)
}

func (in *modelInstall) abort() error { return nil }
