package resp

import (
	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Limits of merging: commands of one connection and shard that wait for the
// one under way become one request. A write becomes part of a log entry, a
// read costs only its answer.
const (
	mergeOpsMax        = 1 << 10
	mergeWriteBytesMax = 1 << 20
	mergeReadBytesMax  = 4 << 20
)

// queue is what one connection has for one shard: one request is under way,
// and what comes meanwhile is merged into the next, so that a long pipeline
// takes few requests. That no command overtakes one before it, whatever is
// retried or given up, is kept by the connection's Lane.
type queue struct {
	shard   shardmap.ShardID
	flying  *call
	waiting []*call
	space   [2]*call
}

func (q *queue) last() *call {
	if len(q.waiting) == 0 {
		return nil
	}
	return q.waiting[len(q.waiting)-1]
}

// takeOff makes the first call that waits the one under way.
func (q *queue) takeOff() *call {
	c := q.waiting[0]
	q.waiting[0] = nil
	q.waiting = q.waiting[1:]
	if len(q.waiting) == 0 {
		q.waiting = q.space[:0]
	}
	q.flying = c
	return c
}

// splitAhead puts the items of a merged call back at the front, each as a
// request of its own.
func (q *queue) splitAhead(c *call) {
	waiting := make([]*call, 0, len(c.items)+len(q.waiting))
	for i := range c.items {
		waiting = append(waiting, c.only(i))
	}
	q.waiting = append(waiting, q.waiting...)
}

// part is what one command does to one key: operations that stay together.
type part struct {
	shard shardmap.ShardID
	write bool
	bytes int // about its size in a request
	item  item
	op    *flotillav1.Op
	more  []*flotillav1.Op // those behind the first, mostly none
}

// item says where the results of a part go.
type item struct {
	slot  *slot
	dst   *reply // inside slot.reply
	index int32  // into dst.list
	shape shape
	first int32 // its first op in the request
	n     int32 // its ops
	guess int32 // the bytes of value it is counted for
}

// call is one request on its way.
type call struct {
	pipe     *pipe
	queue    *queue
	write    bool
	sealed   bool // nothing is merged into it
	finished bool
	bytes    int
	items    []item
	req      flotillav1.Request

	itemSpace [1]item
	opSpace   [1]*flotillav1.Op
}

func newCall(write bool) *call {
	c := &call{write: write}
	c.items = c.itemSpace[:0]
	c.req.Ops = c.opSpace[:0]
	return c
}

// accepts says whether a part may join. Reads and writes stay apart: a read in
// a write would go through the log.
func (c *call) accepts(part *part, bytes int) bool {
	limit := mergeReadBytesMax
	if c.write {
		limit = mergeWriteBytesMax
	}
	return !c.sealed && c.write == part.write &&
		len(c.req.Ops)+1+len(part.more) <= mergeOpsMax && c.bytes+bytes <= limit
}

func (c *call) add(part *part, bytes int) {
	it := part.item
	it.first, it.n = int32(len(c.req.Ops)), int32(1+len(part.more))
	c.items = append(c.items, it)
	c.req.Ops = append(c.req.Ops, part.op)
	c.req.Ops = append(c.req.Ops, part.more...)
	c.bytes += bytes
}

// answered is the lane's callback.
func (c *call) answered(resp *flotillav1.Response, err error) {
	c.pipe.answered(c, resp, err)
}

// mustSplit says whether the request was refused as a whole, without effect,
// perhaps only for what was merged into it (an answer too large for one
// message): then its commands are asked one by one.
func (c *call) mustSplit(resp *flotillav1.Response, err error) bool {
	return !c.sealed && len(c.items) > 1 && answerCode(resp, err) == flotillav1.Code_INVALID
}

// only is a call of its own for item i.
func (c *call) only(i int) *call {
	it := c.items[i]
	one := &call{pipe: c.pipe, queue: c.queue, write: c.write, sealed: true}
	one.req.Shard, one.req.TimeoutMs = c.req.Shard, c.req.TimeoutMs
	one.req.Ops = c.req.Ops[it.first : it.first+it.n : it.first+it.n]
	it.first = 0
	one.items = []item{it}
	return one
}

// fill hands the results to the items' replies.
func (c *call) fill(resp *flotillav1.Response, err error) {
	fault := faultText(resp, err)
	unmet := fault == "" && len(c.req.Compares) > 0 && !resp.Compared
	if fault == "" && !unmet && len(resp.Results) != len(c.req.Ops) {
		fault = errMisfit
	}
	for i := range c.items {
		it := &c.items[i]
		switch s := it.slot; {
		case s.fault != "":
		case fault != "":
			s.fault = fault
			s.reply = reply{}
		case unmet:
			s.reply = nullArrayReply()
		default:
			it.fill(c.pipe, resp.Results[it.first:it.first+it.n])
		}
		c.pipe.partDone(it.slot)
	}
}
