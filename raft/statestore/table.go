package statestore

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"hash/maphash"
	"math"
	"slices"
	"sync/atomic"
)

// table is a hash table of writes in memory: what a batch gathers, or what was
// committed to a replica and is not in Pebble yet. Keys are without the
// replica's prefix; the empty one is that of the applied record.
//
// A write over one in the table takes its place, unless a view may still look
// at that one: then both stay, the older behind the newer. No entry holds a
// pointer, so the garbage collector does not look into them.
type table struct {
	entries []tableEntry
	firsts  []uint64 // of each entry, the key's first eight bytes: who looks for a range looks at these
	buckets []int32  // number of the first entry; their count is a power of two
	arena   []byte   // keys and values
	keys    int      // entries but for older versions
	views   atomic.Int32
}

// tableEntry is one version of one key. Entries are numbered from 1; 0 is none.
type tableEntry struct {
	commit   uint64 // which commit wrote it
	hash     uint32
	next     int32 // in the bucket
	older    int32 // version of the same key
	key      uint32
	keyLen   uint32
	value    uint32
	valueLen uint32
	valueCap uint32
	deleted  bool
	old      bool // a version behind a newer one: in no bucket
}

const (
	tableEntryBytes  = 56 // what an entry takes, with its first bytes
	drainHeader      = 12 // of a batch of Pebble's
	drainOverhead    = 11 // of an entry in it, at most: kind and lengths
	fetchedAtOnce    = 64 // keys; see fetch
	tableBucketsMin  = 16
	tableKeepEntries = 256 << 10 // more of them are not kept for use again
	tableKeepBytes   = 24 << 20
	tableKeepUnused  = 256 << 10 // more than that is kept only where an eighth of it was used
)

// hashSeed is the process's own, so that nobody can choose keys that collide.
var hashSeed = maphash.MakeSeed()

func hashKey(key []byte) uint32 { return uint32(maphash.Bytes(hashSeed, key)) }

// part is eight bytes of a key, from depth on, as a number that orders as they
// do; zeros stand for what it lacks.
func part(key []byte, depth int) uint64 {
	if len(key) >= depth+8 {
		return binary.BigEndian.Uint64(key[depth:])
	}
	var padded [8]byte
	copy(padded[:], key[min(depth, len(key)):])
	return binary.BigEndian.Uint64(padded[:])
}

func (t *table) bytes() int { return len(t.arena) + len(t.entries)*tableEntryBytes }

// drainBytes is about what it takes in a batch of Pebble's.
func (t *table) drainBytes() int {
	return drainHeader + len(t.arena) + t.keys*(prefixBytes+drainOverhead)
}

// capacity is what it takes in memory, whatever it holds.
func (t *table) capacity() int {
	return cap(t.arena) + cap(t.entries)*(tableEntryBytes-8) + cap(t.firsts)*8 + cap(t.buckets)*4
}

func (t *table) keyOf(e *tableEntry) []byte { return t.arena[e.key:][:e.keyLen:e.keyLen] }

func (t *table) valueOf(e *tableEntry) []byte { return t.arena[e.value:][:e.valueLen:e.valueLen] }

// find is the number of the newest version of key; 0: there is none.
func (t *table) find(hash uint32, key []byte) int32 {
	if len(t.buckets) == 0 {
		return 0
	}
	n := t.buckets[hash&uint32(len(t.buckets)-1)]
	for n != 0 {
		e := &t.entries[n-1]
		if e.hash == hash && string(t.keyOf(e)) == string(key) {
			return n
		}
		n = e.next
	}
	return 0
}

