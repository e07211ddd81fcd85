package routing

import (
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// WriteID names a numbered write: what Outcome asks about.
type WriteID struct {
	Client  uint64
	BirthMS int64 // unix milliseconds; part of the client's id
	Shard   shardmap.ShardID
	Seq     uint64
}

// session is one identity of the client. A shard forgets it an hour after its
// birth, so the router takes a new one in good time; the old one lives on in
// the calls that were numbered under it.
type session struct {
	id      uint64
	birthMS int64
	shards  map[shardmap.ShardID]*numbers
}

func newSession(id uint64, birthMS int64) *session {
	return &session{id: id, birthMS: birthMS, shards: make(map[shardmap.ShardID]*numbers)}
}

// setBackMax is how far behind a session's birth the clock may fall before the
// session is given up: a shard refuses a birth over a minute ahead of it.
const setBackMax = 30 * time.Second

// old reports whether the session should be given up for a new one. The wall
// clock decides, as the shard's does: a machine that slept is noticed, and so
// is a clock that was set back.
func (s *session) old(nowMS int64, renewAfter time.Duration) bool {
	age := time.Duration(nowMS-s.birthMS) * time.Millisecond
	return age >= renewAfter || age < -setBackMax
}

// number is a write's number within a session and shard.
type number struct {
	session *session
	shard   shardmap.ShardID
	seq     uint64
}

func (n number) id() WriteID {
	return WriteID{Client: n.session.id, BirthMS: n.session.birthMS, Shard: n.shard, Seq: n.seq}
}

// wire is what a request says of itself now: `lowest` is as of this moment.
func (n number) wire() *flotillav1.Session {
	return &flotillav1.Session{
		ClientId: n.session.id,
		BirthMs:  n.session.birthMS,
		Seq:      n.seq,
		Lowest:   n.session.shards[n.shard].lowest,
	}
}

func (n number) finish()  { n.session.shards[n.shard].settle(n.seq, numberFinished) }
func (n number) abandon() { n.session.shards[n.shard].settle(n.seq, numberAbandoned) }

// take gives the next number of a shard, or none while its window is full.
func (s *session) take(shard shardmap.ShardID) (number, bool) {
	n := s.shards[shard]
	if n == nil {
		n = &numbers{lowest: 1}
		s.shards[shard] = n
	}
	seq, ok := n.take()
	return number{session: s, shard: shard, seq: seq}, ok
}

// Limits of the numbers of one session in one shard. Between `lowest` and the
// newest number the shard has to keep every answer.
const (
	// windowMax bounds the numbers from lowest on. At it no new write is
	// numbered until an old one is answered.
	windowMax = 4096
	// abandonedMax bounds how far lowest stays behind for the sake of a write
	// whose caller gave up: as long as it does, Outcome can find its answer.
	abandonedMax = 256
)

type numberState uint8

const (
	numberOpen      numberState = iota // its call is under way
	numberAbandoned                    // its caller gave up without knowing
	numberFinished                     // nobody will ask for it again
)

// numbers are those of one session in one shard. What lies below lowest is no
// longer waited for.
type numbers struct {
	lowest uint64
	states []numberState // of lowest and those after it
}

func (n *numbers) take() (uint64, bool) {
	if len(n.states) >= windowMax {
		return 0, false
	}
	n.states = append(n.states, numberOpen)
	n.advance()
	return n.lowest + uint64(len(n.states)) - 1, true
}

// settle notes what became of a number and moves lowest on.
func (n *numbers) settle(seq uint64, s numberState) {
	if seq < n.lowest || seq-n.lowest >= uint64(len(n.states)) {
		return
	}
	n.states[seq-n.lowest] = s
	n.advance()
}

func (n *numbers) advance() {
	passed := 0
	for passed < len(n.states) {
		s, span := n.states[passed], len(n.states)-passed
		if s == numberOpen || s == numberAbandoned && span <= abandonedMax {
			break
		}
		passed++
	}
	n.lowest += uint64(passed)
	n.states = n.states[passed:]
	if len(n.states) == 0 {
		n.states = nil
	}
}
