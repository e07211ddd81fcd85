package shardkv

import (
	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
)

// answer is what a command left, as the session table records it.
type answer struct {
	// refused, if not OK, says why nothing was done; then nothing was recorded
	// and all else is zero.
	refused  flotillav1.Code
	message  string
	movedTo  raft.GroupID // with MOVED: who serves the shard as far as known
	compared bool
	results  []result
	outcome  flotillav1.OutcomeState
	replayed bool // it is that of an earlier attempt
}

// status of a result; the numbers are those of the wire.
type status byte

const (
	statusDone            = status(flotillav1.Result_DONE)
	statusAbsent          = status(flotillav1.Result_ABSENT)
	statusConditionFailed = status(flotillav1.Result_CONDITION_FAILED)
	statusNotAnInteger    = status(flotillav1.Result_NOT_AN_INTEGER)
	statusOverflow        = status(flotillav1.Result_OVERFLOW)
	statusTooLarge        = status(flotillav1.Result_TOO_LARGE)
)

// result of one operation.
type result struct {
	status  status
	existed bool
	value   []byte
	version uint64
	number  int64
	expires int64
	count   uint64
	pairs   []pair
	next    []byte
}

// pair is a key that a scan found.
type pair struct {
	key []byte
	record
}

// closed is the answer kept under a number that is never applied.
func closed(message string) *answer {
	return &answer{outcome: flotillav1.OutcomeState_NOT_APPLIED, message: message}
}

// Flags of an encoded answer.
const (
	answerCompared = 1
	answerClosed   = 2 // the number was closed: the write has and will have no effect
	resultExisted  = 1
)

// answerHead is what stands before a recorded answer.
type answerHead struct {
	writes uint64 // of the shard by then: it need not be recorded elsewhere
	seq    uint64
	lowest uint64 // of the session by then
}

// encode draws an answer that is to be recorded.
func (a *answer) encode(e *encoder, head answerHead) {
	e.uint(head.writes)
	e.uint(head.seq)
	e.uint(head.lowest)
	e.byte(flag(a.compared, answerCompared) | flag(a.outcome == flotillav1.OutcomeState_NOT_APPLIED, answerClosed))
	if a.outcome == flotillav1.OutcomeState_NOT_APPLIED {
		e.bytes([]byte(a.message))
		return
	}
	e.uint(uint64(len(a.results)))
	for i := range a.results {
		a.results[i].encode(e)
	}
}

func (r *result) encode(e *encoder) {
	e.byte(byte(r.status))
	e.byte(flag(r.existed, resultExisted))
	e.bytes(r.value)
	e.uint(r.version)
	e.int(r.number)
	e.int(r.expires)
	e.uint(r.count)
	e.uint(uint64(len(r.pairs)))
	for _, p := range r.pairs {
		e.bytes(p.key)
		e.bytes(p.value)
		e.uint(p.version)
		e.int(p.expires)
	}
	e.bytes(r.next)
}

// decodeAnswerHead reads the head only. content is what is the same wherever
// and beside whatever the answer is recorded: all that stands behind seq.
func decodeAnswerHead(b []byte) (head answerHead, content []byte, err error) {
	d := decoder{b: b}
	head.writes, head.seq = d.uint(), d.uint()
	content = d.b
	head.lowest = d.uint()
	return head, content, d.err
}

// decodeAnswer reads what encode wrote; its bytes are shared with b.
func decodeAnswer(b []byte) (a *answer, head answerHead, err error) {
	d := decoder{b: b}
	head = answerHead{writes: d.uint(), seq: d.uint(), lowest: d.uint()}
	flags := d.byte()
	a = &answer{compared: flags&answerCompared != 0}
	if flags&answerClosed != 0 {
		a.outcome, a.message = flotillav1.OutcomeState_NOT_APPLIED, string(d.bytes())
		return a, head, d.end()
	}
	for range d.count() {
		a.results = append(a.results, decodeResult(&d))
	}
	return a, head, d.end()
}

func decodeResult(d *decoder) result {
	r := result{
		status:  status(d.byte()),
		existed: d.byte()&resultExisted != 0,
		value:   d.bytes(),
		version: d.uint(),
		number:  d.int(),
		expires: d.int(),
		count:   d.uint(),
	}
	for range d.count() {
		r.pairs = append(r.pairs, pair{key: d.bytes(), record: record{value: d.bytes(), version: d.uint(), expires: d.int()}})
	}
	r.next = d.bytes()
	return r
}
