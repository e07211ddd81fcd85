package shardkv

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Sizes of a group's history.
const (
	historyBytesMin  = 4 << 10              // a group that is written has so much
	historyBytesMax  = 1 << 20              // at it the oldest goes
	historyValueMax  = historyBytesMax / 16 // what is larger is kept without its value, so that it does not drive all else out
	historyNodeBytes = 256 << 20            // of all the groups of a node, what is beyond the least aside
)

// history is what has lately changed in a group's shards, in the order of its
// log: what watches tell. It is in memory only and begins anew with a restart, a
// snapshot, or a shard that comes. Every write of a shard is in it under its
// version, so that a reader sees whether it has them all.
//
// The machine stages what a batch changes, and publishes it when that is
// committed. Readers copy what they have not seen; nothing waits for them.
type history struct {
	budget *atomic.Int64 // of the node: bytes that rings may still take; nil: no bound

	// Of the batch that is not committed; the machine's.
	staged  *[]byte      // nil: nothing. The memory is shared by the groups
	touched []*heldShard // those that it changes
	bare    bool         // it is kept without values, with which it is more than a ring holds
	beyond  bool         // it is more than a ring holds even so

	mu       sync.Mutex // guards what follows; held for no more than a copy
	ring     []byte     // what lies at offset o is at o modulo its length
	start    uint64     // offset of the oldest event
	end      uint64     // behind the newest
	sharp    uint64     // start, when it was last known where the history of each shard begins
	shards   map[shardmap.ShardID]*shardHistory
	applied  raft.Index // as of which all this is
	epoch    uint64     // counts changes of who is served, and of where histories begin by other ways than the ring's
	watchers map[chan struct{}]struct{}
	closed   bool
}

// shardHistory is how a shard stands as committed.
type shardHistory struct {
	standing
	copy    incarnation // that was served last
	begin   uint64      // of the writes behind it none is missing, but for those that the ring has dropped
	through uint64      // the last write
	first   uint64      // where in the ring that behind begin is, or lower: then it is to be found
}

type standing struct {
	served    bool
	importing bool         // and the import was not refused
	peer      raft.GroupID // at the other end of its last move
	held      incarnation
}

// event is one change of a shard.
type event struct {
	kind    flotillav1.WatchEvent_Kind
	shard   shardmap.ShardID
	version uint64
	expires int64
	large   bool // the value was too large to keep, and is not here
	key     []byte
	value   []byte // CLEAR: the span, encoded
}

// Layout of an event: size 4 (of all of it) | kind 1 (128: large) | shard 4 |
// version 8 | expiry 8 | size of the key 2 | key | value.
const (
	eventHead  = 4 + 1 + 4 + 8 + 8 + 2
	eventLarge = 128
)

// add stages a change of the shard: that of its last version.
func (h *history) add(sh *heldShard, kind flotillav1.WatchEvent_Kind, key, value []byte, expires int64) {
	k := byte(kind)
	if h.staged == nil {
		h.staged = stagedMemory.Get().(*[]byte)
	}
	if !sh.told {
		sh.told = true
		h.touched = append(h.touched, sh)
	}
	if !h.bare && len(*h.staged)+eventHead+len(key)+len(value) > historyBytesMax {
		h.strip()
	}
	if len(value) > historyValueMax || h.bare && len(value) > 0 {
		k, value = k|eventLarge, nil
	}
	from, size := len(*h.staged), eventHead+len(key)+len(value)
	if h.beyond = h.beyond || from+size > historyBytesMax; h.beyond {
		return
	}
	*h.staged = slices.Grow(*h.staged, size)[:from+size]
	b := (*h.staged)[from:]
	binary.BigEndian.PutUint32(b, uint32(size))
	b[4] = k
	binary.BigEndian.PutUint32(b[5:], uint32(sh.id))
	binary.BigEndian.PutUint64(b[9:], sh.writes)
	binary.BigEndian.PutUint64(b[17:], uint64(expires))
	binary.BigEndian.PutUint16(b[25:], uint16(len(key)))
	copy(b[eventHead:], key)
	copy(b[eventHead+len(key):], value)
}

