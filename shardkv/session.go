package shardkv

import (
	"cmp"
	"container/heap"
	"encoding/binary"
	"fmt"
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
	sessionsMax         = 262_144  // of a group, counted for each shard they write to
	answersMax          = 1 << 20  // kept for all sessions of a group
	answersBytesMax     = 1 << 30  // likewise, in the store
	sessionAnswersMax   = 16_384   // kept for one session in one shard
	sessionBytesMax     = 64 << 20 // likewise, in the store
	answerInMemoryBytes = 256      // a larger one is read from the store if it is asked for again
	sessionEndsAtOnce   = 256      // that one entry removes; the rest goes with the next
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
	size    int    // of the encoded answer
	encoded []byte // nil: it is in the store only
}

// sessionState mirrors what the store holds of a session.
type sessionState struct {
	lowest  uint64 // numbers below it are answered no more
	answers []kept // ascending by seq
	bytes   int    // of all answers, encoded
}

// place is where seq is, or would be, among the answers.
func (s *sessionState) place(seq uint64) (i int, found bool) {
	if n := len(s.answers); n > 0 && s.answers[n-1].seq < seq { // as mostly
		return n, false
	}
	return slices.BinarySearchFunc(s.answers, seq, func(k kept, seq uint64) int { return cmp.Compare(k.seq, seq) })
}

func (s *sessionState) find(seq uint64) (kept, bool) {
	i, found := s.place(seq)
	if !found {
		return kept{}, false
	}
	return s.answers[i], true
}

// sessions is the table of a group, over all its shards.
type sessions struct {
	byKey   map[sessionKey]*sessionState
	ends    endHeap // all of byKey, the first to end on top
	answers int     // of all sessions
	bytes   int
}

func newSessions() *sessions { return &sessions{byKey: make(map[sessionKey]*sessionState)} }

func (t *sessions) get(key sessionKey) *sessionState { return t.byKey[key] }

// full says why no answer may be added to s, "" if one may. s is nil for a new
// session; lowest is what its number acknowledges.
func (t *sessions) full(s *sessionState, lowest uint64) string {
	if s == nil {
		if len(t.byKey) >= sessionsMax {
			return fmt.Sprintf("the group has %d sessions: more end within the hour", len(t.byKey))
		}
		s = new(sessionState)
	}
	goes, goesBytes := 0, 0
	if len(s.answers) >= sessionAnswersMax || s.bytes >= sessionBytesMax || t.answers >= answersMax || t.bytes >= answersBytesMax {
		for goes < len(s.answers) && s.answers[goes].seq < lowest {
			goesBytes += s.answers[goes].size
			goes++
		}
	}
	switch {
	case len(s.answers)-goes >= sessionAnswersMax || s.bytes-goesBytes >= sessionBytesMax:
		return "the session has too many unacknowledged answers"
	case t.answers-goes >= answersMax || t.bytes-goesBytes >= answersBytesMax:
		return "the group keeps too many unacknowledged answers"
	}
	return ""
}

// open returns the session, making it if it is new.
func (t *sessions) open(key sessionKey) *sessionState {
	s := t.byKey[key]
	if s == nil {
		s = new(sessionState)
		t.byKey[key] = s
		heap.Push(&t.ends, key)
	}
	return s
}

// add keeps an answer that s does not have. encoded must not change any more.
func (t *sessions) add(s *sessionState, seq uint64, encoded []byte) {
	k := kept{seq: seq, size: len(encoded)}
	if len(encoded) <= answerInMemoryBytes {
		k.encoded = encoded
	}
	i, _ := s.place(seq)
	s.answers = slices.Insert(s.answers, i, k)
	s.bytes += k.size
	t.answers++
	t.bytes += k.size
}

// raise moves lowest up and returns the answers that are not waited for any
// more: they are no longer in s.
func (t *sessions) raise(s *sessionState, lowest uint64) (gone []kept) {
	if lowest <= s.lowest {
		return nil
	}
	s.lowest = lowest
	n := 0
	for n < len(s.answers) && s.answers[n].seq < lowest {
		n++
	}
	gone = slices.Clone(s.answers[:n])
	s.answers = slices.Delete(s.answers, 0, n)
	t.drop(s, gone)
	return gone
}

// drop no longer counts answers of s.
func (t *sessions) drop(s *sessionState, gone []kept) {
	for i := range gone {
		s.bytes -= gone[i].size
		t.bytes -= gone[i].size
	}
	t.answers -= len(gone)
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
	s := t.byKey[key]
	t.drop(s, s.answers)
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
