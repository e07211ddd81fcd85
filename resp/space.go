package resp

import (
	"strconv"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Limits of commands that go over all shards.
const (
	shardsAtOnce   = 64       // requests under way for one such command
	scanShardsMax  = 1 << 10  // shards that one SCAN looks into before it answers
	scanCountMax   = 10 << 10 // keys that one SCAN asks for, whatever COUNT says
	scanCountFirst = 10
	keysMax        = 100_000 // keys that KEYS gives
)

const errCursor = "ERR unknown cursor: it was not given by this node, or is older than ten minutes, or too many scans are under way; begin again with 0"

// spaceCommands are the commands on all keys.
func spaceCommands() []*command {
	row := func(name string, arity int, flags, group, since, summary string, run func(*job)) *command {
		return &command{name: name, arity: arity, flags: flags, categories: categoriesOf("keyspace", flags),
			group: group, since: since, summary: summary, run: run, mode: settled | notInMulti}
	}
	rows := []*command{
		row("scan", -2, "readonly", "generic", "2.8.0", "Go through the keys page by page", runScan),
		row("keys", 2, "readonly", "generic", "1.0.0", "All keys that match a pattern", runKeys),
		row("dbsize", 1, "readonly fast", "server", "1.0.0", "Count the keys", runDBSize),
		row("flushdb", -1, "write", "server", "1.0.0", "Delete all keys, shard by shard", runFlush),
		row("flushall", -1, "write", "server", "1.0.0", "Delete all keys, shard by shard", runFlush),
	}
	for _, c := range rows {
		if c.name == "keys" || c.name[0] == 'f' {
			c.categories += " @dangerous"
		}
	}
	return rows
}

// walk is a pass over keys in the order of shards and, in a shard, of keys.
type walk struct {
	at     position
	shards int
	prefix []byte
}

func (w *walk) done() bool { return int(w.at.shard) >= w.shards }

// step reads up to limit keys from each of the next n shards and calls each
// with them, in order, until it says stop. The walk then stands behind the last
// page that was taken.
func (w *walk) step(j *job, n, limit int, each func(pairs []*flotillav1.KeyValue) (stop bool)) bool {
	n = min(n, w.shards-int(w.at.shard))
	requests := make([]*flotillav1.Request, n)
	for i := range requests {
		scan := &flotillav1.Scan{Prefix: w.prefix, Limit: uint32(limit), KeysOnly: true}
		if i == 0 {
			scan.Start = w.at.start
		}
		requests[i] = &flotillav1.Request{
			Shard: uint64(w.at.shard) + uint64(i),
			Ops:   []*flotillav1.Op{{Op: &flotillav1.Op_Scan{Scan: scan}}},
		}
	}
	responses, ok := j.callAll(requests)
	if !ok {
		return false
	}
	for _, resp := range responses {
		page := resp.Results[0]
		if len(page.GetNext()) > 0 {
			w.at.start = page.GetNext()
			each(page.GetPairs())
			return true
		}
		w.at = position{shard: w.at.shard + 1}
		if each(page.GetPairs()) {
			return true
		}
	}
	return true
}

// scanOptions are SCAN's.
type scanOptions struct {
	count   int
	pattern []byte
	none    bool // a type that no key has
}

func (o *scanOptions) parse(j *job, args [][]byte) bool {
	o.count = scanCountFirst
	for i := 0; i < len(args); i += 2 {
		if i+1 == len(args) {
			return j.failed(errSyntax)
		}
		value := args[i+1]
		switch {
		case isWord(args[i], "count"):
			n, ok := j.integer(value)
			if !ok {
				return false
			}
			if n < 1 {
				return j.failed(errSyntax)
			}
			o.count = int(min(n, scanCountMax))
		case isWord(args[i], "match"):
			o.pattern = value
		case isWord(args[i], "type"):
			o.none = !isWord(value, "string")
		default:
			return j.failed(errSyntax)
		}
	}
	return true
}

func (o *scanOptions) matches(key []byte) bool {
	return o.pattern == nil || globMatch(o.pattern, key)
}

// runScan answers one page. A page goes over more and more shards at once
// while they bring few keys, so that a small database in many shards takes few
// calls.
func runScan(j *job) {
	id, err := strconv.ParseUint(string(j.arg(1)), 10, 64)
	if err != nil {
		j.fail("ERR invalid cursor")
		return
	}
	var o scanOptions
	if !o.parse(j, j.args[2:]) {
		return
	}
	w, ok := j.walkFrom(id, o.pattern)
	if !ok {
		return
	}
	var keys [][]byte
	found, width, looked := 0, 1, 0
	for !o.none && !w.done() && found < o.count && looked < scanShardsMax {
		ok := w.step(j, width, o.count-found, func(pairs []*flotillav1.KeyValue) bool {
			found += len(pairs)
			for _, pair := range pairs {
				if o.matches(pair.GetKey()) {
					keys = append(keys, pair.GetKey())
				}
			}
			return found >= o.count
		})
		if !ok {
			return
		}
		looked += width
		width = min(2*width, shardsAtOnce)
	}
	next := uint64(0)
	if !o.none && !w.done() {
		next = j.c.server.cursors.keep(id, w.at)
	}
	j.reply(arrayReply(textReply(strconv.FormatUint(next, 10)), bulksReply(keys)))
}

// walkFrom is a walk from where a cursor stands, or an error is answered.
func (j *job) walkFrom(id uint64, pattern []byte) (*walk, bool) {
	w := &walk{shards: j.c.server.shards(), prefix: globPrefix(pattern)}
	if w.shards == 0 {
		return nil, j.failed(errNoShards)
	}
	if id == 0 {
		return w, true
	}
	var ok bool
	if w.at, ok = j.c.server.cursors.find(id); !ok {
		return nil, j.failed(errCursor)
	}
	return w, true
}

func runKeys(j *job) {
	pattern := j.arg(1)
	w, ok := j.walkFrom(0, pattern)
	if !ok {
		return
	}
	var keys [][]byte
	for !w.done() {
		ok := w.step(j, shardsAtOnce, scanCountMax, func(pairs []*flotillav1.KeyValue) bool {
			for _, pair := range pairs {
				if globMatch(pattern, pair.GetKey()) {
					keys = append(keys, pair.GetKey())
				}
			}
			return len(keys) > keysMax
		})
		if !ok {
			return
		}
		if len(keys) > keysMax {
			j.fail("ERR more than " + itoa(keysMax) + " keys match; use SCAN")
			return
		}
	}
	j.reply(bulksReply(keys))
}

// runDBSize counts shard by shard; it is not one snapshot.
func runDBSize(j *job) {
	total := int64(0)
	ok := j.eachShard(func(shard shardmap.ShardID, start []byte) *flotillav1.Op {
		return &flotillav1.Op{Op: &flotillav1.Op_Scan{Scan: &flotillav1.Scan{Start: start, CountOnly: true}}}
	}, func(r *flotillav1.Result) { total += int64(r.GetCount()) })
	if ok {
		j.reply(intReply(total))
	}
}

// runFlush deletes shard by shard; it is not one moment.
func runFlush(j *job) {
	if len(j.args) > 2 || len(j.args) == 2 && !isWord(j.arg(1), "async") && !isWord(j.arg(1), "sync") {
		j.fail(errSyntax)
		return
	}
	ok := j.eachShard(func(shardmap.ShardID, []byte) *flotillav1.Op {
		return &flotillav1.Op{Op: &flotillav1.Op_Clear{Clear: &flotillav1.Clear{}}}
	}, func(*flotillav1.Result) {})
	if ok {
		j.reply(okReply())
	}
}

// eachShard carries out an operation on every shard, some at a time, and again
// from where it stopped on a shard whose result says so.
func (j *job) eachShard(op func(shardmap.ShardID, []byte) *flotillav1.Op, each func(*flotillav1.Result)) bool {
	shards := j.c.server.shards()
	if shards == 0 {
		return j.failed(errNoShards)
	}
	var requests []*flotillav1.Request
	for next := 0; next < shards || len(requests) > 0; {
		for ; next < shards && len(requests) < shardsAtOnce; next++ {
			requests = append(requests, &flotillav1.Request{Shard: uint64(next), Ops: []*flotillav1.Op{op(shardmap.ShardID(next), nil)}})
		}
		responses, ok := j.callAll(requests)
		if !ok {
			return false
		}
		var again []*flotillav1.Request
		for i, resp := range responses {
			r := resp.Results[0]
			each(r)
			if len(r.GetNext()) > 0 {
				shard := requests[i].Shard
				again = append(again, &flotillav1.Request{Shard: shard, Ops: []*flotillav1.Op{op(shardmap.ShardID(shard), r.GetNext())}})
			}
		}
		requests = again
	}
	return true
}
