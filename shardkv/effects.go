package shardkv

import (
	"math"
	"strconv"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
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
	notes   *notes // of the machine
	history *history
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
		return x.clear(o)
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
func (x *effects) set(key, value []byte, expires int64) (version uint64, err error) {
	r := record{version: x.version(), expires: expires, value: value}
	x.head = r.appendHead(x.head[:0])
	*x.spent += len(key) + len(value)
	at := x.at(key)
	if x.held.noted() {
		err = x.notes.key(x.batch, x.held, at, key, x.head, value)
	}
	x.batch.SetJoined(at, x.head, value)
	x.history.add(x.held, flotillav1.WatchEvent_PUT, key, value, expires)
	if expires != 0 {
		x.batch.Set(expiryKey(x.shard, x.inc, expires, key), nil)
		if x.soonest == 0 || expires < x.soonest {
			x.soonest = expires
		}
	}
	return r.version, err
}

// remove deletes a key that is stored. What the expiry index says of it goes
// when it falls due: it is checked against the key.
func (x *effects) remove(key []byte) (version uint64, err error) {
	at := x.at(key)
	if x.held.noted() {
		err = x.notes.key(x.batch, x.held, at, key)
	}
	x.batch.Delete(at)
	version = x.version()
	x.history.add(x.held, flotillav1.WatchEvent_DELETE, key, nil, 0)
	return version, err
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
		version, err := x.set(o.key, o.value, expires)
		return result{version: version, expires: expires}, err
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
	res.version, err = x.set(o.key, o.value, res.expires)
	return res, err
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
	res := result{existed: true}
	if o.previous {
		res.value = old.value
	}
	res.version, err = x.remove(o.key)
	return res, err
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
	version, err := x.set(o.key, value, old.expires)
	return result{existed: there, version: version, number: int64(len(value)), expires: old.expires}, err
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
	version, err := x.set(o.key, strconv.AppendInt(nil, n, 10), old.expires)
	return result{existed: there, version: version, number: n, expires: old.expires}, err
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
		version, err := x.remove(o.key)
		return result{existed: true, version: version}, err
	}
	version, err := x.set(o.key, old.value, expires)
	return result{existed: true, version: version, expires: expires}, err
}

// clear deletes a span of keys at once. How many there were is not counted.
func (x *effects) clear(o *op) (res result, err error) {
	if lo, hi := x.bounds(o.span); string(lo) < string(hi) {
		if x.held.noted() {
			err = x.notes.cleared(x.batch, x.held, o.span, lo, hi)
		}
		x.batch.DeleteRange(lo, hi)
	}
	res.version = x.version()
	var cleared encoder
	o.span.encode(&cleared)
	x.history.add(x.held, flotillav1.WatchEvent_CLEAR, nil, cleared.b, 0)
	return res, err
}

// clearWrites is what it costs to write down that a key is cleared, put as bytes.
const clearWrites = 256

// clearsTooMuch tells whether operations clear more of a shard in a move than
// can be written down at once. What they clear counts as read.
func (x *effects) clearsTooMuch(ops []op) (bool, error) {
	keys, size := 0, 0
	defer func() { *x.spent += size }()
	for i := range ops {
		if ops[i].kind != opClear || ops[i].span.whole() {
			continue
		}
		lo, hi := x.bounds(ops[i].span)
		if string(lo) >= string(hi) {
			continue
		}
		it := x.iter(lo, hi)
		for ok := it.First(); ok && keys <= clearsMax && size <= entryBytesMax; ok = it.Next() {
			keys++
			size += clearWrites + len(it.Value())
		}
		if err := it.Close(); err != nil || keys > clearsMax || size > entryBytesMax {
			return true, err
		}
	}
	return false, nil
}
