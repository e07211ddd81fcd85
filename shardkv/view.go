package shardkv

import (
	"github.com/flotilla-kv/flotilla/raft/statestore"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// view is a state that operations see: a batch that gathers the effects of
// entries, or a snapshot for readers.
type view interface {
	Get(key []byte) (value []byte, ok bool, err error)
	iter(lo, hi []byte) *statestore.Iter
}

type batchView struct{ *statestore.Batch }

func (v batchView) iter(lo, hi []byte) *statestore.Iter { return v.Iter(lo, hi) }

type snapshotView struct{ *statestore.View }

func (v snapshotView) iter(lo, hi []byte) *statestore.Iter { return v.NewIter(lo, hi) }

// shardView is one shard's copy in a view, at a group time.
type shardView struct {
	view
	shard shardmap.ShardID
	inc   incarnation
	time  int64

	looked int    // bytes of values that were read
	key    []byte // scratch
}

// at is where a key lies. It lives until the next.
func (v *shardView) at(key []byte) []byte {
	v.key = appendValueKey(v.key[:0], v.shard, v.inc, key)
	return v.key
}

// get reads a key that is there at the group's time. An expired one is
// reported with ok false and its expiry, so that a reader can tell.
func (v *shardView) get(key []byte) (r record, ok bool, err error) {
	b, ok, err := v.Get(v.at(key))
	if err != nil || !ok {
		return record{}, false, err
	}
	if r, err = decodeRecord(b); err != nil {
		return record{}, false, err
	}
	v.looked += len(r.value)
	return r, r.liveAt(v.time), nil
}

// Bounds of a page of a scan. What comes first ends the page, but one key it
// has always, if there is one within pageLookMax.
const (
	scanKeysDefault = 1_000
	scanKeysMax     = 10_000
	countKeysMax    = 50_000                                       // a count holds nothing
	scanBytesMax    = 1 << 20                                      // of keys and values, unless the first pair is larger
	pageBytesMax    = ValueBytesMax + KeyBytesMax + 64*scanKeysMax // so no page takes more memory
	pageLookMax     = 32 << 20                                     // bytes of values passed by, expired ones too
)

// bounds of a span as stored keys.
func (v *shardView) bounds(s span) (lo, hi []byte) {
	space := appendSpace(nil, kindValue, v.shard, v.inc)
	lo, hi = space, successor(space)
	if len(s.prefix) > 0 {
		lo = append(append([]byte(nil), space...), s.prefix...)
		hi = successor(lo)
	}
	if start := append(append([]byte(nil), space...), s.start...); string(start) > string(lo) {
		lo = start
	}
	if len(s.end) > 0 {
		if end := append(append([]byte(nil), space...), s.end...); string(end) < string(hi) {
			hi = end
		}
	}
	return lo, hi
}

// scan reads a page. soonest is the earliest expiry among the keys it read
// that were live, 0 for none.
func (v *shardView) scan(s span) (res result, soonest int64, err error) {
	limit := min(s.limit, scanKeysMax)
	switch {
	case s.countOnly:
		limit = countKeysMax
		if s.limit > 0 {
			limit = min(s.limit, countKeysMax)
		}
	case s.limit == 0:
		limit = scanKeysDefault
	}
	lo, hi := v.bounds(s)
	if string(lo) >= string(hi) {
		return res, 0, nil
	}
	it := v.iter(lo, hi)
	p := page{span: s, limit: limit, time: v.time}
	for ok := it.First(); ok && !p.full; ok = it.Next() {
		if err := p.take(it.Key()[spaceBytes:], it.Value()); err != nil {
			it.Close()
			return result{}, 0, err
		}
	}
	v.looked += p.looked
	return p.result, p.soonest, it.Close()
}

// page is one page of a scan as it grows.
type page struct {
	span  span
	limit uint64
	time  int64

	result
	soonest int64 // earliest expiry in it, 0 for none
	bytes   int   // of keys and values in it
	looked  int   // of values passed by
	full    bool
}

// take looks at the next key; a full page notes it as where the next begins.
func (p *page) take(key, stored []byte) error {
	r, err := decodeRecord(stored)
	if err != nil {
		return err
	}
	size := len(key)
	if !p.span.keysOnly {
		size += len(r.value)
	}
	live := r.liveAt(p.time)
	if p.looked >= pageLookMax || live && (p.count == p.limit || len(p.pairs) > 0 && p.bytes+size > scanBytesMax) {
		p.next = append([]byte(nil), key...)
		p.full = true
		return nil
	}
	p.looked += len(r.value)
	if !live {
		return nil
	}
	p.count++
	if r.expires != 0 && (p.soonest == 0 || r.expires < p.soonest) {
		p.soonest = r.expires
	}
	if p.span.countOnly {
		return nil
	}
	found := pair{key: append([]byte(nil), key...), record: record{version: r.version, expires: r.expires}}
	if !p.span.keysOnly {
		found.value = append([]byte(nil), r.value...)
	}
	p.bytes += size
	p.pairs = append(p.pairs, found)
	return nil
}

// holds evaluates a compare.
func (v *shardView) holds(c compare) (bool, record, error) {
	r, there, err := v.get(c.key)
	if err != nil {
		return false, record{}, err
	}
	switch c.target {
	case compareExists:
		return there, r, nil
	case compareAbsent:
		return !there, r, nil
	case compareVersion:
		return (there && r.version == c.version) || (!there && c.version == 0), r, nil
	default:
		return there && string(r.value) == string(c.value), r, nil
	}
}

// read carries out an operation that only reads.
func (v *shardView) read(o *op) (res result, soonest int64, err error) {
	if o.kind == opScan {
		return v.scan(o.span)
	}
	r, there, err := v.get(o.key)
	if err != nil {
		return result{}, 0, err
	}
	if !there {
		return result{status: statusAbsent}, 0, nil
	}
	res = result{existed: true, version: r.version, expires: r.expires}
	if o.noValue {
		res.number = int64(len(r.value))
	} else {
		res.value = r.value
	}
	return res, r.expires, nil
}