// strip takes the values out of what is staged.
func (h *history) strip() {
	h.bare = true
	kept := (*h.staged)[:0]
	for rest := *h.staged; len(rest) > 0; {
		size := binary.BigEndian.Uint32(rest)
		e := rest[:size]
		rest = rest[size:]
		if bare := eventHead + int(binary.BigEndian.Uint16(e[25:])); bare < len(e) {
			e = e[:bare]
			binary.BigEndian.PutUint32(e, uint32(bare))
			e[4] |= eventLarge
		}
		kept = append(kept, e...) // never beyond where it was
	}
	*h.staged = kept
}

// stagedMemory is that of batches.
var stagedMemory = sync.Pool{New: func() any { return new([]byte) }}

// unstage lets go of what was staged.
func (h *history) unstage() {
	if h.staged != nil {
		*h.staged = (*h.staged)[:0]
		stagedMemory.Put(h.staged)
	}
	for _, sh := range h.touched {
		sh.told = false
	}
	clear(h.touched)
	h.staged, h.bare, h.beyond, h.touched = nil, false, false, h.touched[:0]
}

// cutEvent takes the first event off b, sharing its bytes; false: it is not
// whole.
func cutEvent(b []byte) (e event, rest []byte, whole bool) {
	if len(b) < eventHead {
		return event{}, b, false
	}
	size := binary.BigEndian.Uint32(b)
	if uint64(len(b)) < uint64(size) {
		return event{}, b, false
	}
	key := eventHead + int(binary.BigEndian.Uint16(b[25:]))
	e = event{
		kind:    flotillav1.WatchEvent_Kind(b[4] &^ eventLarge),
		large:   b[4]&eventLarge != 0,
		shard:   shardmap.ShardID(binary.BigEndian.Uint32(b[5:])),
		version: binary.BigEndian.Uint64(b[9:]),
		expires: int64(binary.BigEndian.Uint64(b[17:])),
		key:     b[eventHead:key:key],
		value:   b[key:size:size],
	}
	return e, b[size:], true
}

// restart begins anew: nothing is known of what was before.
func (h *history) restart(applied raft.Index, shards []*heldShard) {
	h.unstage()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.start, h.sharp = h.end, h.end
	h.shards = make(map[shardmap.ShardID]*shardHistory, len(shards))
	h.show(shards)
	h.applied = applied
	h.wake()
}

// publish shows what was staged, as committed. shards are given if how they
// stand may have changed.
func (h *history) publish(applied raft.Index, shards []*heldShard) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.applied = applied
	h.show(shards)
	if h.staged != nil {
		h.take()
		h.unstage()
	} else if shards == nil {
		return
	}
	h.wake()
}

// take puts a batch's events into the ring. If it is too small for them, those
// go without their values: who has read all else can often find them where they
// are stored.
func (h *history) take() {
	for _, sh := range h.touched {
		s := h.shards[sh.id]
		s.through = max(s.through, sh.writes)
	}
	if !h.beyond && !h.room(len(*h.staged)) && !h.bare {
		h.strip()
	}
	if !h.beyond && h.room(len(*h.staged)) {
		h.put(*h.staged)
	} else {
		h.forget()
	}
}

// show takes in how shards stand. The history of a copy that is new begins with
// what it came with.
func (h *history) show(shards []*heldShard) {
	for _, sh := range shards {
		s := h.shards[sh.id]
		if s == nil {
			s = new(shardHistory)
			h.shards[sh.id] = s
		}
		now := standing{served: sh.state.serves(), importing: sh.state == shardImporting && !(sh.in != nil && sh.in.refused), peer: sh.peer, held: sh.incarnation}
		if now == s.standing {
			continue
		}
		if now.served && now.held != s.copy {
			s.copy, s.begin, s.through, s.first = now.held, sh.begin, sh.begin, 0
		}
		s.standing = now
		h.epoch++
	}
}

