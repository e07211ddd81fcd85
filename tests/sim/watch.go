package sim

import (
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/client/routing"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
	"github.com/flotilla-kv/flotilla/shardkv"
)

// watcher watches all keys through whatever happens, over the connections of the
// first client and by its router's routes, as the client's Watcher does. It must
// be told every change once and in order, unless it is told that it cannot: that
// is seen by the keys, of which counters grow by one and lists by a token.
type watcher struct {
	w       *world
	c       *client
	shards  []*watchedShard // all
	streams map[raft.GroupID]*watchStream
	keys    map[string]*watchedKey
}

// watchedShard is how far the watcher has come in a shard.
type watchedShard struct {
	id      shardmap.ShardID
	start   flotillav1.WatchFrom_Start
	version uint64
	begun   bool // in its stream
	stream  *watchStream
	retry   time.Duration // not before
}

// watchedKey is what was told of a key last.
type watchedKey struct {
	shard   shardmap.ShardID
	present bool
	value   string
	version uint64
	stated  bool // since the state of its shard was begun
}

// watchStream is a stream from a node, which lives as long as both ends do.
type watchStream struct {
	group raft.GroupID
	to    routing.Target
	node  *node
	heard time.Duration // when something came last
	over  bool
}

// Times of the watcher, as the client's.
const (
	watchPlaceEvery = 20 * time.Millisecond
	watchSilence    = 4 * time.Second
	watchWaitMost   = 500 * time.Millisecond
)

var errStreamOver = errors.New("the stream is over")

// newWatcher begins to watch, before anything is written.
func (w *world) newWatcher() {
	v := &watcher{w: w, c: w.clients[0], streams: make(map[raft.GroupID]*watchStream), keys: make(map[string]*watchedKey)}
	for id := range w.profile.shards {
		v.shards = append(v.shards, &watchedShard{id: shardmap.ShardID(id), start: flotillav1.WatchFrom_STATE})
	}
	w.watcher = v
	w.every(func() time.Duration { return watchPlaceEvery }, v.place)
}

// place begins streams for shards that are in none; where a group has one already,
// that one ends, and one for all begins next time.
func (v *watcher) place() {
	w := v.w
	for _, s := range v.sorted() {
		if w.now-s.heard > watchSilence {
			v.end(s, watchWaitMost)
		}
	}
	byGroup := make(map[raft.GroupID][]*watchedShard)
	for _, sh := range v.shards {
		if sh.stream != nil || sh.retry > w.now {
			continue
		}
		if group := v.c.router.Owner(sh.id); group != 0 {
			byGroup[group] = append(byGroup[group], sh)
		}
	}
	for _, group := range slices.Sorted(maps.Keys(byGroup)) {
		if s := v.streams[group]; s != nil {
			v.end(s, 0)
			continue
		}
		v.open(group, byGroup[group])
	}
	v.c.pump()
}

func (v *watcher) sorted() (all []*watchStream) {
	for _, group := range slices.Sorted(maps.Keys(v.streams)) {
		all = append(all, v.streams[group])
	}
	return all
}

// end lets a stream go; its shards are tried again after up to wait.
func (v *watcher) end(s *watchStream, wait time.Duration) {
	if s.over {
		return
	}
	s.over = true
	delete(v.streams, s.group)
	retry := v.w.now + v.w.upTo(wait)
	for _, sh := range v.shards {
		if sh.stream == s {
			sh.stream, sh.begun, sh.retry = nil, false, retry
		}
	}
}

// open asks a group's leader for a stream.
func (v *watcher) open(group raft.GroupID, shards []*watchedShard) {
	w := v.w
	to := v.c.router.Leader(w.clock(), group)
	at := slices.IndexFunc(w.nodes, func(n *node) bool { return n.addr == to.Addr })
	if at < 0 {
		return
	}
	s := &watchStream{group: group, to: to, node: w.nodes[at], heard: w.now}
	v.streams[group] = s
	q := &flotillav1.WatchRequest{ClusterId: clusterID, Group: uint64(group)}
	for _, sh := range shards {
		sh.stream = s
		q.Shards = append(q.Shards, &flotillav1.WatchFrom{Shard: uint64(sh.id), Start: sh.start, Version: sh.version})
	}
	d, passes := w.network.passes(party(v.c.place), party(s.node.place))
	if !passes {
		return // nobody answers
	}
	w.after(d, func() {
		if !s.node.up() {
			v.left(s, nil)
			return
		}
		s.node.forLife(0, func() { s.node.serveWatch(q, func(r *flotillav1.WatchResponse) error { return v.send(s, r) }) })
	})
}

