package client

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/client/routing"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// watchShard is how far a watch has come in a shard. It belongs to the stream
// that it is in, otherwise to the watching.
type watchShard struct {
	id      shardmap.ShardID
	start   flotillav1.WatchFrom_Start // as which it begins when it next does
	version uint64                     // AFTER: through it all has been queued for Next
	begun   bool                       // in this stream
	begunAt time.Time
	tries   int // since it last came on
	retryAt time.Time
}

// watchBack gives shards back to the watching.
type watchBack struct {
	stream  *watchStream
	shards  []*watchShard
	wait    bool // before they are tried again
	stopped bool // by the watching: no try has failed
	last    bool // the stream has ended
}

// watching looks after a watch's streams: one for each group that owns shards of
// it.
type watching struct {
	*Watcher
	idle    []*watchShard // in no stream
	streams map[*watchStream]struct{}
}

// run has every shard in a stream until the watch ends, and then waits for the
// streams.
func (g *watching) run(shards []*watchShard) {
	g.idle = shards
	timer := time.NewTimer(0)
	defer timer.Stop()
	for g.ctx.Err() == nil {
		if next := g.place(); next > 0 {
			timer.Reset(next)
		}
		select {
		case <-timer.C:
		case b := <-g.back:
			g.takeBack(b)
		case <-g.ctx.Done():
		}
	}
	for len(g.streams) > 0 {
		g.takeBack(<-g.back)
	}
}

func (g *watching) takeBack(b watchBack) {
	if b.last {
		delete(g.streams, b.stream)
	}
	now, tries := time.Now(), 0
	for _, s := range b.shards {
		if s.begun && s.start == flotillav1.WatchFrom_AFTER && now.Sub(s.begunAt) > watchStood {
			s.tries = 0
		}
		tries = max(tries, s.tries)
		s.begun, s.retryAt = false, now
	}
	g.idle = append(g.idle, b.shards...)
	if b.stopped {
		return
	}
	var wait time.Duration // for all, so that one stream begins for all
	if b.wait || tries > 1 {
		wait = g.backoff(tries)
	}
	for _, s := range b.shards {
		s.retryAt = now.Add(wait)
		s.tries++
	}
}

// backoff doubles with each try, and is between half and all of that.
func (g *watching) backoff(tries int) time.Duration {
	d := min(watchWaitMin<<min(tries, 16), watchWaitMax)
	return d/2 + time.Duration(g.client.options.Rand()%uint64(d/2+1))
}

// place begins streams for shards that are in none. Where a group has one
// already, that one ends, and one for all begins when it has. The result is when
// to look again; 0: when something comes back.
func (g *watching) place() (next time.Duration) {
	now := time.Now()
	byGroup := make(map[raft.GroupID][]*watchShard)
	var order []raft.GroupID
	rest := g.idle[:0]
	later := func(s *watchShard, d time.Duration) {
		rest = append(rest, s)
		if next == 0 || d < next {
			next = d
		}
	}
	for _, s := range g.idle {
		if d := s.retryAt.Sub(now); d > 0 {
			later(s, d)
			continue
		}
		group := g.owner(s.id)
		if group == 0 {
			later(s, watchMapPeriod)
			continue
		}
		if byGroup[group] == nil {
			order = append(order, group)
		}
		byGroup[group] = append(byGroup[group], s)
	}
	for _, group := range order {
		if s := g.streamOf(group); s != nil {
			s.stop()
			rest = append(rest, byGroup[group]...)
			continue
		}
		g.open(group, byGroup[group])
	}
	clear(g.idle[len(rest):])
	g.idle = rest
	return next
}

func (g *watching) owner(id shardmap.ShardID) (group raft.GroupID) {
	g.client.step(func(r *routing.Router, _ time.Time) { group = r.Owner(id) })
	return group
}

func (g *watching) streamOf(group raft.GroupID) *watchStream {
	for s := range g.streams {
		if s.group == group {
			return s
		}
	}
	return nil
}

func (g *watching) open(group raft.GroupID, shards []*watchShard) {
	s := &watchStream{watcher: g.Watcher, group: group, shards: make(map[shardmap.ShardID]*watchShard, len(shards))}
	for _, sh := range shards {
		s.shards[sh.id] = sh
	}
	s.ctx, s.stop = context.WithCancel(g.ctx)
	g.streams[s] = struct{}{}
	go s.run()
}

// watchStream is one stream of a watch, from a group's leader, and the goroutine
// that reads it.
type watchStream struct {
	watcher *Watcher
	group   raft.GroupID
	shards  map[shardmap.ShardID]*watchShard
	ctx     context.Context
	stop    context.CancelFunc
	silent  atomic.Bool // the node said nothing for too long
}

// run reads the stream until it ends, and gives the shards back.
func (s *watchStream) run() {
	wait, stopped := s.read()
	s.stop()
	b := watchBack{stream: s, wait: wait, stopped: stopped, last: true}
	for _, sh := range s.shards {
		b.shards = append(b.shards, sh)
	}
	s.watcher.back <- b
}

// read reads the stream; wait: where it ended nobody knew a better place.
func (s *watchStream) read() (wait, stopped bool) {
	w := s.watcher
	to := w.leaderOf(s)
	if to.Addr == "" {
		return true, false
	}
	target := Target{Node: to.Node, Addr: to.Addr}
	if m := w.client.Map(); m != nil {
		target.ClusterID = m.ClusterID
	}
	conn, err := w.client.watchConns.take(w.client.options.Dialer.(WatchDialer), target)
	if err != nil {
		s.note(target, nil, err)
		s.left(to, &flotillav1.WatchResponse{Code: flotillav1.Code_UNAVAILABLE})
		return true, false
	}
	defer func() { w.client.watchConns.give(conn, s.silent.Load()) }()
	last, err := s.receive(conn, target)
	s.note(target, last, err)
	switch {
	case s.ctx.Err() != nil && !s.silent.Load(): // it was told to end
		return false, true
	case errors.Is(err, errNotRead):
		return true, false
	case errors.Is(err, ErrInternal) || errors.Is(err, ErrInvalid):
		w.fail(err)
		return true, false
	}
	return s.left(to, last), false
}

// note keeps how the stream ended, for who asks why the watch does not begin.
func (s *watchStream) note(at Target, last *flotillav1.WatchResponse, err error) {
	why := ""
	switch {
	case last.GetMessage() != "":
		why = last.GetMessage()
	case last != nil:
		why = last.GetCode().String()
	case s.ctx.Err() != nil && !s.silent.Load() || err == nil:
		return
	case s.silent.Load():
		why = "it said nothing"
	default:
		why = err.Error()
	}
	w := s.watcher
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trouble = fmt.Sprintf(": node %d at %s, group %d: %s", at.Node, at.Addr, s.group, why)
}

// left tells the router how the stream ended.
func (s *watchStream) left(at routing.Target, last *flotillav1.WatchResponse) (wait bool) {
	if len(s.shards) == 0 {
		return false // it had said all
	}
	code := last.GetCode()
	s.watcher.client.step(func(r *routing.Router, _ time.Time) {
		r.WatchEnded(s.group, at, code, raft.NodeID(last.GetLeaderNode()), last.GetLeaderAddr())
	})
	return code != flotillav1.Code_NOT_LEADER || last.GetLeaderNode() == 0
}

// receive takes in what the node says until the stream ends; last is what it
// ended with, if the node said why.
func (s *watchStream) receive(conn *watchConn, to Target) (last *flotillav1.WatchResponse, err error) {
	silence := time.AfterFunc(watchSilence, func() { s.silent.Store(true); s.stop() })
	defer silence.Stop()
	stream, err := conn.Watch(s.ctx, s.request(to))
	for err == nil {
		silence.Reset(watchSilence)
		var p *flotillav1.WatchResponse
		if p, err = stream.Recv(); err != nil {
			break
		}
		silence.Stop() // what follows may wait for Next
		switch p.GetCode() {
		case flotillav1.Code_OK:
		case flotillav1.Code_INVALID:
			return p, fmt.Errorf("%w: %s", ErrInvalid, p.GetMessage())
		case flotillav1.Code_INTERNAL:
			return p, fmt.Errorf("%w: %w: %s", ErrInternal, errWatchGap, p.GetMessage())
		default:
			return p, nil
		}
		for _, part := range p.GetParts() {
			if err := s.part(to, part); err != nil {
				return nil, err
			}
		}
	}
	// Any other status may be the connection's own, Internal too.
	if status.Code(err) == codes.Unimplemented {
		err = fmt.Errorf("%w: the node does not know watches: %w", ErrInvalid, err)
	}
	return nil, err
}

func (s *watchStream) request(to Target) *flotillav1.WatchRequest {
	q := &flotillav1.WatchRequest{ClusterId: to.ClusterID, Group: uint64(s.group), Key: s.watcher.about.key, Prefix: s.watcher.about.prefix}
	for _, sh := range s.shards {
		q.Shards = append(q.Shards, &flotillav1.WatchFrom{Shard: uint64(sh.id), Start: sh.start, Version: sh.version})
	}
	return q
}

// part takes in what is said of one shard.
func (s *watchStream) part(to Target, p *flotillav1.WatchPart) error {
	sh := s.shards[shardmap.ShardID(p.GetShard())]
	if sh == nil {
		return fmt.Errorf("%w: a watch was told of shard %d, which it had not asked for", ErrInternal, p.GetShard())
	}
	switch p.GetKind() {
	case flotillav1.WatchPart_BEGIN:
		return s.begin(to, sh, p.GetVersion())
	case flotillav1.WatchPart_CHANGES:
		return s.changes(sh, p)
	case flotillav1.WatchPart_STATE, flotillav1.WatchPart_STATE_END:
		return s.state(sh, p)
	case flotillav1.WatchPart_MOVED:
		if sh.begun && sh.start == flotillav1.WatchFrom_AFTER && p.GetVersion() != sh.version {
			return s.gap(sh, p.GetVersion())
		}
		s.watcher.client.step(func(r *routing.Router, _ time.Time) { r.WatchMoved(sh.id, s.group, raft.GroupID(p.GetGroup())) })
		s.giveBack(sh, false)
		return nil
	case flotillav1.WatchPart_COMPACTED:
		sh.start = flotillav1.WatchFrom_STATE
		s.giveBack(sh, true)
		return nil
	}
	return fmt.Errorf("%w: a part of a watch of kind %v", ErrInternal, p.GetKind())
}

func (s *watchStream) gap(sh *watchShard, version uint64) error {
	return fmt.Errorf("%w: %w: shard %d was told through version %d and goes on behind %d", ErrInternal, errWatchGap, sh.id, sh.version, version)
}

// giveBack lets a shard go on elsewhere, or later.
func (s *watchStream) giveBack(sh *watchShard, wait bool) {
	delete(s.shards, sh.id)
	select {
	case s.watcher.back <- watchBack{stream: s, shards: []*watchShard{sh}, wait: wait}:
	case <-s.watcher.ctx.Done():
	}
}

func (s *watchStream) begin(to Target, sh *watchShard, version uint64) error {
	if sh.begun {
		return s.gap(sh, version)
	}
	s.watcher.client.step(func(r *routing.Router, _ time.Time) {
		r.Watching(s.group, routing.Target{Node: to.Node, Addr: to.Addr})
	})
	sh.begun, sh.begunAt = true, time.Now()
	switch sh.start {
	case flotillav1.WatchFrom_NOW:
		sh.start, sh.version = flotillav1.WatchFrom_AFTER, version
		s.watcher.hasBegun(sh.id, version)
	case flotillav1.WatchFrom_STATE:
		sh.version = version
		return s.push(sh, []Event{{Kind: EventReset, Shard: int(sh.id), Version: version}}, true)
	default:
		if version != sh.version {
			return s.gap(sh, version)
		}
	}
	return nil
}

// changes queues what is behind the shard's version. What is not is a repetition.
func (s *watchStream) changes(sh *watchShard, p *flotillav1.WatchPart) error {
	if !sh.begun || sh.start != flotillav1.WatchFrom_AFTER || p.GetAfter() > sh.version {
		return s.gap(sh, p.GetAfter())
	}
	before := sh.version
	var events []Event
	for _, told := range p.GetEvents() {
		if told.GetVersion() <= sh.version {
			continue
		}
		e, err := eventOf(sh.id, told)
		if err != nil {
			return err
		}
		events = append(events, e)
		sh.version = e.Version
	}
	sh.version = max(sh.version, p.GetVersion())
	if err := s.push(sh, events, false); err != nil {
		sh.version = before
		return err
	}
	sh.tries = 0
	return nil
}

// state queues keys as of the version with which the shard began.
func (s *watchStream) state(sh *watchShard, p *flotillav1.WatchPart) error {
	if !sh.begun || sh.start != flotillav1.WatchFrom_STATE || p.GetVersion() != sh.version {
		return s.gap(sh, p.GetVersion())
	}
	var events []Event
	for _, told := range p.GetEvents() {
		e, err := eventOf(sh.id, told)
		if err != nil {
			return err
		}
		events = append(events, e)
	}
	if p.GetKind() == flotillav1.WatchPart_STATE {
		return s.push(sh, events, true)
	}
	if err := s.push(sh, events, true); err != nil {
		return err
	}
	if err := s.push(sh, []Event{{Kind: EventComplete, Shard: int(sh.id), Version: sh.version}}, false); err != nil {
		return err
	}
	sh.start, sh.tries = flotillav1.WatchFrom_AFTER, 0
	return nil
}

var errWatchGap = errors.New("a change is missing")

var errNotRead = errors.New("the watch is not read yet")

// push queues events for Next, and waits for room. While Watch has not returned
// nobody reads: then the stream ends instead, and another begins later.
func (s *watchStream) push(sh *watchShard, events []Event, partial bool) error {
	item := watchItem{shard: sh.id, events: events, through: sh.version, partial: partial}
	w := s.watcher
	select {
	case w.items <- item:
		return nil
	default:
	}
	select {
	case <-w.ready:
	default:
		return errNotRead
	}
	select {
	case w.items <- item:
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

// leaderOf is where the group of a shard is to be watched.
func (w *Watcher) leaderOf(s *watchStream) (to routing.Target) {
	w.client.step(func(r *routing.Router, now time.Time) { to = r.Leader(now, s.group) })
	return to
}
