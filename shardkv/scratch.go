package shardkv

import (
	"slices"

	"github.com/flotilla-kv/flotilla/raft/statestore"
)

// scratch is memory that a machine uses for one command after the other, so
// that a write allocates next to nothing.
type scratch struct {
	write   write
	effects effects
	encoder encoder
	key     []byte
	spent   int // bytes of values that the entry has read, written and answered so far

	// Answers that somebody waits for outlive the entry; those of an entry are
	// made at once.
	waited  bool
	answers []soleAnswer
	own     answer // if nobody waits
}

// Of what an entry has left, a group keeps no more than this for the next: a
// node has thousands of groups.
const (
	scratchBytesMax = 1 << 10
	scratchOpsMax   = 8
)

// soleAnswer is an answer with room for the one result that most have.
type soleAnswer struct {
	answer
	result [1]result
}

// begin prepares for an entry of n commands.
func (s *scratch) begin(n int, waited bool) {
	s.spent = 0
	if s.waited = waited; waited {
		s.answers = make([]soleAnswer, n)
	}
}

// newAnswer is an answer to a command, with so many results.
func (s *scratch) newAnswer(results int) *answer {
	if !s.waited {
		s.own = answer{results: slices.Grow(s.own.results[:0], results)[:results]}
		return &s.own
	}
	a := &s.answers[0]
	s.answers = s.answers[1:]
	if results == len(a.result) {
		a.results = a.result[:]
	} else {
		a.results = make([]result, results)
	}
	return &a.answer
}

// effectsOn is what carries out a write of the shard on a batch.
func (s *scratch) effectsOn(b *statestore.Batch, sh *heldShard, time int64, notes *notes, history *history) *effects {
	s.effects = effects{
		shardView: shardView{view: batchView{b}, shard: sh.id, inc: sh.incarnation, time: time, key: s.effects.key},
		batch:     b,
		held:      sh,
		spent:     &s.spent,
		notes:     notes,
		history:   history,
		head:      s.effects.head,
	}
	return &s.effects
}

// end lets go of what the entry's commands refer to, and of what is too large
// to keep.
func (s *scratch) end() {
	s.write = write{ops: emptied(s.write.ops, scratchOpsMax)}
	s.effects = effects{head: s.effects.head, shardView: shardView{key: emptied(s.effects.key, scratchBytesMax)}}
	s.encoder.b = emptied(s.encoder.b, scratchBytesMax)
	s.answers = nil
	s.own = answer{results: emptied(s.own.results, scratchOpsMax)}
}

// emptied is the memory of a slice for use again, unless it is too large.
func emptied[T any](s []T, most int) []T {
	if cap(s) > most {
		return nil
	}
	clear(s[:cap(s)])
	return s[:0]
}
