package resp

import (
	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Limits of a transaction. Past them it is broken, and EXEC says so.
const (
	queuedMax      = 16 << 10        // commands
	queuedBytesMax = requestBytesMax // of their arguments
	watchedMax     = 4 << 10         // keys
)

func transactionCommands() []*command {
	row := func(name string, arity int, flags string, mode commandMode, since, summary string, run func(*job)) *command {
		speed := "@slow"
		if hasFlag(flags, "fast") {
			speed = "@fast"
		}
		return &command{name: name, arity: arity, flags: flags, categories: speed + " @transaction",
			group: "transactions", since: since, summary: summary, run: run, mode: mode}
	}
	const fast = "noscript loading stale fast allow_busy"
	rows := []*command{
		row("multi", 1, fast, inMulti, "1.2.0", "Begin a transaction", runMulti),
		row("exec", 1, "noscript loading stale skip_slowlog", inMulti, "1.2.0", "Carry out a transaction", runExec),
		row("discard", 1, fast, inMulti, "2.0.0", "Drop a transaction", runDiscard),
		row("watch", -2, fast, inMulti, "2.2.0", "Let EXEC do nothing if a key is written before it", runWatch),
		row("unwatch", 1, fast, 0, "2.2.0", "Forget all watched keys", runUnwatch),
	}
	rows[3].keys = [3]int{1, -1, 1}
	return rows
}

// transaction is what MULTI has queued.
type transaction struct {
	queued []queued
	bytes  int
	broken bool // a command could not be queued: EXEC will refuse
}

type queued struct {
	cmd  *command
	args [][]byte
}

// watched is a key with the version that WATCH found.
type watched struct {
	key     []byte
	shard   shardmap.ShardID
	version uint64
}

// queue adds a command to the transaction. Its arguments are copied: they may
// wait for long, and would keep whole chunks of input alive.
func (t *transaction) queue(cmd *command, args [][]byte) (fault string) {
	size := argsBytes(args)
	if len(t.queued) >= queuedMax || t.bytes+size > queuedBytesMax {
		t.breakUp()
		return "ERR the transaction is too large"
	}
	if t.broken {
		return ""
	}
	t.bytes += size
	t.queued = append(t.queued, queued{cmd, cloneArgs(args)})
	return ""
}

// breakUp marks a transaction that EXEC must refuse; what is queued is no
// longer needed.
func (t *transaction) breakUp() {
	t.broken = true
	t.queued, t.bytes = nil, 0
}

// argsBytes is what a command's arguments hold, with their headers.
func argsBytes(args [][]byte) int {
	size := opBytes * len(args)
	for _, a := range args {
		size += len(a)
	}
	return size
}

func cloneArgs(args [][]byte) [][]byte {
	size := 0
	for _, a := range args {
		size += len(a)
	}
	bytes := make([]byte, 0, size)
	clone := make([][]byte, len(args))
	for i, a := range args {
		from := len(bytes)
		bytes = append(bytes, a...)
		clone[i] = bytes[from:len(bytes):len(bytes)]
	}
	return clone
}

func runMulti(j *job) {
	if j.c.tx != nil {
		j.fail("ERR MULTI calls can not be nested")
		return
	}
	j.c.tx = new(transaction)
	j.reply(okReply())
}

func runDiscard(j *job) {
	if j.c.tx == nil {
		j.fail("ERR DISCARD without MULTI")
		return
	}
	j.c.tx, j.c.watched = nil, nil
	j.reply(okReply())
}

func runUnwatch(j *job) {
	j.c.watched = nil
	j.reply(okReply())
}

// runWatch reads the keys' versions. EXEC compares them in the same request
// as its operations.
func runWatch(j *job) {
	if j.c.tx != nil {
		j.fail("ERR WATCH inside MULTI is not allowed")
		return
	}
	keys := j.args[1:]
	if len(j.c.watched)+len(keys) > watchedMax {
		j.fail("ERR too many watched keys")
		return
	}
	found := make([]watched, len(keys))
	requests := make([]*flotillav1.Request, len(keys))
	for i, key := range cloneArgs(keys) {
		shard, ok := j.shard(key)
		if !ok {
			return
		}
		found[i] = watched{key: key, shard: shard}
		requests[i] = &flotillav1.Request{Shard: uint64(shard), Ops: []*flotillav1.Op{newGet(key, true)}}
	}
	if !j.settle() {
		return
	}
	responses, ok := j.callAll(requests)
	if !ok {
		return
	}
	for i, resp := range responses {
		found[i].version = resp.Results[0].GetVersion()
		if !j.c.watches(found[i].key) {
			j.c.watched = append(j.c.watched, found[i])
		}
	}
	j.reply(okReply())
}

// watches says whether a key is watched already; its first version counts.
func (c *conn) watches(key []byte) bool {
	for i := range c.watched {
		if string(c.watched[i].key) == string(key) {
			return true
		}
	}
	return false
}

// execute gathers a transaction's operations into one request.
type execute struct {
	call    *call
	shard   shardmap.ShardID
	begun   bool // shard is set
	crossed bool // keys of more than one shard
	bytes   int
}

// in notes that a key of that shard takes part.
func (e *execute) in(shard shardmap.ShardID) {
	e.crossed = e.crossed || e.begun && shard != e.shard
	e.shard, e.begun = shard, true
}

func (e *execute) add(p *part) {
	e.in(p.shard)
	e.bytes += p.bytes
	e.call.write = e.call.write || p.write
	e.call.add(p, p.bytes)
}

// watch adds the compares of the watched keys. A transaction with none but
// them reads one, so that it is a request at all.
func (e *execute) watch(j *job, keys []watched) {
	for _, w := range keys {
		e.in(w.shard)
		e.bytes += len(w.key) + opBytes
		e.call.req.Compares = append(e.call.req.Compares,
			&flotillav1.Compare{Target: flotillav1.Compare_VERSION, Key: w.key, Version: w.version})
	}
	if len(keys) > 0 && len(e.call.items) == 0 {
		e.add(&part{shard: keys[0].shard, op: newGet(keys[0].key, true), item: item{slot: j.slot, dst: j.dst, shape: shapeNone}})
	}
}

// runExec makes one request of the transaction: the versions of the watched
// keys as compares, the commands' operations in their order. So it takes
// effect as a whole or not at all, as a single log entry.
func runExec(j *job) {
	tx, keys := j.c.tx, j.c.watched
	if tx == nil {
		j.fail("ERR EXEC without MULTI")
		return
	}
	j.c.tx, j.c.watched = nil, nil
	if tx.broken {
		j.fail("EXECABORT Transaction discarded because of previous errors.")
		return
	}
	e := &execute{call: newCall(false)}
	e.call.sealed = true
	elems := make([]reply, len(tx.queued))
	j.runQueued(tx.queued, elems, e)
	j.reply(arrayReply(elems...))
	e.watch(j, keys)
	switch {
	case e.crossed:
		j.fail(errCrossSlot)
	case e.bytes > requestBytesMax:
		j.fail(errTooBig)
	case e.begun:
		j.whole, j.wholeShard = e.call, e.shard
	}
}

// runQueued runs the queued commands' handlers. Those on keys add to e, the
// others put their reply into its place at once.
func (j *job) runQueued(queued []queued, elems []reply, e *execute) {
	cmd, args, dst := j.cmd, j.args, j.dst
	j.exec = e
	for i, q := range queued {
		j.cmd, j.args, j.dst = q.cmd, q.args, &elems[i]
		q.cmd.run(j)
	}
	j.exec = nil
	j.cmd, j.args, j.dst = cmd, args, dst
}
