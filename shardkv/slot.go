package shardkv

import (
	"fmt"
	"math/bits"

	"github.com/flotilla-kv/flotilla/raft/statestore"
)

// slot is where an answer lies among those of its session: a place to write
// over, so that nothing need be deleted when an answer is not waited for any
// more. An answer takes the lowest slot that is free. Which one that is follows
// from the answers that are kept and nothing else, so it is the same at every
// replica, restarted or not.
type slot uint16

// slotSet holds the slots in use, a bit for each.
type slotSet []uint64

// lowestFree is the first slot that is not in use.
func (u slotSet) lowestFree() slot {
	for i, word := range u {
		if ^word != 0 {
			return slot(i*64 + bits.TrailingZeros64(^word))
		}
	}
	return slot(len(u) * 64)
}

// take marks a slot that is free.
func (u *slotSet) take(s slot) {
	for len(*u) <= int(s/64) {
		*u = append(*u, 0)
	}
	bit := uint64(1) << (s % 64)
	if (*u)[s/64]&bit != 0 {
		panic(fmt.Sprintf("slot %d is in use", s))
	}
	(*u)[s/64] |= bit
}

// free gives a slot back.
func (u slotSet) free(s slot) { u[s/64] &^= 1 << (s % 64) }

// eachAnswer visits what lies in the slots between lo and hi: answers, and what
// is left of those that are not waited for any more. A session's lowest is the
// largest of its heads, for the one that raised it is still waited for; what is
// numbered below that is a leftover. content lives until visit returns.
func eachAnswer(view *statestore.View, lo, hi []byte, visit func(p answerPlace, head answerHead, content []byte, size int)) error {
	it := view.NewIter(lo, hi)
	for ok := it.First(); ok; ok = it.Next() {
		place, good := splitAnswerKey(it.Key())
		head, content, err := decodeAnswerHead(it.Value())
		if !good || err != nil {
			it.Close()
			return errMalformed
		}
		visit(place, head, content, len(it.Value()))
	}
	return it.Close()
}
