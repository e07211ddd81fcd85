package resp

import (
	"sync"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Limits of what one connection may have under way. At any of them its reader
// stops until replies have been written, and so the client is slowed down by
// its own socket.
const (
	slotsMin     = 16       // the ring begins with this many reply slots
	slotsMax     = 16 << 10 // commands between their parsing and their reply's writing
	opsMax       = 16 << 10 // operations queued or submitted
	heldBytesMax = 16 << 20 // commands and replies held, those expected included

	// A single reply (of an MGET, say) that grows past this becomes an error.
	replyBytesMax = 64 << 20

	freeKept = 64 // slots and queues kept for reuse
)

// The size of the next value read is guessed from those before, so that a
// burst of reads cannot bring in more than heldBytesMax by much. The guess
// begins high and halves its distance to each smaller value.
const (
	valueGuessFirst = 256 << 10
	valueGuessMin   = 512
)

// slot is one command's place in the order of replies.
type slot struct {
	reply   reply
	fault   string // set if a request of it failed; written in place of reply
	missing int    // parts not there yet; the reader counts as one until it is done with the command
	weight  int    // of heldBytesMax
	values  int    // bytes of values in reply
	resp3   bool
	silent  bool // CLIENT REPLY OFF or SKIP: nothing is written
	pushed  bool
}

// pipe joins a connection's reader, its writer and its lane. The reader pushes
// commands: a slot each, in the order of their replies, and its parts, each an
// operation on one key, which wait in the queue of their shard. The lane's
// answers fill slots; the writer takes the filled ones from the head.
type pipe struct {
	lane      Lane
	timeoutMS uint32

	mu     sync.Mutex
	room   sync.Cond // the reader waits here: for limits, or for all to be answered
	filled sync.Cond // the writer waits here: for a filled head, calls to submit or the end

	ring       []*slot // a power of two long; slot i is ring[i&(len-1)]
	head, tail uint64

	queues map[shardmap.ShardID]*queue
	due    []*queue // begun since the last flush, nothing of them submitted yet
	next   []*call  // to be submitted by the writer: their queue's last call was answered

	open  int // slots pushed whose reply is not complete
	ops   int // operations in queues and calls
	held  int
	guess int

	ended     bool // the reader pushes no more
	abandoned bool // nobody waits for replies any more

	freeSlots  []*slot
	freeQueues []*queue
}

func newPipe(lane Lane, timeoutMS uint32) *pipe {
	p := &pipe{
		lane:      lane,
		timeoutMS: timeoutMS,
		ring:      make([]*slot, slotsMin),
		queues:    make(map[shardmap.ShardID]*queue),
		guess:     valueGuessFirst,
	}
	p.room.L, p.filled.L = &p.mu, &p.mu
	return p
}

// slot is a fresh slot for a command of that many bytes. It waits while the
// connection is at a limit, and is nil if the connection has been given up.
func (p *pipe) slot(bytes int) *slot {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.waitForRoom(bytes) {
		return nil
	}
	s := p.takeSlot()
	s.weight = bytes
	p.held += bytes
	return s
}

func (p *pipe) takeSlot() *slot {
	n := len(p.freeSlots)
	if n == 0 {
		return new(slot)
	}
	s := p.freeSlots[n-1]
	p.freeSlots = p.freeSlots[:n-1]
	return s
}

// waitForRoom waits until one more command of that many bytes fits. What is
// due is submitted first: its answers are what makes room.
func (p *pipe) waitForRoom(bytes int) bool {
	for p.full(bytes) && !p.abandoned {
		p.submitDue()
		if p.full(bytes) && !p.abandoned {
			p.room.Wait()
		}
	}
	return !p.abandoned
}

// full says whether a limit is reached. A command alone always fits.
func (p *pipe) full(bytes int) bool {
	if p.held == 0 && p.ops == 0 {
		return false
	}
	return p.tail-p.head >= slotsMax || p.ops >= opsMax || p.held+bytes > heldBytesMax
}

// push adds parts to a command. The first push of a slot gives it its place in
// the order; with the last, the slot is complete as soon as its parts are.
func (p *pipe) push(s *slot, parts []part, last bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.place(s)
	s.missing += len(parts)
	for i := range parts {
		p.addPart(&parts[i])
	}
	if last {
		p.partDone(s)
	}
}

// pushCall adds a command that is a whole request, which is not merged with
// others.
func (p *pipe) pushCall(s *slot, shard shardmap.ShardID, c *call) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.place(s)
	s.missing += len(c.items)
	p.ops += len(c.req.Ops)
	p.enqueue(p.queue(shard), c)
	p.partDone(s)
}

