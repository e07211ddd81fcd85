package resp

import (
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

// shape says how the results of a part become a command's reply.
type shape uint8

const (
	shapeNone      shape = iota // nothing: the part only reads for a compare
	shapeValue                  // the value or null
	shapeElement                // the value or null, as element index of a list
	shapeOK                     // OK, or null if the condition was not met
	shapePrevious               // the value before or null
	shapeApplied                // 1, or 0 if the condition was not met
	shapeNumber                 // the number after the operation
	shapeLength                 // the value's length, 0 if absent
	shapeCount                  // adds 1 if the key was there
	shapeExpire                 // 1 if the key was there, else 0
	shapePersist                // of Get and Expire: 1 if there was an expiry
	shapeTTL                    // seconds left, -1 without expiry, -2 if absent
	shapePTTL                   // milliseconds left
	shapeExpireAt               // unix seconds
	shapePExpireAt              // unix milliseconds
	shapeType                   // string or none
)

// hasValue says whether such a part brings a value of unknown size.
func (s shape) hasValue() bool {
	return s == shapeValue || s == shapeElement || s == shapePrevious
}

// Texts of results that are errors, as Redis words them.
const (
	errNotInteger = "ERR value is not an integer or out of range"
	errOverflow   = "ERR increment or decrement would overflow"
	errTooLarge   = "ERR string exceeds maximum allowed size (proto-max-bulk-len)"
)

// statusText is the error that a result means for every shape, "" if none.
func statusText(s flotillav1.Result_Status) string {
	switch s {
	case flotillav1.Result_NOT_AN_INTEGER:
		return errNotInteger
	case flotillav1.Result_OVERFLOW:
		return errOverflow
	case flotillav1.Result_TOO_LARGE:
		return errTooLarge
	}
	return ""
}

// fill makes the item's part of the reply.
func (it *item) fill(p *pipe, results []*flotillav1.Result) {
	for _, r := range results {
		if text := statusText(r.GetStatus()); text != "" {
			*it.dst = errorReply(text)
			return
		}
	}
	r := results[0]
	if it.shape.hasValue() {
		it.fillValue(p, r)
		return
	}
	absent := r.GetStatus() == flotillav1.Result_ABSENT
	unmet := r.GetStatus() == flotillav1.Result_CONDITION_FAILED
	switch it.shape {
	case shapeOK:
		*it.dst = okReply()
		if unmet {
			*it.dst = nullReply()
		}
	case shapeApplied:
		*it.dst = boolReply(!unmet)
	case shapeNumber:
		*it.dst = intReply(r.GetNumber())
	case shapeLength:
		*it.dst = intReply(max(r.GetNumber(), int64(len(r.GetValue()))))
	case shapeCount:
		it.dst.kind = kindInt
		if !absent {
			it.dst.n++
		}
	case shapeExpire:
		*it.dst = boolReply(!absent)
	case shapePersist:
		*it.dst = boolReply(!absent && r.GetExpireAtMs() != 0)
	case shapeType:
		*it.dst = statusReply("string")
		if absent {
			*it.dst = statusReply("none")
		}
	case shapeTTL, shapePTTL, shapeExpireAt, shapePExpireAt:
		*it.dst = intReply(it.shape.expiry(absent, r.GetExpireAtMs(), time.Now().UnixMilli()))
	}
}

func (it *item) fillValue(p *pipe, r *flotillav1.Result) {
	value, there := r.GetValue(), r.GetStatus() != flotillav1.Result_ABSENT
	if it.shape == shapePrevious {
		there = r.GetExisted()
	}
	if there && value == nil {
		value = []byte{}
	}
	switch {
	case it.shape == shapeElement && there:
		it.dst.list[it.index] = value
	case it.shape == shapeElement:
	case there:
		*it.dst = bulkReply(value)
	default:
		*it.dst = nullReply()
	}
	p.valueRead(it.slot, len(value), int(it.guess))
}

// expiry is the answer to one of the questions after a key's expiry. Seconds
// left are rounded to the nearest, as Redis does; a key that is still there
// has at least 0 left whatever this node's clock says.
func (s shape) expiry(absent bool, at, now int64) int64 {
	if absent {
		return -2
	}
	if at == 0 {
		return -1
	}
	left := max(at-now, 0)
	switch s {
	case shapeTTL:
		return (left + 500) / 1000
	case shapePTTL:
		return left
	case shapeExpireAt:
		return (at + 500) / 1000
	}
	return at
}