// serveWatch serves a stream for as long as the process lives.
func (n *node) serveWatch(q *flotillav1.WatchRequest, send func(*flotillav1.WatchResponse) error) {
	n.w.note("watch", n.place, q.GetGroup(), uint64(len(q.GetShards())), q.String)
	n.watches = append(n.watches, n.kv.WatchDirectly(q, send))
	n.settle()
}

// turnWatches tells all watches of the process what there is to tell.
func (n *node) turnWatches() {
	now := n.clock()
	n.watches = slices.DeleteFunc(n.watches, func(d *shardkv.DirectWatch) bool { return !d.Turn(now) })
}

// send brings what a node says to the watcher.
func (v *watcher) send(s *watchStream, r *flotillav1.WatchResponse) error {
	d, passes := v.w.network.passes(party(s.node.place), party(v.c.place))
	if s.over || !passes {
		return errStreamOver // the watcher hears nothing, and leaves in time
	}
	v.w.after(d, func() { v.hear(s, r) })
	return nil
}

func (v *watcher) hear(s *watchStream, r *flotillav1.WatchResponse) {
	w := v.w
	if s.over {
		return
	}
	s.heard = w.now
	switch r.GetCode() {
	case flotillav1.Code_OK:
	case flotillav1.Code_INTERNAL, flotillav1.Code_INVALID:
		w.fail("Watches", "node %d of group %d answers %v: %s", s.node.place, s.group, r.GetCode(), r.GetMessage())
		return
	default:
		v.left(s, r)
		return
	}
	for _, part := range r.GetParts() {
		w.note("told", v.c.place, part.GetShard(), part.GetVersion(), part.String)
		sh := v.shards[part.GetShard()]
		if sh.stream != s {
			w.fail("Watches", "group %d tells of shard %d, which it was not asked for", s.group, sh.id)
			return
		}
		v.part(s, sh, part)
	}
	v.c.pump()
}

// left tells the router how a stream ended; nil: the node does not answer.
func (v *watcher) left(s *watchStream, r *flotillav1.WatchResponse) {
	v.c.router.WatchEnded(s.group, s.to, r.GetCode(), raft.NodeID(r.GetLeaderNode()), r.GetLeaderAddr())
	v.end(s, watchWaitMost)
	v.c.pump()
}

// part takes in what is said of a shard.
func (v *watcher) part(s *watchStream, sh *watchedShard, p *flotillav1.WatchPart) {
	back := func(wait time.Duration) { sh.stream, sh.begun, sh.retry = nil, false, v.w.now+v.w.upTo(wait) }
	switch p.GetKind() {
	case flotillav1.WatchPart_BEGIN:
		v.begin(s, sh, p.GetVersion())
	case flotillav1.WatchPart_CHANGES:
		v.changes(sh, p)
	case flotillav1.WatchPart_STATE, flotillav1.WatchPart_STATE_END:
		v.state(sh, p)
	case flotillav1.WatchPart_MOVED:
		if sh.begun && p.GetVersion() != sh.version {
			v.wrong(sh, "was told through version %d, and moves at %d", sh.version, p.GetVersion())
		}
		v.c.router.WatchMoved(sh.id, s.group, raft.GroupID(p.GetGroup()))
		back(0)
	case flotillav1.WatchPart_COMPACTED:
		if sh.start == flotillav1.WatchFrom_AFTER {
			v.w.counts.Resets++
		}
		sh.start = flotillav1.WatchFrom_STATE
		back(watchWaitMost)
	}
}

func (v *watcher) wrong(sh *watchedShard, format string, args ...any) {
	v.w.fail("Watches", "shard %d "+format, append([]any{sh.id}, args...)...)
}

func (v *watcher) begin(s *watchStream, sh *watchedShard, version uint64) {
	v.c.router.Watching(s.group, s.to)
	sh.begun = true
	if sh.start != flotillav1.WatchFrom_STATE {
		if version != sh.version {
			v.wrong(sh, "was told through version %d, and begins behind %d", sh.version, version)
		}
		return
	}
	if version < sh.version {
		v.wrong(sh, "was told through version %d, and begins anew at %d", sh.version, version)
	}
	sh.version = version
	for _, k := range v.keys {
		k.stated = k.stated && k.shard != sh.id
	}
}