// room makes room for n bytes: the ring grows as long as it may, then the oldest
// events go. false: it is too small for so many.
func (h *history) room(n int) bool {
	if h.closed || n > historyBytesMax {
		return false
	}
	for need := int(h.end-h.start) + n; len(h.ring) < need && h.grow(); {
	}
	if n > len(h.ring) {
		return false
	}
	for len(h.ring)-int(h.end-h.start) < n {
		h.dropOldest()
	}
	return true
}

// grow doubles the ring; false: it may not.
func (h *history) grow() bool {
	size := max(2*len(h.ring), historyBytesMin)
	if size > historyBytesMax {
		return false
	}
	if more := int64(size - len(h.ring)); h.budget != nil && size > historyBytesMin && h.budget.Add(-more) < 0 {
		h.budget.Add(more)
		return false
	}
	old := make([]byte, h.end-h.start)
	h.get(h.start, old)
	h.ring = make([]byte, size)
	h.end = h.start
	h.put(old)
	return true
}

// put appends bytes for which there is room.
func (h *history) put(b []byte) {
	if len(b) == 0 {
		return
	}
	at := int(h.end % uint64(len(h.ring)))
	n := copy(h.ring[at:], b)
	copy(h.ring, b[n:])
	h.end += uint64(len(b))
}

// get copies what lies at an offset.
func (h *history) get(from uint64, to []byte) {
	if len(to) == 0 {
		return
	}
	at := int(from % uint64(len(h.ring)))
	n := copy(to, h.ring[at:])
	copy(to[n:], h.ring)
}

func (h *history) dropOldest() {
	var size [4]byte
	h.get(h.start, size[:])
	h.start += uint64(binary.BigEndian.Uint32(size[:]))
}

// sharpen finds where the history of each shard begins now that events were
// dropped: to note it with each would cost every write. It looks for those of
// which something was dropped since it last did.
func (h *history) sharpen() {
	if h.sharp == h.start {
		return
	}
	h.sharp = h.start
	left := make(map[shardmap.ShardID]*shardHistory)
	for id, s := range h.shards {
		if s.begin < s.through && s.first < h.start {
			left[id] = s
		}
	}
	var head [eventHead]byte
	for at := h.start; at < h.end && len(left) > 0; at += uint64(binary.BigEndian.Uint32(head[:])) {
		h.get(at, head[:])
		id, version := shardmap.ShardID(binary.BigEndian.Uint32(head[5:])), binary.BigEndian.Uint64(head[9:])
		if s := left[id]; s != nil && version > s.begin {
			s.begin, s.first = version-1, at
			delete(left, id)
		}
	}
	for _, s := range left {
		s.begin = s.through
	}
}

// forget lets everything go.
func (h *history) forget() {
	h.start, h.sharp = h.end, h.end
	for _, s := range h.shards {
		s.begin = s.through
	}
	h.epoch++
}

// close gives the memory back.
func (h *history) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	if h.budget != nil && len(h.ring) > historyBytesMin {
		h.budget.Add(int64(len(h.ring) - historyBytesMin))
	}
	h.forget()
	h.closed, h.ring = true, nil
	h.wake()
}

// subscribe has c poked whenever there is something new.
func (h *history) subscribe(c chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.watchers == nil {
		h.watchers = make(map[chan struct{}]struct{})
	}
	h.watchers[c] = struct{}{}
}

func (h *history) unsubscribe(c chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.watchers, c)
}

func (h *history) wake() {
	for c := range h.watchers {
		signal(c)
	}
}

// stand is how a shard stands, and whether the group knows it.
func (h *history) stand(shard shardmap.ShardID) (shardHistory, raft.Index, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.shards[shard]
	if s == nil {
		return shardHistory{}, h.applied, false
	}
	return *s, h.applied, true
}

// historyReader is how far one reader has come.
type historyReader struct {
	history *history
	offset  uint64
	epoch   uint64
	begun   bool
}

