package shardkv

import (
	"cmp"
	"container/heap"
	"encoding/binary"
	"slices"
	"time"

	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Sessions live for sessionLife of group time from their birth. A birth that
// is more than birthAhead after the group's time is refused.
const (
	sessionLife = time.Hour
	birthAhead  = time.Minute
)

// Limits of the session table. Past them a new number is answered "busy": what
// was promised to be remembered is not forgotten to make room.
const (
	sessionsMax       = 100_000  // of a group
	sessionAnswersMax = 16_384   // kept for one session of one shard
	sessionBytesMax   = 32 << 20 // likewise
	sessionEndsAtOnce = 256      // that one entry removes; the rest goes with the next
)

// sessionID is who writes: a random number and when it was made.
type sessionID struct {
	client uint64
	birth  int64 // unix ms
}

func (id sessionID) append(to []byte) []byte {
	to = binary.BigEndian.AppendUint64(to, id.client)
	return binary.BigEndian.AppendUint64(to, uint64(id.birth))
}

func (id sessionID) encode(e *encoder) {
	e.fixed(id.client)
	e.int(id.birth)
}

func decodeSessionID(d *decoder) sessionID { return sessionID{client: d.fixed(), birth: d.int()} }

// endsAt is the group time from which on the session's writes are answered
// "expired".
func (id sessionID) endsAt() int64 { return id.birth + sessionLife.Milliseconds() }

// sessionKey names a session's numbers in one shard.
type sessionKey struct {
	shard shardmap.ShardID
	id    sessionID
}

// kept is one answer that a client may still ask for again.
type kept struct {
	seq     uint64
	encoded []byte
}

// sessionState mirrors what the store holds of a session.
type sessionState struct {
	lowest  uint64 // numbers below it are answered no more
	answers []kept // ascending by seq
	bytes   int
}

func (s *sessionState) find(seq uint64) ([]byte, bool) {
	i, found := slices.BinarySearchFunc(s.answers, seq, func(k kept, seq uint64) int { return cmp.Compare(k.seq, seq) })
	if !found {
		return nil, false
	}
	return s.answers[i].encoded, true
}

func (s *sessionState) add(seq uint64, encoded []byte) {
	i, _ := slices.BinarySearchFunc(s.answers, seq, func(k kept, seq uint64) int { return cmp.Compare(k.seq, seq) })
	s.answers = slices.Insert(s.answers, i, kept{seq, encoded})
	s.bytes += len(encoded)
}

// raise moves lowest up and returns the answers that go with it; they are gone
// from s, and the slice lives until the next call.
func (s *sessionState) raise(lowest uint64) []kept {
	if lowest <= s.lowest {
		return nil
	}
	s.lowest = lowest
	n := 0
	for n < len(s.answers) && s.answers[n].seq < lowest {
		s.bytes -= len(s.answers[n].encoded)
		n++
	}
	gone := s.answers[:n]
	s.answers = s.answers[n:]
	return gone
}

// full tells whether no further answer may be kept.
func (s *sessionState) full() bool {
	return len(s.answers) >= sessionAnswersMax || s.bytes >= sessionBytesMax
}

// sessions is the table of a group, over all its shards.
type sessions struct {
	byKey map[sessionKey]*sessionState
	ends  endHeap // all of byKey, the first to end on top
}

func newSessions() *sessions { return &sessions{byKey: make(map[sessionKey]*sessionState)} }

func (t *sessions) get(key sessionKey) *sessionState { return t.byKey[key] }

// open returns the session, making it if there is room; nil if there is none.
func (t *sessions) open(key sessionKey) *sessionState {
	if s := t.byKey[key]; s != nil {
		return s
	}
	if len(t.byKey) >= sessionsMax {
		return nil
	}
	s := new(sessionState)
	t.byKey[key] = s
	heap.Push(&t.ends, key)
	return s
}

// nextEnd is when the first session ends; false: there is none.
func (t *sessions) nextEnd() (int64, bool) {
	if len(t.ends) == 0 {
		return 0, false
	}
	return t.ends[0].id.endsAt(), true
}

// endOne removes and returns a session that has ended by time.
func (t *sessions) endOne(time int64) (sessionKey, bool) {
	if end, any := t.nextEnd(); !any || end > time {
		return sessionKey{}, false
	}
	key := heap.Pop(&t.ends).(sessionKey)
	delete(t.byKey, key)
	return key, true
}

// endHeap orders sessions by their end, and equal ones by their names, so that
// all replicas end the same ones first.
type endHeap []sessionKey

func (h endHeap) Len() int      { return len(h) }
func (h endHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h endHeap) Less(i, j int) bool {
	a, b := h[i], h[j]
	return cmp.Or(cmp.Compare(a.id.birth, b.id.birth), cmp.Compare(a.id.client, b.id.client), cmp.Compare(a.shard, b.shard)) < 0
}

// Push and Pop are heap.Interface's.
func (h *endHeap) Push(x any) { *h = append(*h, x.(sessionKey)) }

// Pop removes the last.
func (h *endHeap) Pop() any {
	old := *h
	key := old[len(old)-1]
	*h = old[:len(old)-1]
	return key
}
