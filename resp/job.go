package resp

import (
	"strconv"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// keyBytesMax is the longest key; the shortest has one byte.
const keyBytesMax = 65_535

// opBytes is about what an operation takes in a request besides its key and
// value.
const opBytes = 24

// partsMax is how many parts of one command are pushed at once.
const partsMax = 4 << 10

// Error lines that several commands give.
const (
	errSyntax     = "ERR syntax error"
	errCrossSlot  = "CROSSSLOT Keys in request don't hash to the same slot"
	errNoShards   = "CLUSTERDOWN The cluster has no shards yet"
	errKeyBytes   = "ERR a key has 1 to 65535 bytes"
	errValueBytes = errTooLarge
	errTooBig     = "ERR the request is larger than 8 MiB"
)

// job is one command being carried out by the connection's reader. A handler
// either sets the reply or adds the parts whose results will.
type job struct {
	c     *conn
	cmd   *command
	args  [][]byte
	slot  *slot
	dst   *reply   // where the reply goes: in slot, or in EXEC's array
	exec  *execute // not nil while EXEC runs its commands
	parts []part

	whole      *call // set by EXEC: the command is this request
	wholeShard shardmap.ShardID
}

func (j *job) reply(r reply)    { *j.dst = r }
func (j *job) fail(text string) { *j.dst = errorReply(text) }
func (j *job) arg(i int) []byte { return j.args[i] }
func (j *job) is(w string) bool { return j.cmd.name == w }
func (j *job) failExpire() bool {
	return j.failed("ERR invalid expire time in '" + j.cmd.name + "' command")
}
func (j *job) failed(t string) bool { j.fail(t); return false }

// integer parses an argument, or answers the error.
func (j *job) integer(arg []byte) (int64, bool) {
	n, ok := parseInt(arg)
	if !ok {
		j.fail(errNotInteger)
	}
	return n, ok
}

// shard is the shard of a key, or an error is answered.
func (j *job) shard(key []byte) (shardmap.ShardID, bool) {
	if len(key) == 0 || len(key) > keyBytesMax {
		return 0, j.failed(errKeyBytes)
	}
	n := j.c.server.shards()
	if n == 0 {
		return 0, j.failed(errNoShards)
	}
	return shardmap.Shard(key, n), true
}

// read adds a read of one key. Its reply has the given shape.
func (j *job) read(key []byte, s shape) {
	if shard, ok := j.shard(key); ok {
		j.add(part{shard: shard, bytes: len(key) + opBytes, op: newGet(key, !s.hasValue()), item: item{shape: s}})
	}
}

// write adds operations on one key; size is what key and value take.
func (j *job) write(key []byte, size int, s shape, op *flotillav1.Op, more ...*flotillav1.Op) {
	shard, ok := j.shard(key)
	if !ok {
		return
	}
	if size > bulkBytesMax+keyBytesMax {
		j.fail(errValueBytes)
		return
	}
	j.add(part{shard: shard, write: true, bytes: size + opBytes*(1+len(more)), op: op, more: more, item: item{shape: s}})
}

// add adds a part. Inside EXEC it goes into the transaction's request.
func (j *job) add(p part) {
	p.item.slot, p.item.dst = j.slot, j.dst
	if j.exec != nil {
		j.exec.add(&p)
		return
	}
	j.parts = append(j.parts, p)
	if len(j.parts) >= partsMax {
		j.push(false)
		j.c.pipe.breathe()
	}
}

// push hands the parts on; with the last the command is complete.
func (j *job) push(last bool) {
	if j.whole != nil {
		j.c.pipe.pushCall(j.slot, j.wholeShard, j.whole)
		j.whole = nil
		return
	}
	j.c.pipe.push(j.slot, j.parts, last)
	clear(j.parts)
	j.parts = j.parts[:0]
	if cap(j.parts) > partsKept && last {
		j.parts = nil
	}
}

// partsKept is the largest table of parts kept between commands.
const partsKept = 64

// Operations are made with their oneof in one piece: a pipeline makes very
// many of them.

func newGet(key []byte, noValue bool) *flotillav1.Op {
	o := &struct {
		op  flotillav1.Op
		as  flotillav1.Op_Get
		get flotillav1.Get
	}{}
	o.get.Key, o.get.NoValue = key, noValue
	o.as.Get = &o.get
	o.op.Op = &o.as
	return &o.op
}

// newPut is a Put for the caller to fill in further.
func newPut(key, value []byte) (*flotillav1.Op, *flotillav1.Put) {
	o := &struct {
		op  flotillav1.Op
		as  flotillav1.Op_Put
		put flotillav1.Put
	}{}
	o.put.Key, o.put.Value = key, value
	o.as.Put = &o.put
	o.op.Op = &o.as
	return &o.op, &o.put
}

func newDelete(key []byte, previous bool) *flotillav1.Op {
	return &flotillav1.Op{Op: &flotillav1.Op_Delete{Delete: &flotillav1.Delete{Key: key, Previous: previous}}}
}

func newAppend(key, value []byte) *flotillav1.Op {
	return &flotillav1.Op{Op: &flotillav1.Op_Append{Append: &flotillav1.Append{Key: key, Value: value}}}
}

func newIncr(key []byte, by int64) *flotillav1.Op {
	o := &struct {
		op   flotillav1.Op
		as   flotillav1.Op_Incr
		incr flotillav1.Incr
	}{}
	o.incr.Key, o.incr.By = key, by
	o.as.Incr = &o.incr
	o.op.Op = &o.as
	return &o.op
}

// newExpire sets an expiry; both times 0 removes it.
func newExpire(key []byte, e expiry) *flotillav1.Op {
	return &flotillav1.Op{Op: &flotillav1.Op_Expire{Expire: &flotillav1.Expire{Key: key, TtlMs: e.ttlMS, ExpireAtMs: e.atMS}}}
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }
