package shardkv

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/multiraft"
	"github.com/flotilla-kv/flotilla/raft/statestore"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Times and limits of watches.
const (
	watchesMax       = 1024                   // streams of a node; further ones are answered BUSY
	watchPieceBytes  = 32 << 10               // of the history, read at once
	watchPageBytes   = 256 << 10              // of a shard's keys, sent at once
	watchBeat        = time.Second            // at least so often something is sent
	watchLeaderCheck = 100 * time.Millisecond // how late a watch learns that the node leads no longer
	watchImportMax   = 5 * time.Second        // for a shard to arrive; then its watch ends, and its caller looks where it is
	watchReadTimeout = 2 * time.Second        // for the leader's index
	watchViewTimeout = 30 * time.Second       // for one page of keys to be taken: its view holds memory and disk
	watchViewTries   = 100                    // for a view as of what is published
)

// watches are the streams of a node. Close ends them and waits for them.
type watches struct {
	mu      sync.Mutex // guards what follows
	all     map[*watch]struct{}
	closed  bool
	running sync.WaitGroup
}

// add takes a watch on; otherwise it says why not.
func (s *watches) add(w *watch) *flotillav1.WatchResponse {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return &flotillav1.WatchResponse{Code: flotillav1.Code_UNAVAILABLE, Message: stopping().Message}
	case len(s.all) >= watchesMax:
		return &flotillav1.WatchResponse{Code: flotillav1.Code_BUSY, Message: fmt.Sprintf("the node has %d watches", watchesMax)}
	case s.all == nil:
		s.all = make(map[*watch]struct{})
	}
	s.all[w] = struct{}{}
	s.running.Add(1)
	return nil
}

func (s *watches) remove(w *watch) {
	s.mu.Lock()
	delete(s.all, w)
	s.mu.Unlock()
	s.running.Done()
}

func (s *watches) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.running.Wait()
}

// pokeDeposed pokes the watches of groups that the node does not lead.
func (s *watches) pokeDeposed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.all {
		if !w.leads() {
			signal(w.poke)
		}
	}
}

// watchLeaders looks after whom the node leads.
func (s *Server) watchLeaders(ctx context.Context) {
	tick := time.NewTicker(watchLeaderCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.watches.pokeDeposed()
		}
	}
}

// watch is one stream and the goroutine that sends over it.
type watch struct {
	server  *Server
	host    Host
	group   *group
	about   watched
	send    func(*flotillav1.WatchResponse) error
	poke    chan struct{}
	stalled chan struct{} // has an element when a page of keys was not taken in time

	reader  historyReader
	shards  []shardmap.ShardID // those that have not ended
	cursors map[shardmap.ShardID]*watchCursor
	looked  bool // how shards stand may have changed
	since   time.Time
	// unsettled: some shard was not begun by then, or is not served.
	unsettled bool
	open      []shardmap.ShardID        // those that this piece has events of
	size      int                       // of the events that are not sent yet: their keys and values
	view      *statestore.View          // for values that this piece does not hold; nil: not yet needed
	out       *flotillav1.WatchResponse // is sent next
}

// watchCursor is how far a watch has come in one shard.
type watchCursor struct {
	from    *flotillav1.WatchFrom
	now     shardHistory
	begun   bool
	version uint64 // through it all has been read
	told    uint64 // through it all has been told
	part    *flotillav1.WatchPart
}

// Watch is a stream of changes; see the KV service.
func (s *Server) Watch(q *flotillav1.WatchRequest, stream grpc.ServerStreamingServer[flotillav1.WatchResponse]) error {
	if id := q.GetClusterId(); id != "" && id != s.options.ClusterID() {
		return grpcstatus.Errorf(codes.FailedPrecondition, "this is cluster %q, not %q", s.options.ClusterID(), id)
	}
	w, refused := s.newWatch(q, stream.Send)
	if refused == nil {
		refused = s.watches.add(w)
	}
	if refused != nil {
		return stream.Send(refused)
	}
	ctx, stop := context.WithCancel(stream.Context())
	defer stop()
	ended := make(chan error, 1)
	// A Send may be blocked for as long as the stream lasts, which is until
	// Watch returns.
	go func() {
		defer s.watches.remove(w)
		ended <- w.run(ctx)
	}()
	select {
	case err := <-ended:
		return err
	case <-w.stalled:
		return grpcstatus.Error(codes.ResourceExhausted, "the keys of a shard were not taken in time")
	case <-s.ctx.Done():
		return grpcstatus.Error(codes.Unavailable, stopping().Message)
	}
}

// newWatch checks a request; a refusal says what is wrong.
func (s *Server) newWatch(q *flotillav1.WatchRequest, send func(*flotillav1.WatchResponse) error) (*watch, *flotillav1.WatchResponse) {
	host, shards := s.host.Load(), s.options.Shards()
	if host == nil || shards == 0 {
		return nil, &flotillav1.WatchResponse{Code: flotillav1.Code_UNAVAILABLE, Message: "the node does not belong to a cluster yet"}
	}
	g := s.group(raft.GroupID(q.GetGroup()))
	if g == nil {
		return nil, &flotillav1.WatchResponse{Code: flotillav1.Code_UNAVAILABLE, Message: fmt.Sprintf("group %d is not on this node", q.GetGroup())}
	}
	if n := len(q.GetShards()); n > shards {
		return nil, watchInvalid("%d shards, and there are only %d", n, shards)
	}
	w := &watch{
		server:  s,
		host:    *host,
		group:   g,
		about:   watched{key: q.GetKey(), prefix: q.GetPrefix()},
		send:    send,
		poke:    make(chan struct{}, 1),
		stalled: make(chan struct{}, 1),
		reader:  historyReader{history: &g.machine.history},
		cursors: make(map[shardmap.ShardID]*watchCursor, len(q.GetShards())),
		since:   s.now(),
		out:     new(flotillav1.WatchResponse),
	}
	for _, from := range q.GetShards() {
		id := shardmap.ShardID(from.GetShard())
		if from.GetShard() >= uint64(shards) || w.cursors[id] != nil {
			return nil, watchInvalid("shard %d twice, or there are only %d", from.GetShard(), shards)
		}
		w.cursors[id] = &watchCursor{from: from}
		w.shards = append(w.shards, id)
	}
	switch key := q.GetKey(); {
	case len(w.shards) == 0:
		return nil, watchInvalid("a watch of no shard")
	case len(key) > KeyBytesMax || len(q.GetPrefix()) > KeyBytesMax:
		return nil, watchInvalid("keys have at most %d bytes", KeyBytesMax)
	case len(key) > 0 && (len(q.GetPrefix()) > 0 || len(w.shards) > 1 || shardmap.Shard(key, shards) != w.shards[0]):
		return nil, watchInvalid("the key is watched in its own shard, by itself")
	}
	return w, nil
}

func watchInvalid(format string, args ...any) *flotillav1.WatchResponse {
	return &flotillav1.WatchResponse{Code: flotillav1.Code_INVALID, Message: fmt.Sprintf(format, args...)}
}