// fetch brings what the writes of a batch will look at into the processor's
// caches. A search waits for memory three times, one after the other; those of
// many keys, step by step together, wait hardly longer than one.
//
//go:noinline
func (t *table) fetch(batch *table) (sum uint32) { // a sum, and no inlining, lest the compiler leave the reads out
	if len(t.buckets) == 0 {
		return 0
	}
	var heads [fetchedAtOnce]int32
	for from := 0; from < len(batch.entries); from += fetchedAtOnce {
		entries := batch.entries[from:min(from+fetchedAtOnce, len(batch.entries))]
		for i := range entries {
			heads[i] = t.buckets[entries[i].hash&uint32(len(t.buckets)-1)]
		}
		for i := range entries {
			if n := heads[i]; n != 0 {
				sum += t.entries[n-1].hash
			}
		}
		for i := range entries {
			if n := heads[i]; n != 0 {
				if at := t.entries[n-1].key; int(at) < len(t.arena) {
					sum += uint32(t.arena[at])
				}
			}
		}
	}
	return sum
}

// at is version n of a key or the older one that was the newest at a commit;
// nil: there was none.
func (t *table) at(n int32, commit uint64) *tableEntry {
	for n != 0 {
		e := &t.entries[n-1]
		if e.commit <= commit {
			return e
		}
		n = e.older
	}
	return nil
}

// get is a copy of the value as of a commit; found is false if the table knows
// nothing of the key.
func (t *table) get(hash uint32, key []byte, commit uint64) (value []byte, there, found bool) {
	e := t.at(t.find(hash, key), commit)
	switch {
	case e == nil:
		return nil, false, false
	case e.deleted:
		return nil, false, true
	}
	return append(make([]byte, 0, e.valueLen), t.valueOf(e)...), true, true
}

// set writes head and tail, joined, to a key; seen is the last commit that a
// view may look at.
func (t *table) set(hash uint32, key, head, tail []byte, commit, seen uint64) {
	e := t.version(hash, key, commit, seen)
	e.deleted = false
	n := uint32(len(head) + len(tail))
	if e.valueCap < n {
		room := n
		if e.valueCap > 0 {
			room += n / 4 // a value that grows goes on growing
		}
		e.value, e.valueCap = uint32(len(t.arena)), room
		t.arena = slices.Grow(t.arena, int(room))[:len(t.arena)+int(room)]
	}
	to := t.arena[e.value:][:n]
	copy(to[copy(to, head):], tail)
	e.valueLen = n
}

// remove notes that a key is deleted.
func (t *table) remove(hash uint32, key []byte, commit, seen uint64) {
	e := t.version(hash, key, commit, seen)
	e.deleted, e.valueLen = true, 0
}

// version is where the key's newest version goes. What a view may look at moves
// behind it.
func (t *table) version(hash uint32, key []byte, commit, seen uint64) *tableEntry {
	n := t.find(hash, key)
	if n == 0 {
		n = t.insert(hash, key)
	} else if older := t.entries[n-1]; older.commit <= seen {
		older.old = true
		t.entries, t.firsts = append(t.entries, older), append(t.firsts, t.firsts[n-1])
		e := &t.entries[n-1]
		e.older, e.valueCap = int32(len(t.entries)), 0
	}
	e := &t.entries[n-1]
	e.commit = commit
	return e
}

func (t *table) insert(hash uint32, key []byte) int32 {
	if t.keys >= len(t.buckets) {
		t.grow()
	}
	t.keys++
	bucket := &t.buckets[hash&uint32(len(t.buckets)-1)]
	t.firsts = append(t.firsts, part(key, 0))
	t.entries = append(t.entries, tableEntry{hash: hash, next: *bucket, key: uint32(len(t.arena)), keyLen: uint32(len(key))})
	t.arena = append(t.arena, key...)
	*bucket = int32(len(t.entries))
	return *bucket
}

// grow doubles the buckets. Older versions are in none.
func (t *table) grow() {
	next := make([]int32, max(tableBucketsMin, 2*len(t.buckets)))
	for _, n := range t.buckets {
		for n != 0 {
			e := &t.entries[n-1]
			bucket := &next[e.hash&uint32(len(next)-1)]
			n, e.next, *bucket = e.next, *bucket, n
		}
	}
	t.buckets = next
}

// tableItem is a version with its key and value, which lie in the table.
type tableItem struct {
	key, value []byte
	deleted    bool
}