// breathe lets the parts of a command with very many keys go, and waits until
// more may be pushed.
func (p *pipe) breathe() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.ops >= opsMax && !p.abandoned {
		p.submitDue()
		if p.ops >= opsMax && !p.abandoned {
			p.room.Wait()
		}
	}
}

// place puts a slot at the tail of the ring.
func (p *pipe) place(s *slot) {
	if s.pushed {
		return
	}
	s.pushed = true
	s.missing++
	p.open++
	if p.tail-p.head == uint64(len(p.ring)) {
		p.grow()
	}
	p.ring[p.tail&uint64(len(p.ring)-1)] = s
	p.tail++
}

func (p *pipe) grow() {
	ring := make([]*slot, 2*len(p.ring))
	for i := p.head; i != p.tail; i++ {
		ring[i&uint64(len(ring)-1)] = p.ring[i&uint64(len(p.ring)-1)]
	}
	p.ring = ring
}

// partDone takes one off what a slot waits for.
func (p *pipe) partDone(s *slot) {
	s.missing--
	if s.missing == 0 {
		p.open--
	}
}

// addPart puts a part at the end of its shard's queue, into the request that
// waits there if it fits.
func (p *pipe) addPart(part *part) {
	bytes := part.bytes
	if part.item.shape.hasValue() {
		bytes += p.guess
		part.item.guess = int32(p.guess)
		part.item.slot.weight += p.guess
		p.held += p.guess
	}
	q := p.queue(part.shard)
	c := q.last()
	if c == nil || !c.accepts(part, bytes) {
		c = newCall(part.write)
		p.enqueue(q, c)
	}
	c.add(part, bytes)
	p.ops += 1 + len(part.more)
}

func (p *pipe) queue(shard shardmap.ShardID) *queue {
	q := p.queues[shard]
	if q == nil {
		if n := len(p.freeQueues); n > 0 {
			q, p.freeQueues = p.freeQueues[n-1], p.freeQueues[:n-1]
		} else {
			q = new(queue)
		}
		q.shard = shard
		p.queues[shard] = q
	}
	return q
}

func (p *pipe) enqueue(q *queue, c *call) {
	c.pipe, c.queue = p, q
	c.req.Shard = uint64(q.shard)
	c.req.TimeoutMs = p.timeoutMS
	q.waiting = append(q.waiting, c)
	if q.flying == nil && len(q.waiting) == 1 {
		p.due = append(p.due, q)
	}
}

// flush submits what was pushed since the last flush and lets the writer see
// replies that were complete at once. The reader calls it after each read, so
// that all commands of one read go on together.
func (p *pipe) flush() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.submitDue()
}

// submitDue is called with the lock held and lets go of it while it submits.
func (p *pipe) submitDue() {
	if p.headFilled() {
		p.filled.Signal()
	}
	if len(p.due) == 0 {
		return
	}
	due := p.due
	calls := make([]*call, len(due))
	for i, q := range due {
		calls[i] = q.takeOff()
		due[i] = nil
	}
	p.due = due[:0]
	p.mu.Unlock()
	p.submit(calls)
	p.mu.Lock()
}

// submit hands calls to the lane. Reader and writer may both do so at a time,
// but never for one shard.
func (p *pipe) submit(calls []*call) {
	for _, c := range calls {
		p.lane.Submit(&c.req, c.answered)
	}
}

func (p *pipe) headFilled() bool {
	return p.head != p.tail && p.ring[p.head&uint64(len(p.ring)-1)].missing == 0
}