// run is the watch's life. What it begins with it has from a leader that was
// one after the watch had come.
func (w *watch) run(ctx context.Context) error {
	if refused := w.confirm(ctx); refused != nil {
		return w.send(refused)
	}
	h := w.reader.history
	h.subscribe(w.poke)
	defer h.unsubscribe(w.poke)
	beat := time.NewTicker(watchBeat)
	defer beat.Stop()
	for {
		more, ended, err := w.step(ctx)
		if ended || err != nil {
			return err
		}
		next := w.poke
		if more {
			next = closedChannel
		}
		select {
		case <-next:
		case <-beat.C:
			if err := w.beat(); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// step tells what there is to tell; more: there is more; ended: the stream is to
// end.
func (w *watch) step(ctx context.Context) (more, ended bool, err error) {
	if !w.leads() {
		return false, true, w.send(w.notLeader())
	}
	more, err = w.turn(ctx)
	if gap := (*historyGap)(nil); errors.As(err, &gap) {
		return false, true, w.send(&flotillav1.WatchResponse{Code: flotillav1.Code_INTERNAL, Message: gap.Error()})
	}
	return more, len(w.shards) == 0, err
}

// beat says that the watch is there, and how far it has come.
func (w *watch) beat() error {
	if w.unsettled {
		w.judge() // a shard may have been waited for too long
	}
	w.progress()
	return w.flush(true)
}

var closedChannel = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// leads tells whether the node leads the group, with the replica that the watch
// began with, and hears of most others: a group that sleeps does not notice when
// it has lost them, and they may have another leader.
func (w *watch) leads() bool {
	return w.server.leads(w.host, w.group.id) && w.server.group(w.group.id) == w.group && w.server.options.HasQuorum(w.group.id)
}

// confirm asks for the leader's index, and waits until it is applied here.
func (w *watch) confirm(ctx context.Context) *flotillav1.WatchResponse {
	if !w.group.machine.Born() {
		return w.unborn()
	}
	done := make(chan error, 1)
	w.host.ReadIndex(w.group.id, multiraft.ReadOptions{}, func(_ raft.Index, err error) { done <- err })
	timeout := time.NewTimer(watchReadTimeout)
	defer timeout.Stop()
	select {
	case err := <-done:
		return w.unconfirmed(err)
	case <-timeout.C:
	case <-ctx.Done():
	}
	return &flotillav1.WatchResponse{Code: flotillav1.Code_UNAVAILABLE, Message: "no answer in time"}
}

func (w *watch) unborn() *flotillav1.WatchResponse {
	return &flotillav1.WatchResponse{Code: flotillav1.Code_UNAVAILABLE, Message: "the group does not know its shards yet"}
}

// unconfirmed is what a watch is answered whose group did not give the leader's
// index; nil: it did.
func (w *watch) unconfirmed(err error) *flotillav1.WatchResponse {
	if err == nil {
		return nil
	}
	refused := watchRefusal(w.server.failure(w.host, w.group.id, err))
	if refused.Code == flotillav1.Code_INTERNAL { // which is for gaps
		refused.Code = flotillav1.Code_UNAVAILABLE
	}
	return refused
}

// watchRefusal is a response as that of a watch.
func watchRefusal(r *flotillav1.Response) *flotillav1.WatchResponse {
	return &flotillav1.WatchResponse{Code: r.Code, Message: r.Message, LeaderNode: r.LeaderNode, LeaderAddr: r.LeaderAddr}
}

// notLeader ends a watch whose node leads the group no longer. A follower has
// the same history, but nobody would notice if it got no more.
func (w *watch) notLeader() *flotillav1.WatchResponse {
	leader, _, _ := w.host.Leader(w.group.id)
	return watchRefusal(w.server.notLeader(w.group.id, leader))
}

// watchMemory is what pieces of the history are read into.
var watchMemory = sync.Pool{New: func() any { b := make([]byte, watchPieceBytes); return &b }}

// turn tells what comes next; more: there is more.
func (w *watch) turn(ctx context.Context) (more bool, err error) {
	buf := watchMemory.Get().(*[]byte)
	piece, end := w.reader.read(*buf, w.shards, w.see)
	if w.looked {
		w.judge()
	}
	err = w.tell(piece)
	w.closeView()
	watchMemory.Put(buf)
	if err != nil {
		return false, err
	}
	w.closeParts()
	if w.unsettled && end {
		w.endMoved()
	}
	if err := w.flush(false); err != nil {
		return false, err
	}
	if w.unsettled && end {
		more, err = w.readStates(ctx)
	}
	return more || !end, err
}

// see takes in how a shard stands.
func (w *watch) see(id shardmap.ShardID, now shardHistory) {
	w.cursors[id].now, w.looked = now, true
}

// judge begins and ends shards by how they stand.
func (w *watch) judge() {
	w.looked, w.unsettled = false, false
	for _, id := range slices.Clone(w.shards) {
		c := w.cursors[id]
		w.unsettled = w.unsettled || !c.begun || !c.now.served
		switch {
		case c.begun && c.version < c.now.begin:
			w.compacted(id, c.now.begin)
		case c.begun:
		case c.now.served:
			w.begin(id, c)
		case !c.now.importing || w.server.now().Sub(w.since) >= watchImportMax:
			w.end(id, &flotillav1.WatchPart{Kind: flotillav1.WatchPart_MOVED, Group: uint64(c.now.peer)})
		}
	}
}

// begin begins a shard that is served. One that begins with its keys does when
// they are read.
func (w *watch) begin(id shardmap.ShardID, c *watchCursor) {
	switch c.from.GetStart() {
	case flotillav1.WatchFrom_STATE:
		return
	case flotillav1.WatchFrom_NOW:
		c.version = c.now.through
	default:
		// A version that the shard has not reached is from another life of it.
		if c.version = c.from.GetVersion(); c.version < c.now.begin || c.version > c.now.through {
			w.compacted(id, c.now.begin)
			return
		}
	}
	w.begun(id, c)
}

func (w *watch) begun(id shardmap.ShardID, c *watchCursor) {
	c.begun, c.told = true, c.version
	w.say(&flotillav1.WatchPart{Kind: flotillav1.WatchPart_BEGIN, Shard: uint64(id), Version: c.version})
}

// end ends a shard's watch.
func (w *watch) end(id shardmap.ShardID, part *flotillav1.WatchPart) {
	part.Shard = uint64(id)
	w.say(part)
	delete(w.cursors, id)
	w.shards = slices.DeleteFunc(w.shards, func(other shardmap.ShardID) bool { return other == id })
}

// endMoved ends the shards that are not served any more, of which everything
// was told.
func (w *watch) endMoved() {
	for _, id := range slices.Clone(w.shards) {
		if c := w.cursors[id]; c.begun && !c.now.served {
			w.progressOf(id, c)
			w.end(id, &flotillav1.WatchPart{Kind: flotillav1.WatchPart_MOVED, Version: c.version, Group: uint64(c.now.peer)})
		}
	}
}

func (w *watch) say(part *flotillav1.WatchPart) { w.out.Parts = append(w.out.Parts, part) }

// historyGap is a change that the history does not have, though it should: the
// node is wrong, which another stream would not mend.
type historyGap struct {
	group    raft.GroupID
	shard    shardmap.ShardID
	from, to uint64
}

func (e *historyGap) Error() string {
	return fmt.Sprintf("group %d shard %d: the history goes from version %d to %d", e.group, e.shard, e.from, e.to)
}

// tell goes through a piece of the history.
func (w *watch) tell(piece []byte) error {
	for {
		e, rest, whole := cutEvent(piece)
		if !whole {
			return nil
		}
		w.reader.offset += uint64(len(piece) - len(rest))
		piece = rest
		c := w.cursors[e.shard]
		if c == nil || !c.begun || e.version <= c.version {
			continue
		}
		if e.version != c.version+1 {
			return &historyGap{group: w.group.id, shard: e.shard, from: c.version, to: e.version}
		}
		c.version = e.version
		if err := w.tellEvent(&e, c); err != nil {
			return err
		}
	}
}

func (w *watch) tellEvent(e *event, c *watchCursor) error {
	if e.large && e.kind == flotillav1.WatchEvent_CLEAR { // of what, nobody knows any more
		w.lost(e, c)
		return nil
	}
	match, err := w.about.match(e)
	if err != nil || !match {
		return err
	}
	if e.large {
		held, err := w.stillThere(e)
		if err != nil {
			return err
		}
		if !held {
			w.lost(e, c)
			return nil
		}
	}
	if c.part == nil {
		c.part = &flotillav1.WatchPart{Kind: flotillav1.WatchPart_CHANGES, Shard: uint64(e.shard), After: c.told}
		w.open = append(w.open, e.shard)
	}
	told, err := e.toWire()
	c.part.Events = append(c.part.Events, told)
	if w.size += len(e.key) + len(e.value); err != nil || w.size < watchPageBytes {
		return err
	}
	// A piece may have many events whose values it does not hold.
	w.closeView() // to send may take long
	w.closeParts()
	return w.flush(false)
}

// lost ends a shard's watch at an event that cannot be told.
func (w *watch) lost(e *event, c *watchCursor) {
	w.closePart(e.shard, c, e.version-1)
	w.compacted(e.shard, e.version)
}

// compacted ends a shard's watch where what was before a version is not told.
func (w *watch) compacted(id shardmap.ShardID, version uint64) {
	w.server.stats.watchesCompacted.Add(1)
	w.end(id, &flotillav1.WatchPart{Kind: flotillav1.WatchPart_COMPACTED, Version: version})
}

// stillThere finds the value of an event that was too large to keep, unless the
// key has changed since.
func (w *watch) stillThere(e *event) (_ bool, err error) {
	if w.view == nil {
		if w.view, err = w.group.replica.View(); err != nil {
			return false, err
		}
	}
	b, ok, err := w.view.Get(valueKey(e.shard, w.cursors[e.shard].now.copy, e.key))
	if err != nil || !ok {
		return false, err
	}
	r, err := decodeRecord(b)
	e.value = r.value
	return err == nil && r.version == e.version, err
}

func (w *watch) closeView() {
	if w.view != nil {
		w.view.Close()
		w.view = nil
	}
}

// toWire is the event in memory of its own.
func (e *event) toWire() (*flotillav1.WatchEvent, error) {
	p := &flotillav1.WatchEvent{Kind: e.kind, Version: e.version, ExpireAtMs: e.expires}
	if e.kind == flotillav1.WatchEvent_CLEAR {
		s, err := decodeSpan(slices.Clone(e.value))
		p.Key, p.End, p.Prefix = s.start, s.end, s.prefix
		return p, err
	}
	p.Key, p.Value = slices.Clone(e.key), slices.Clone(e.value)
	return p, nil
}

// closeParts says through which version the events of this piece go.
func (w *watch) closeParts() {
	for _, id := range w.open {
		if c := w.cursors[id]; c != nil && c.part != nil {
			w.closePart(id, c, c.version)
		}
	}
	w.open = w.open[:0]
}

func (w *watch) closePart(id shardmap.ShardID, c *watchCursor, through uint64) {
	if c.part == nil {
		c.part = &flotillav1.WatchPart{Kind: flotillav1.WatchPart_CHANGES, Shard: uint64(id), After: c.told}
	}
	c.part.Version = through
	w.say(c.part)
	c.part, c.told = nil, through
}

// progress tells how far the watch has come where nothing matched.
func (w *watch) progress() {
	for _, id := range w.shards {
		w.progressOf(id, w.cursors[id])
	}
}

func (w *watch) progressOf(id shardmap.ShardID, c *watchCursor) {
	if c.begun && c.told < c.version {
		w.closePart(id, c, c.version)
	}
}

// flush sends what there is to say; always: or that there is nothing.
func (w *watch) flush(always bool) error {
	if len(w.out.Parts) == 0 && !always {
		return nil
	}
	out := w.out
	for _, part := range out.Parts {
		w.server.stats.watchEvents.Add(uint64(len(part.Events)))
	}
	w.out, w.size = new(flotillav1.WatchResponse), 0
	return w.send(out)
}

// readStates begins a shard that begins with its keys, and tells whether there
// are more. It is one at a time: meanwhile the history of the others goes on, and
// they must not fall off it.
func (w *watch) readStates(ctx context.Context) (more bool, err error) {
	i := slices.IndexFunc(w.shards, w.awaitsKeys)
	if i < 0 {
		return false, nil
	}
	id := w.shards[i]
	err = w.readState(ctx, id, w.cursors[id])
	return slices.ContainsFunc(w.shards, w.awaitsKeys), err
}

func (w *watch) awaitsKeys(id shardmap.ShardID) bool {
	c := w.cursors[id]
	return !c.begun && c.now.served
}

// readState sends the shard's keys as of a version.
func (w *watch) readState(ctx context.Context, id shardmap.ShardID, c *watchCursor) error {
	view, now, err := w.viewAt(ctx, id)
	if err != nil {
		return err
	}
	defer view.Close()
	if !now.served {
		return nil // the next turn sees it
	}
	state, err := groupState(view)
	if err != nil {
		return err
	}
	c.now, c.version = now, now.through
	w.begun(id, c)
	lo, hi := w.about.bounds(id, now.copy)
	it := view.NewIter(lo, hi)
	part := &flotillav1.WatchPart{Kind: flotillav1.WatchPart_STATE, Shard: uint64(id), Version: c.version}
	size := 0
	for ok := it.First(); ok && err == nil; ok = it.Next() {
		var r record
		if r, err = decodeRecord(it.Value()); err != nil || !r.liveAt(state.time) {
			continue
		}
		part.Events = append(part.Events, &flotillav1.WatchEvent{
			Key: slices.Clone(it.Key()[spaceBytes:]), Value: slices.Clone(r.value), Version: r.version, ExpireAtMs: r.expires,
		})
		if size += len(it.Key()) + len(it.Value()); size >= watchPageBytes {
			w.say(part)
			part, size = &flotillav1.WatchPart{Kind: flotillav1.WatchPart_STATE, Shard: uint64(id), Version: c.version}, 0
			err = w.flushInTime()
		}
	}
	if closeErr := it.Close(); err == nil {
		err = closeErr
	}
	part.Kind = flotillav1.WatchPart_STATE_END
	w.say(part)
	if err == nil {
		err = w.flushInTime()
	}
	return err
}

// bounds are where the keys lie that a watch is about.
func (w *watched) bounds(id shardmap.ShardID, copy incarnation) (lo, hi []byte) {
	if len(w.key) > 0 {
		lo = valueKey(id, copy, w.key)
		return lo, append(slices.Clone(lo), 0)
	}
	lo = valueKey(id, copy, w.prefix)
	return lo, successor(lo)
}

// flushInTime sends a page of keys. Who does not take it in time loses the
// stream, which would hold the view.
func (w *watch) flushInTime() error {
	late := time.AfterFunc(watchViewTimeout, func() { signal(w.stalled) })
	defer late.Stop()
	return w.flush(false)
}

// viewAt is a view of the state, and how the shard stood just then.
func (w *watch) viewAt(ctx context.Context, id shardmap.ShardID) (*statestore.View, shardHistory, error) {
	for range watchViewTries {
		view, err := w.group.replica.View()
		if err != nil {
			return nil, shardHistory{}, err
		}
		at, _, _, err := view.Applied()
		if err != nil {
			view.Close()
			return nil, shardHistory{}, err
		}
		now, applied, err := w.publishedThrough(ctx, id, at)
		if err == nil && applied == at {
			return view, now, nil
		}
		view.Close()
		if err != nil {
			return nil, shardHistory{}, err
		}
	}
	return nil, shardHistory{}, grpcstatus.Error(codes.Unavailable, "the group is too busy for a view of it")
}

// publishedThrough waits until what a view shows is published too, which is at
// once.
func (w *watch) publishedThrough(ctx context.Context, id shardmap.ShardID, at raft.Index) (now shardHistory, applied raft.Index, err error) {
	for {
		if now, applied, _ = w.reader.history.stand(id); applied >= at {
			return now, applied, nil
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return now, applied, ctx.Err()
		}
	}
}
