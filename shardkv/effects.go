package shardkv

import (
	"math"
	"strconv"

	"github.com/flotilla-kv/flotilla/raft/statestore"
)

// Limits of keys, values and requests.
const (
	KeyBytesMax     = 65_535
	ValueBytesMax   = 4 << 20
	RequestBytesMax = 8 << 20
)

// effects carries out the operations of one write on a batch. Only what
// changes something counts as a write of the shard.
type effects struct {
	shardView
	batch   *statestore.Batch
	held    *heldShard
	spent   *int   // see scratch
	soonest int64  // the earliest expiry set, 0: none
	head    []byte // scratch
}

// run carries out the operations in order; results has room for theirs.
func (x *effects) run(ops []op, results []result) error {
	for i := range ops {
		var err error
		if results[i], err = x.do(&ops[i]); err != nil {
			return err
		}
	}
	return nil
}

func (x *effects) do(o *op) (result, error) {
	switch o.kind {
	case opPut:
		return x.put(o)
	case opDelete:
		return x.delete(o)
	case opAppend:
		return x.append(o)
	case opIncr:
		return x.incr(o)
	case opExpire:
		return x.expire(o)
	case opClear:
		return x.clear(o), nil
	default:
		res, _, err := x.read(o)
		return res, err
	}
}

// version counts a write and is the version of what it writes.
func (x *effects) version() uint64 {
	x.held.writes++
	return x.held.writes
}

// set stores a key, and notes when it expires.
func (x *effects) set(key, value []byte, expires int64) uint64 {
	r := record{version: x.version(), expires: expires, value: value}
	x.head = r.appendHead(x.head[:0])
	*x.spent += len(key) + len(value)
	x.batch.SetJoined(x.at(key), x.head, value)
	if expires != 0 {
		x.batch.Set(expiryKey(x.shard, x.inc, expires, key), nil)
		if x.soonest == 0 || expires < x.soonest {
			x.soonest = expires
		}
	}
	return r.version
}

// remove deletes a key that is stored. What the expiry index says of it goes
// when it falls due: it is checked against the key.
func (x *effects) remove(key []byte) uint64 {
	x.batch.Delete(x.at(key))
	return x.version()
}

// expiry is the time at which a key written now expires, 0 for never.
func (x *effects) expiry(o *op) int64 {
	switch {
	case o.expireAt != 0:
		return o.expireAt
	case o.ttl == 0:
		return 0
	case o.ttl > math.MaxInt64-x.time:
		return math.MaxInt64
	}
	return max(1, x.time+o.ttl) // 0 would be never
}

// put writes a key. Without a condition, a wish for the old value or a kept
// expiry the old value is not read.
func (x *effects) put(o *op) (result, error) {
	if o.condition == putAlways && !o.keepTTL && !o.previous {
		expires := x.expiry(o)
		return result{version: x.set(o.key, o.value, expires), expires: expires}, nil
	}
	old, there, err := x.get(o.key)
	if err != nil {
		return result{}, err
	}
	res := result{existed: there}
	if there && o.previous {
		res.value = old.value
	}
	if !o.meets(old, there) {
		res.status = statusConditionFailed
		if there {
			res.version, res.expires = old.version, old.expires
		}
		// Who compared a version or a value wants to see what is there; "set if
		// absent" over a large value should not carry it around.
		if there && o.condition >= putIfVersion {
			res.value = old.value
		}
		return res, nil
	}
	res.expires = x.expiry(o)
	if o.keepTTL && there {
		res.expires = old.expires
	}
	res.version = x.set(o.key, o.value, res.expires)
	return res, nil
}

// meets tells whether the condition of a put holds over what is there.
func (o *op) meets(old record, there bool) bool {
	switch o.condition {
	case putIfAbsent:
		return !there
	case putIfPresent:
		return there
	case putIfVersion:
		return (there && old.version == o.version) || (!there && o.version == 0)
	case putIfValue:
		return there && string(old.value) == string(o.expected)
	}
	return true
}

func (x *effects) delete(o *op) (result, error) {
	old, there, err := x.get(o.key)
	if err != nil {
		return result{}, err
	}
	if !there {
		return result{status: statusAbsent}, nil
	}
	if o.version != 0 && o.version != old.version {
		return result{status: statusConditionFailed, existed: true, version: old.version, value: old.value}, nil
	}
	res := result{existed: true, version: x.remove(o.key)}
	if o.previous {
		res.value = old.value
	}
	return res, nil
}

func (x *effects) append(o *op) (result, error) {
	old, there, err := x.get(o.key)
	if err != nil {
		return result{}, err
	}
	if !there {
		old = record{}
	}
	if len(old.value)+len(o.value) > ValueBytesMax {
		return result{status: statusTooLarge, existed: there, version: old.version}, nil
	}
	value := append(append(make([]byte, 0, len(old.value)+len(o.value)), old.value...), o.value...)
	version := x.set(o.key, value, old.expires)
	return result{existed: there, version: version, number: int64(len(value)), expires: old.expires}, nil
}

func (x *effects) incr(o *op) (result, error) {
	old, there, err := x.get(o.key)
	if err != nil {
		return result{}, err
	}
	n := int64(0)
	if there {
		var is bool
		if n, is = integer(old.value); !is {
			return result{status: statusNotAnInteger, existed: true, version: old.version}, nil
		}
	} else {
		old = record{}
	}
	if (o.by > 0 && n > math.MaxInt64-o.by) || (o.by < 0 && n < math.MinInt64-o.by) {
		return result{status: statusOverflow, existed: there, version: old.version}, nil
	}
	n += o.by
	version := x.set(o.key, strconv.AppendInt(nil, n, 10), old.expires)
	return result{existed: there, version: version, number: n, expires: old.expires}, nil
}

// integer reads a value as Redis does: exactly as an integer is written.
func integer(value []byte) (int64, bool) {
	if len(value) == 0 || len(value) > 20 {
		return 0, false
	}
	n, err := strconv.ParseInt(string(value), 10, 64)
	if err != nil {
		return 0, false
	}
	var canonical [20]byte
	return n, string(strconv.AppendInt(canonical[:0], n, 10)) == string(value)
}

func (x *effects) expire(o *op) (result, error) {
	old, there, err := x.get(o.key)
	if err != nil {
		return result{}, err
	}
	if !there {
		return result{status: statusAbsent}, nil
	}
	expires := x.expiry(o)
	if expires != 0 && expires <= x.time {
		return result{existed: true, version: x.remove(o.key)}, nil
	}
	return result{existed: true, version: x.set(o.key, old.value, expires), expires: expires}, nil
}

// clear deletes a span of keys at once. How many there were is not counted.
func (x *effects) clear(o *op) result {
	if lo, hi := x.bounds(o.span); string(lo) < string(hi) {
		x.batch.DeleteRange(lo, hi)
	}
	return result{version: x.version()}
}