// settle submits what is due and waits until every command pushed has its
// reply. It is false if the connection has been given up.
func (p *pipe) settle() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.submitDue()
	for p.open > 0 && !p.abandoned {
		p.room.Wait()
	}
	return !p.abandoned
}

// answered takes a call's response: it fills the slots of its items and lets
// the queue's next call go.
func (p *pipe) answered(c *call, resp *flotillav1.Response, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.finished {
		return
	}
	c.finished = true
	if c.mustSplit(resp, err) {
		c.queue.splitAhead(c)
	} else {
		c.fill(resp, err)
		p.ops -= len(c.req.Ops)
	}
	p.nextOf(c.queue)
	if p.headFilled() || len(p.next) > 0 {
		p.filled.Signal()
	}
	p.room.Signal()
}

// nextOf lets a queue's next call go, or the queue if it has none.
func (p *pipe) nextOf(q *queue) {
	q.flying = nil
	if len(q.waiting) > 0 {
		p.next = append(p.next, q.takeOff())
		return
	}
	delete(p.queues, q.shard)
	if len(p.freeQueues) < freeKept {
		p.freeQueues = append(p.freeQueues, q)
	}
}

// valueRead notes the size of a value that came in, for the guess and for the
// limits; guessed is what it was counted for until now.
func (p *pipe) valueRead(s *slot, n, guessed int) {
	s.weight += n - guessed
	p.held += n - guessed
	if n > p.guess {
		p.guess = n
	} else {
		p.guess = max(p.guess-(p.guess-n+1)/2, valueGuessMin)
	}
	s.values += n
	if s.values > replyBytesMax && s.fault == "" {
		s.fault = "ERR the reply would be larger than 64 MiB; ask for fewer keys at a time"
		s.reply = reply{}
	}
}

// end says that the reader pushes no more; the writer ends after the last
// reply.
func (p *pipe) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	p.submitDue()
	p.filled.Signal()
}

// abandon says that nobody waits for replies any more: reader and writer end
// as soon as they notice.
func (p *pipe) abandon() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.abandoned = true
	p.room.Broadcast()
	p.filled.Broadcast()
}

// turnSlots is how many replies the writer takes at once.
const turnSlots = 256

// collect waits for something to do for the writer: filled slots from the head
// in their order, appended to slots, and calls to submit, appended to calls.
// The slots of the turn before are given back. It is false when all is written.
func (p *pipe) collect(slots []*slot, calls []*call) (_ []*slot, _ []*call, more bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.giveBack(slots)
	slots, calls = slots[:0], calls[:0]
	for !p.abandoned && !p.headFilled() && len(p.next) == 0 && !(p.ended && p.head == p.tail) {
		p.filled.Wait()
	}
	if p.abandoned {
		return nil, nil, false
	}
	for p.headFilled() && len(slots) < turnSlots {
		i := p.head & uint64(len(p.ring)-1)
		slots = append(slots, p.ring[i])
		p.ring[i] = nil
		p.head++
	}
	calls = append(calls, p.next...)
	clear(p.next)
	p.next = p.next[:0]
	return slots, calls, len(slots)+len(calls) > 0
}

// giveBack takes written slots out of the account and keeps some for reuse.
func (p *pipe) giveBack(slots []*slot) {
	for _, s := range slots {
		p.held -= s.weight
		if len(p.freeSlots) < freeKept+turnSlots {
			*s = slot{}
			p.freeSlots = append(p.freeSlots, s)
		}
	}
	if len(slots) > 0 {
		p.room.Signal()
	}
	if p.head == p.tail && len(p.ring) > slotsMin && p.open == 0 {
		p.shrink()
	}
}

// shrink gives back what a burst needed, once it is over.
func (p *pipe) shrink() {
	if len(p.ring) > turnSlots {
		p.ring = make([]*slot, slotsMin)
		p.head, p.tail = 0, 0
	}
}

// busy says whether replies are owed.
func (p *pipe) busy() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open > 0 || p.head != p.tail
}
