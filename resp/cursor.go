package resp

import (
	"container/list"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Limits of the SCAN cursors that a node keeps. At the number or the bytes the
// one not used for longest goes first; its scan is told and starts over.
const (
	cursorLife     = 10 * time.Minute
	cursorsMax     = 16 << 10
	cursorBytesMax = 32 << 20
	cursorBytes    = 128 // of one, without its key
)

// position is where a scan goes on: at key start of a shard.
type position struct {
	shard shardmap.ShardID
	start []byte
}

// cursors are the scans of this node that are under way. Each step of a scan
// gets a new number; the number before it stays good until the new one is
// used, so a client that lost a reply can ask again.
type cursors struct {
	mu     sync.Mutex
	byID   map[uint64]*list.Element // of cursor
	recent list.List                // the most recently used first
	bytes  int
	now    func() time.Time
}

type cursor struct {
	id, before uint64
	position   position
	used       time.Time
}

func newCursors(now func() time.Time) *cursors {
	return &cursors{byID: make(map[uint64]*list.Element), now: now}
}

// keep stores a position under a new number. before is the cursor that led
// there, 0 if the scan began.
func (t *cursors) keep(before uint64, p position) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	id := t.newID()
	t.byID[id] = t.recent.PushFront(&cursor{id: id, before: before, position: p, used: t.now()})
	t.bytes += cursorBytes + len(p.start)
	t.forget()
	return id
}

// find is the position under a number. Using it ends the one before.
func (t *cursors) find(id uint64) (position, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forget()
	e := t.byID[id]
	if e == nil {
		return position{}, false
	}
	c := e.Value.(*cursor)
	if before := t.byID[c.before]; before != nil {
		t.remove(before)
	}
	c.before = 0
	c.used = t.now()
	t.recent.MoveToFront(e)
	return c.position, true
}

// newID is a number not in use that also clients with signed integers can
// hold. It is random so that one from before a restart is not another's.
func (t *cursors) newID() uint64 {
	for {
		id := rand.Uint64() >> 1
		if id != 0 && t.byID[id] == nil {
			return id
		}
	}
}

// forget drops what is too old or too much.
func (t *cursors) forget() {
	oldest := t.now().Add(-cursorLife)
	for e := t.recent.Back(); e != nil; e = t.recent.Back() {
		if len(t.byID) <= cursorsMax && t.bytes <= cursorBytesMax && e.Value.(*cursor).used.After(oldest) {
			return
		}
		t.remove(e)
	}
}

func (t *cursors) remove(e *list.Element) {
	c := t.recent.Remove(e).(*cursor)
	delete(t.byID, c.id)
	t.bytes -= cursorBytes + len(c.position.start)
}
