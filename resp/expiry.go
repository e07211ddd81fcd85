package resp

import (
	"math"
	"strings"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// expiryCommands are the commands on when keys expire.
func expiryCommands() []*command {
	row := func(name string, arity int, flags, since, summary string, run func(*job)) *command {
		return &command{name: name, arity: arity, flags: flags, keys: [3]int{1, 1, 1}, categories: categoriesOf("keyspace", flags),
			group: "generic", since: since, summary: summary, run: run}
	}
	read := func(s shape) func(*job) {
		return func(j *job) { j.read(j.arg(1), s) }
	}
	return []*command{
		row("expire", -3, "write fast", "1.0.0", "Let a key expire in some seconds", runExpire),
		row("pexpire", -3, "write fast", "2.6.0", "Let a key expire in some milliseconds", runExpire),
		row("expireat", -3, "write fast", "1.2.0", "Let a key expire at a unix time in seconds", runExpire),
		row("pexpireat", -3, "write fast", "2.6.0", "Let a key expire at a unix time in milliseconds", runExpire),
		row("persist", 2, "write fast", "2.2.0", "Let a key no longer expire", runPersist),
		row("ttl", 2, "readonly fast", "1.0.0", "Seconds until a key expires", read(shapeTTL)),
		row("pttl", 2, "readonly fast", "2.6.0", "Milliseconds until a key expires", read(shapePTTL)),
		row("expiretime", 2, "readonly fast", "7.0.0", "Unix time in seconds at which a key expires", read(shapeExpireAt)),
		row("pexpiretime", 2, "readonly fast", "7.0.0", "Unix time in milliseconds at which a key expires", read(shapePExpireAt)),
	}
}

// expiry is a time to live or a point in time, in milliseconds; both 0: none.
type expiry struct {
	ttlMS int64
	atMS  int64
}

// ttl parses a time to live of a command that writes a value; it must be
// positive.
func (j *job) ttl(arg []byte, unit int64) (expiry, bool) {
	n, ok := j.integer(arg)
	if !ok {
		return expiry{}, false
	}
	if n <= 0 || n > math.MaxInt64/unit || n*unit > math.MaxInt64-time.Now().UnixMilli() {
		return expiry{}, j.failExpire()
	}
	return expiry{ttlMS: n * unit}, true
}

// expireAt parses a point in time of a command that writes a value.
func (j *job) expireAt(arg []byte, unit int64) (expiry, bool) {
	n, ok := j.integer(arg)
	if !ok {
		return expiry{}, false
	}
	if n <= 0 || n > math.MaxInt64/unit {
		return expiry{}, j.failExpire()
	}
	return expiry{atMS: n * unit}, true
}

// expireTime parses the time of the EXPIRE family, where any time in the past
// is allowed and means now; past says so.
func (j *job) expireTime(arg []byte) (e expiry, past, ok bool) {
	n, ok := j.integer(arg)
	if !ok {
		return e, false, false
	}
	unit := int64(1000)
	if j.cmd.name[0] == 'p' {
		unit = 1
	}
	if n > math.MaxInt64/unit || n < math.MinInt64/unit {
		return e, false, j.failExpire()
	}
	n *= unit
	if strings.HasSuffix(j.cmd.name, "at") {
		return expiry{atMS: n}, n <= 0, true
	}
	if n > math.MaxInt64-time.Now().UnixMilli() {
		return e, false, j.failExpire()
	}
	return expiry{ttlMS: n}, n <= 0, true
}

// expireCondition is EXPIRE's NX, XX, GT and LT.
type expireCondition struct{ nx, xx, gt, lt bool }

func (c expireCondition) any() bool { return c.nx || c.xx || c.gt || c.lt }

// allows says whether an expiry may be replaced by another; 0 is none, which
// counts as infinitely late.
func (c expireCondition) allows(old, at int64) bool {
	switch {
	case c.nx && old != 0, c.xx && old == 0:
		return false
	case c.gt && (old == 0 || at <= old), c.lt && old != 0 && at >= old:
		return false
	}
	return true
}

func (j *job) expireCondition(args [][]byte) (c expireCondition, ok bool) {
	for _, a := range args {
		switch {
		case isWord(a, "nx"):
			c.nx = true
		case isWord(a, "xx"):
			c.xx = true
		case isWord(a, "gt"):
			c.gt = true
		case isWord(a, "lt"):
			c.lt = true
		default:
			return c, j.failed("ERR Unsupported option " + clip(a, unknownBytesMax))
		}
	}
	if c.nx && (c.xx || c.gt || c.lt) {
		return c, j.failed("ERR NX and XX, GT or LT options at the same time are not compatible")
	}
	if c.gt && c.lt {
		return c, j.failed("ERR GT and LT options at the same time are not compatible")
	}
	return c, true
}

func runExpire(j *job) {
	key := j.arg(1)
	condition, ok := j.expireCondition(j.args[3:])
	if !ok {
		return
	}
	e, past, ok := j.expireTime(j.arg(2))
	if !ok {
		return
	}
	if condition.any() {
		j.expireIf(key, condition, e, past)
		return
	}
	op, s := expireOp(key, e, past)
	j.write(key, len(key), s, op)
}

// expireOp is the operation that sets an expiry; one in the past deletes.
func expireOp(key []byte, e expiry, past bool) (*flotillav1.Op, shape) {
	if past {
		return newDelete(key, false), shapeCount
	}
	return newExpire(key, e), shapeExpire
}

// expireTries bounds how often a conditional EXPIRE starts over because the
// key was written in between.
const expireTries = 32

// expireIf reads the key's expiry and sets the new one if the key is still as
// read, else starts over.
func (j *job) expireIf(key []byte, condition expireCondition, e expiry, past bool) {
	if j.exec != nil {
		j.fail("ERR " + strings.ToUpper(j.cmd.name) + " with NX, XX, GT or LT is not supported inside MULTI")
		return
	}
	shard, ok := j.shard(key)
	if !ok || !j.settle() {
		return
	}
	for range expireTries {
		found, ok := j.callOne(shard, &flotillav1.Request{Ops: []*flotillav1.Op{newGet(key, true)}})
		if !ok {
			return
		}
		at := e.atMS
		if at == 0 {
			at = time.Now().UnixMilli() + e.ttlMS
		}
		r := found.Results[0]
		if r.GetStatus() == flotillav1.Result_ABSENT || !condition.allows(r.GetExpireAtMs(), at) {
			j.reply(intReply(0))
			return
		}
		if done, ok := j.expireAsRead(shard, key, r.GetVersion(), e, past); done || !ok {
			return
		}
	}
	j.fail("TRYAGAIN the key is being written too often")
}

// expireAsRead sets the expiry of a key whose version is still the one read.
func (j *job) expireAsRead(shard shardmap.ShardID, key []byte, version uint64, e expiry, past bool) (done, ok bool) {
	op, _ := expireOp(key, e, past)
	set, ok := j.callOne(shard, &flotillav1.Request{
		Compares: []*flotillav1.Compare{{Target: flotillav1.Compare_VERSION, Key: key, Version: version}},
		Ops:      []*flotillav1.Op{op},
	})
	if !ok || !set.Compared {
		return false, ok
	}
	j.reply(intReply(1))
	return true, true
}

// runPersist reads the expiry that it removes, to tell whether there was one.
func runPersist(j *job) {
	key := j.arg(1)
	j.write(key, 2*len(key), shapePersist, newGet(key, true), newExpire(key, expiry{}))
}