// changes: each event is the next of its shard, and follows from what was told.
func (v *watcher) changes(sh *watchedShard, p *flotillav1.WatchPart) {
	if !sh.begun || sh.start != flotillav1.WatchFrom_AFTER || p.GetAfter() != sh.version {
		v.wrong(sh, "was told through version %d, and goes on behind %d", sh.version, p.GetAfter())
	}
	for _, e := range p.GetEvents() {
		if e.GetVersion() <= sh.version || e.GetVersion() > p.GetVersion() {
			v.wrong(sh, "was told through version %d, and is told %d of those through %d", sh.version, e.GetVersion(), p.GetVersion())
		}
		sh.version = e.GetVersion()
		key, value := string(e.GetKey()), string(e.GetValue())
		k := v.key(sh, key)
		if e.GetKind() == flotillav1.WatchEvent_PUT && !follows(key, k.value, value) {
			v.wrong(sh, "version %d: %s becomes %q, and was %q at version %d", e.GetVersion(), key, value, k.value, k.version)
		}
		k.tell(e.GetKind() == flotillav1.WatchEvent_PUT, value, e.GetVersion())
		v.w.counts.Watched++
	}
	sh.version = p.GetVersion()
}

func (v *watcher) key(sh *watchedShard, name string) *watchedKey {
	k := v.keys[name]
	if k == nil {
		k = &watchedKey{shard: sh.id}
		v.keys[name] = k
	}
	return k
}

func (k *watchedKey) tell(present bool, value string, version uint64) {
	k.present, k.value, k.version, k.stated = present, value, version, true
	if !present {
		k.value = ""
	}
}

// follows tells whether a value comes next: counters go up by one, and lists get
// a token.
func follows(key, before, value string) bool {
	switch key[0] {
	case 'c':
		a, _ := strconv.Atoi(before)
		b, err := strconv.Atoi(value)
		return err == nil && b == a+1
	case 'l':
		token, longer := strings.CutPrefix(value, before)
		return longer && strings.Index(token, ",") == len(token)-1
	}
	return true
}

// state: the keys as of the version that the shard begins with, none older than
// what was told.
func (v *watcher) state(sh *watchedShard, p *flotillav1.WatchPart) {
	if !sh.begun || sh.start != flotillav1.WatchFrom_STATE || p.GetVersion() != sh.version {
		v.wrong(sh, "begins anew at version %d, and is told the keys of %d", sh.version, p.GetVersion())
	}
	for _, e := range p.GetEvents() {
		key, value := string(e.GetKey()), string(e.GetValue())
		k := v.key(sh, key)
		if k.stated || e.GetVersion() < k.version || e.GetVersion() > sh.version || !grows(key, k.value, value) {
			v.wrong(sh, "at version %d has %s as %q of version %d, and it was %q of version %d before", sh.version, key, value, e.GetVersion(), k.value, k.version)
		}
		k.tell(true, value, e.GetVersion())
	}
	if p.GetKind() == flotillav1.WatchPart_STATE {
		return
	}
	sh.start = flotillav1.WatchFrom_AFTER
	for _, name := range slices.Sorted(maps.Keys(v.keys)) {
		k := v.keys[name]
		if k.shard != sh.id || k.stated {
			continue
		}
		if k.present && (name[0] == 'c' || name[0] == 'l') {
			v.wrong(sh, "has no %s at version %d, which was %q: nobody deletes it", name, sh.version, k.value)
		}
		k.tell(false, "", sh.version)
	}
}

// grows tells whether a value may come later.
func grows(key, before, value string) bool {
	switch key[0] {
	case 'c':
		a, _ := strconv.Atoi(before)
		b, err := strconv.Atoi(value)
		return err == nil && b >= a
	case 'l':
		return strings.HasPrefix(value, before)
	}
	return true
}

// waits says what the watcher was not told of what was read in the end; "": all is.
func (v *watcher) waits(final *op) string {
	k := v.keys[final.key]
	switch {
	case k == nil && !final.present:
		return ""
	case k == nil || k.present != final.present || final.present && (k.value != final.result || k.version != final.version):
		return "the watch was not told of " + final.String()
	}
	return ""
}