// collect lists what is in [lo, hi) as of a commit, in order; nil hi is no
// bound.
func (t *table) collect(lo, hi []byte, commit uint64) []tableItem {
	if t == nil || t.keys == 0 {
		return nil
	}
	refs := t.refs(nil, lo, hi)
	t.sort(refs, 0)
	items := make([]tableItem, 0, len(refs))
	for _, r := range refs {
		if e := t.at(r.entry, commit); e != nil {
			items = append(items, tableItem{key: t.keyOf(e), value: t.valueOf(e), deleted: e.deleted})
		}
	}
	return items
}

// ref is an entry that is being put in order.
type ref struct {
	part  uint64 // eight bytes of the key
	entry int32
}

// refs adds the newest versions of the keys in [lo, hi), in no order.
func (t *table) refs(to []ref, lo, hi []byte) []ref {
	from, upTo := part(lo, 0), uint64(math.MaxUint64)
	if hi != nil {
		upTo = part(hi, 0)
	}
	for i, first := range t.firsts { // one behind the other, as memory likes it
		if first < from || first > upTo {
			continue
		}
		e := &t.entries[i]
		if e.old {
			continue
		}
		key := t.keyOf(e)
		if string(key) >= string(lo) && (hi == nil || string(key) < string(hi)) {
			to = append(to, ref{entry: int32(i + 1)})
		}
	}
	return to
}

func (t *table) refKey(r ref) []byte { return t.keyOf(&t.entries[r.entry-1]) }

// sortedBytewise is up to how many keys are compared byte by byte at once.
const sortedBytewise = 8

// sort puts into order what agrees in the first depth bytes. To compare two keys
// is to wait for memory twice: so it takes eight bytes of each, those behind what
// all have in common, sorts by these, and goes on with what agrees in them too.
func (t *table) sort(refs []ref, depth int) {
	agree, shortest := t.common(refs, depth)
	if len(refs) <= sortedBytewise || shortest < depth { // keys that end would seem to agree with zeros
		slices.SortFunc(refs, func(a, b ref) int { return bytes.Compare(t.refKey(a), t.refKey(b)) })
		return
	}
	for i := range refs {
		refs[i].part = part(t.refKey(refs[i]), agree)
	}
	slices.SortFunc(refs, func(a, b ref) int { return cmp.Compare(a.part, b.part) })
	for from, i := 0, 1; i <= len(refs); i++ {
		if i == len(refs) || refs[i].part != refs[from].part {
			if i-from > 1 {
				t.sort(refs[from:i], agree+8)
			}
			from = i
		}
	}
}

// common is the depth to which keys that agree in depth bytes agree in truth,
// and the length of the shortest.
func (t *table) common(refs []ref, depth int) (agree, shortest int) {
	if len(refs) == 0 {
		return depth, depth
	}
	first := t.refKey(refs[0])
	agree, shortest = len(first), len(first)
	for _, r := range refs[1:] {
		key := t.refKey(r)
		shortest = min(shortest, len(key))
		agree = min(agree, len(key))
		for i := depth; i < agree; i++ {
			if key[i] != first[i] {
				agree = i
			}
		}
	}
	return agree, shortest
}

// reset empties the table and keeps its memory, if that is neither too much nor
// far more than it was used for.
func (t *table) reset() {
	tooMuch := cap(t.entries) > tableKeepEntries || cap(t.arena) > tableKeepBytes
	if tooMuch || t.capacity() > tableKeepUnused && t.capacity() > 8*t.bytes() {
		t.entries, t.firsts, t.buckets, t.arena, t.keys = nil, nil, nil, nil, 0
		return
	}
	for len(t.buckets) > tableBucketsMin && len(t.buckets) > 4*t.keys {
		t.buckets = t.buckets[:len(t.buckets)/2] // it was once large: what is cleared goes by what is used
	}
	clear(t.buckets)
	t.entries, t.firsts, t.arena, t.keys = t.entries[:0], t.firsts[:0], t.arena[:0], 0
}
