package client

import (
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

// ReadOption weakens a read. Without one a read is linearizable: it sees every
// write that was answered before it began.
type ReadOption interface{ applyRead(*flotillav1.Request) }

type readOption func(*flotillav1.Request)

func (o readOption) applyRead(q *flotillav1.Request) { o(q) }

// Lease lets the leader answer by its lease, without a round to its followers.
// It is linearizable as long as clocks run at nearly the same speed, and only
// quicker; a cluster that does not grant leases answers as without it.
func Lease() ReadOption {
	return readOption(func(q *flotillav1.Request) { q.Consistency = flotillav1.Consistency_LEASE })
}

// Follower lets any replica answer, after it has asked the leader how far it
// must be. It is linearizable, and takes load off leaders.
func Follower() ReadOption {
	return readOption(func(q *flotillav1.Request) { q.Follower = true })
}

// Stale lets any replica answer from what it has, if it heard from its leader
// within the bound and has applied what it heard of then; otherwise it asks, as
// with Follower. The answer may miss writes of that last while. The bound is
// counted in whole milliseconds, at least one.
func Stale(bound time.Duration) ReadOption {
	return readOption(func(q *flotillav1.Request) {
		q.Consistency = flotillav1.Consistency_STALE
		q.StalenessMs = wireMillis(bound)
	})
}

// PutOption is a condition, an expiry or a wish for the previous value.
type PutOption func(*flotillav1.Put)

// IfAbsent writes only a key that is not there.
func IfAbsent() PutOption {
	return func(p *flotillav1.Put) { p.Condition = flotillav1.Put_IF_ABSENT }
}

// IfPresent writes only a key that is there.
func IfPresent() PutOption {
	return func(p *flotillav1.Put) { p.Condition = flotillav1.Put_IF_PRESENT }
}

// IfVersion writes only over that version; 0 stands for an absent key.
func IfVersion(version uint64) PutOption {
	return func(p *flotillav1.Put) {
		p.Condition, p.Version = flotillav1.Put_IF_VERSION, version
	}
}

// IfValue writes only over that value.
func IfValue(value []byte) PutOption {
	return func(p *flotillav1.Put) {
		p.Condition, p.Expected = flotillav1.Put_IF_VALUE, value
	}
}

// TTL lets the key expire that long after the write, to the millisecond. Not
// positive: no expiry.
func TTL(d time.Duration) PutOption {
	return func(p *flotillav1.Put) { p.TtlMs = int64(wireMillis(d)) }
}

// ExpireAt lets the key expire at that time.
func ExpireAt(t time.Time) PutOption {
	return func(p *flotillav1.Put) { p.ExpireAtMs = t.UnixMilli() }
}

// KeepTTL leaves the expiry that the key has.
func KeepTTL() PutOption {
	return func(p *flotillav1.Put) { p.KeepTtl = true }
}

// Previous asks for the value that was replaced.
func Previous() PutOption {
	return func(p *flotillav1.Put) { p.Previous = true }
}

// DeleteOption is a condition or a wish for the previous value.
type DeleteOption func(*flotillav1.Delete)

// DeletePrevious asks for the value that was deleted.
func DeletePrevious() DeleteOption {
	return func(d *flotillav1.Delete) { d.Previous = true }
}

// DeleteVersion deletes only that version.
func DeleteVersion(version uint64) DeleteOption {
	return func(d *flotillav1.Delete) { d.Version = version }
}

// wireMillis rounds a positive duration up, so that it never becomes none.
func wireMillis(d time.Duration) uint32 {
	const most = 1<<32 - 1
	if d <= 0 {
		return 0
	}
	return uint32(min((d+time.Millisecond-1)/time.Millisecond, most))
}