// read copies what comes next into buf, or into a larger one if one event does
// not fit; the last event may be cut off. look is called under the lock for
// the shards asked for if how they stand may have changed, or if events were
// dropped before they were read. end: nothing is behind it.
func (r *historyReader) read(buf []byte, shards []shardmap.ShardID, look func(shardmap.ShardID, shardHistory)) (b []byte, end bool) {
	h := r.history
	h.mu.Lock()
	defer h.mu.Unlock()
	lost := !r.begun || r.offset < h.start
	if lost {
		h.sharpen()
	}
	if lost || r.epoch != h.epoch {
		for _, id := range shards {
			s := h.shards[id]
			if s == nil {
				s = new(shardHistory)
			}
			look(id, *s)
		}
		r.begun, r.epoch, r.offset = true, h.epoch, max(r.offset, h.start)
	}
	n := min(int(h.end-r.offset), len(buf))
	if n >= eventHead {
		var head [4]byte
		h.get(r.offset, head[:])
		if size := int(binary.BigEndian.Uint32(head[:])); size > len(buf) {
			n, buf = size, make([]byte, size)
		}
	}
	h.get(r.offset, buf[:n])
	return buf[:n], r.offset+uint64(n) == h.end
}

// Changes visits what a replica's history holds from an offset on, and returns the
// next offset: for those who compare replicas. A change is its value, nil if that
// was not kept, and all else that is told of it, encoded.
func (s *Server) Changes(key raft.ReplicaKey, from uint64, visit func(shard shardmap.ShardID, version uint64, head, value []byte)) (next uint64) {
	g := s.group(key.Group)
	if g == nil || g.replica.ID() != key {
		return from
	}
	r := historyReader{history: &g.machine.history, offset: from}
	for end := false; !end; {
		var b []byte
		b, end = r.read(make([]byte, watchPieceBytes), nil, nil)
		for {
			e, rest, whole := cutEvent(b)
			if !whole {
				break
			}
			size := len(b) - len(rest)
			b[4] &^= eventLarge
			value := e.value
			if e.large {
				value = nil
			}
			visit(e.shard, e.version, b[4:eventHead+len(e.key)], value)
			r.offset += uint64(size)
			b = rest
		}
	}
	return r.offset
}

// watched is what of a shard a watch is about.
type watched struct {
	key    []byte // this one; or
	prefix []byte // those that begin with it
}

// match tells whether an event is of it.
func (w *watched) match(e *event) (bool, error) {
	if e.kind != flotillav1.WatchEvent_CLEAR {
		return w.has(e.key), nil
	}
	s, err := decodeSpan(e.value)
	if err != nil {
		return false, fmt.Errorf("a span of the history: %w", err)
	}
	return w.meets(&s), nil
}

func (w *watched) has(key []byte) bool {
	if len(w.key) > 0 {
		return bytes.Equal(w.key, key)
	}
	return bytes.HasPrefix(key, w.prefix)
}

// meets tells whether a span may hold a key of it.
func (w *watched) meets(s *span) bool {
	if len(w.key) > 0 {
		return bytes.HasPrefix(w.key, s.prefix) && bytes.Compare(s.start, w.key) <= 0 && (len(s.end) == 0 || bytes.Compare(w.key, s.end) < 0)
	}
	lo, hi := overlap(w.prefix, s.prefix)
	if lo == nil {
		return false
	}
	if bytes.Compare(s.start, lo) > 0 {
		lo = s.start
	}
	if len(s.end) > 0 && (hi == nil || bytes.Compare(s.end, hi) < 0) {
		hi = s.end
	}
	return hi == nil || bytes.Compare(lo, hi) < 0
}

// overlap are the bounds of the keys that begin with both prefixes; lo is nil if
// there are none, hi if there is no bound.
func overlap(a, b []byte) (lo, hi []byte) {
	if len(a) < len(b) {
		a, b = b, a
	}
	if !bytes.HasPrefix(a, b) {
		return nil, nil
	}
	return append([]byte{}, a...), successor(a)
}
