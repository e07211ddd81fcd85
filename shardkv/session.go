package shardkv

import (
	"cmp"
	"container/heap"
	"encoding/binary"
	"fmt"
	"slices"
	"time"
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
	sessionsMax       = 262_144  // of a group, counted for each shard they write to
	answersMax        = 1 << 20  // kept for all sessions of a group
	answersBytesMax   = 1 << 30  // likewise, in the store
	sessionAnswersMax = 16_384   // kept for one session in one shard
	sessionBytesMax   = 64 << 20 // likewise, in the store
	leftoverBytesMax  = 256      // an answer up to this may lie in its slot when it is not waited for any more
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

// kept is one answer that a client may still ask for again; it lies in the
// store.
type kept struct {
	seq  uint64
	size int // as it is stored
	slot slot
}

// sessionState mirrors what the store holds of a session.
type sessionState struct {
	lowest uint64 // numbers below it are answered no more
	queue  []kept // ascending by seq; what is before head is gone
	head   int
	slots  slotSet // of the answers
	bytes  int     // of all answers
}

// answers are those that are still waited for, ascending.
func (s *sessionState) answers() []kept { return s.queue[s.head:] }

// place is where seq is, or would be, among the answers.
func (s *sessionState) place(seq uint64) (i int, found bool) {
	answers := s.answers()
	if n := len(answers); n == 0 || answers[n-1].seq < seq { // as mostly
		return n, false
	}
	return slices.BinarySearchFunc(answers, seq, func(k kept, seq uint64) int { return cmp.Compare(k.seq, seq) })
}

func (s *sessionState) find(seq uint64) (kept, bool) {
	i, found := s.place(seq)
	if !found {
		return kept{}, false
	}
	return s.answers()[i], true
}

// insert puts an answer in its place. When half the queue is gone it moves to
// the front, so that neither end costs more than a few copies an answer.
func (s *sessionState) insert(k kept) {
	if s.head > 0 && s.head >= len(s.answers()) {
		s.queue = s.queue[:copy(s.queue, s.answers())]
		s.head = 0
	}
	i, found := s.place(k.seq)
	if found || k.seq < s.lowest {
		panic(fmt.Sprintf("answer %d of a session whose lowest is %d, there already: %v", k.seq, s.lowest, found))
	}
	s.queue = slices.Insert(s.queue, s.head+i, k)
}

// sessions is the table of one copy of a shard.
type sessions struct {
	byID map[sessionID]*sessionState
	ends endHeap // all of byID, the first to end on top
	all  *tally  // of the group
}

// tally counts what all tables of a group hold together.
type tally struct {
	sessions int
	answers  int
	bytes    int // of answers, in the store
}

// answered tells whether a write bears a number that needs no effect any more.
func (t *sessions) answered(n session) bool {
	s := t.get(n.id)
	if s == nil || n.seq == 0 {
		return false
	}
	_, known := s.find(n.seq)
	return known || n.seq < s.lowest
}

func newSessions(all *tally) *sessions {
	return &sessions{byID: make(map[sessionID]*sessionState), all: all}
}

func (t *sessions) get(id sessionID) *sessionState { return t.byID[id] }

// full says why no answer may be added to s, "" if one may. s is nil for a new
// session; lowest is what its number acknowledges.
func (t *sessions) full(s *sessionState, lowest uint64) string {
	if s == nil {
		if t.all.sessions >= sessionsMax {
			return fmt.Sprintf("the group has %d sessions: more end within the hour", t.all.sessions)
		}
		s = new(sessionState)
	}
	answers := s.answers()
	goes, goesBytes := 0, 0
	if len(answers) >= sessionAnswersMax || s.bytes >= sessionBytesMax || t.all.answers >= answersMax || t.all.bytes >= answersBytesMax {
		for goes < len(answers) && answers[goes].seq < lowest {
			goesBytes += answers[goes].size
			goes++
		}
	}
	switch {
	case len(answers)-goes >= sessionAnswersMax || s.bytes-goesBytes >= sessionBytesMax:
		return "the session has too many unacknowledged answers"
	case t.all.answers-goes >= answersMax || t.all.bytes-goesBytes >= answersBytesMax:
		return "the group keeps too many unacknowledged answers"
	}
	return ""
}

// open returns the session, making it if it is new.
func (t *sessions) open(id sessionID) *sessionState {
	s := t.byID[id]
	if s == nil {
		s = new(sessionState)
		t.byID[id] = s
		t.all.sessions++
		heap.Push(&t.ends, id)
	}
	return s
}

// add keeps an answer that s does not have, in a slot that is free.
func (t *sessions) add(s *sessionState, k kept) {
	s.slots.take(k.slot)
	s.insert(k)
	s.bytes += k.size
	t.all.answers++
	t.all.bytes += k.size
}

// raise moves lowest up and returns the answers that are not waited for any
// more: they are no longer in s, and their slots are free. They may be looked
// at until the next add.
func (t *sessions) raise(s *sessionState, lowest uint64) (gone []kept) {
	if lowest <= s.lowest {
		return nil
	}
	s.lowest = lowest
	answers := s.answers()
	n := 0
	for n < len(answers) && answers[n].seq < lowest {
		s.slots.free(answers[n].slot)
		n++
	}
	s.head += n
	t.drop(s, answers[:n])
	return answers[:n]
}

// drop no longer counts answers of s.
func (t *sessions) drop(s *sessionState, gone []kept) {
	for i := range gone {
		s.bytes -= gone[i].size
		t.all.bytes -= gone[i].size
	}
	t.all.answers -= len(gone)
}

// sift drops what of s's queue, as found in the store, is not waited for any
// more, and puts the rest in order. A number that is answered twice is damage.
func (t *sessions) sift(s *sessionState) error {
	found := s.queue
	s.queue = nil
	slices.SortFunc(found, func(a, b kept) int { return cmp.Compare(a.seq, b.seq) })
	for _, k := range found {
		if k.seq < s.lowest {
			continue
		}
		if other, twice := s.find(k.seq); twice {
			return fmt.Errorf("%w: write %d is answered in slots %d and %d", errMalformed, k.seq, other.slot, k.slot)
		}
		t.add(s, k)
	}
	return nil
}

// nextEnd is when the first session ends; false: there is none.
func (t *sessions) nextEnd() (int64, bool) {
	if len(t.ends) == 0 {
		return 0, false
	}
	return t.ends[0].endsAt(), true
}

// ended is a session that has ended by time, nil if there is none.
func (t *sessions) ended(time int64) (sessionID, *sessionState) {
	for len(t.ends) > 0 && t.ends[0].endsAt() <= time {
		if s := t.byID[t.ends[0]]; s != nil {
			return t.ends[0], s
		}
		heap.Pop(&t.ends) // it was removed
	}
	return sessionID{}, nil
}

// remove forgets a session.
func (t *sessions) remove(id sessionID) {
	s := t.byID[id]
	t.drop(s, s.answers())
	delete(t.byID, id)
	t.all.sessions--
}

// leave no longer counts the table in its group.
func (t *sessions) leave() { t.join(new(tally)) }

// join counts it in a group.
func (t *sessions) join(all *tally) {
	var own tally
	for _, s := range t.byID {
		own.sessions++
		own.answers += len(s.answers())
		own.bytes += s.bytes
	}
	t.all.sessions, t.all.answers, t.all.bytes = t.all.sessions-own.sessions, t.all.answers-own.answers, t.all.bytes-own.bytes
	t.all = all
	t.all.sessions, t.all.answers, t.all.bytes = t.all.sessions+own.sessions, t.all.answers+own.answers, t.all.bytes+own.bytes
}

// endHeap orders sessions by their end, and equal ones by their names, so that
// all replicas end the same ones first.
type endHeap []sessionID

func (h endHeap) Len() int      { return len(h) }
func (h endHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h endHeap) Less(i, j int) bool {
	a, b := h[i], h[j]
	return cmp.Or(cmp.Compare(a.birth, b.birth), cmp.Compare(a.client, b.client)) < 0
}

// Push and Pop are heap.Interface's.
func (h *endHeap) Push(x any) { *h = append(*h, x.(sessionID)) }

// Pop removes the last.
func (h *endHeap) Pop() any {
	old := *h
	id := old[len(old)-1]
	*h = old[:len(old)-1]
	return id
}
