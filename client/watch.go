package client

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"sync"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// EventKind says what an Event tells.
type EventKind uint8

// The kinds of events.
const (
	// EventPut: the key was written, or given another expiry.
	EventPut EventKind = iota
	// EventDelete: the key was deleted.
	EventDelete
	// EventExpired: the key was removed because its time was up.
	EventExpired
	// EventClear: the shard's keys from Key on, before End, with Prefix are
	// gone, those that are not watched too. Empty ones do not bound.
	EventClear
	// EventReset: what happened in the shard before Version is not told; forget
	// what is known of it. The keys that are there as of Version follow, each as
	// an EventPut with its own version, then an EventComplete.
	EventReset
	// EventComplete: all keys have been told that were there as of Version.
	EventComplete
)

var eventKindNames = [...]string{"put", "delete", "expired", "clear", "reset", "complete"}

func (k EventKind) String() string {
	if int(k) < len(eventKindNames) {
		return eventKindNames[k]
	}
	return "unknown"
}

// Event is one change of a shard. Within a shard events come in the order of
// their versions: each of those that match once, none is left out.
type Event struct {
	Kind    EventKind
	Shard   int
	Version uint64
	Key     string
	Value   []byte
	Expires time.Time // zero if the key does not
	// Of EventClear.
	End, Prefix string
}

// WatchOption says where a watch begins. Without one it begins with what is
// written after Watch has returned.
type WatchOption func(*watchSpec)

type watchSpec struct {
	key, prefix []byte
	start       flotillav1.WatchFrom_Start
	version     uint64
	token       []byte
	tokenGiven  bool
}

// FromVersion begins a watch of one key behind a version of it, as a Get or an
// Event told it.
func FromVersion(version uint64) WatchOption {
	return func(s *watchSpec) { s.start, s.version = flotillav1.WatchFrom_AFTER, version }
}

// FromToken begins where the watch of the same key or prefix stood that gave the
// token.
func FromToken(token []byte) WatchOption {
	return func(s *watchSpec) { s.token, s.tokenGiven = token, true }
}

// WithState begins with the keys that are there, behind an EventReset for each
// shard.
func WithState() WatchOption {
	return func(s *watchSpec) { s.start = flotillav1.WatchFrom_STATE }
}

// Sizes and times of watches.
const (
	watchQueue     = 16              // messages that wait for Next; one is at most a value and 256 KiB
	watchSilence   = 4 * time.Second // a node that says nothing for so long is left; it has something to say each second
	watchStood     = time.Second     // a shard that was watched for so long is tried again at once
	watchWaitMin   = 4 * time.Millisecond
	watchWaitMax   = 500 * time.Millisecond
	watchMapPeriod = 100 * time.Millisecond // how soon a shard without an owner is looked for again
)

// Watcher is a watch under way. It goes on through moves of shards, changes of
// leaders and lost connections until it is closed or its context ends. Next is
// for one goroutine at a time.
//
// A watcher that is not read falls behind what the cluster keeps of the past. It
// is told by an EventReset, as when a node restarts that alone had kept it.
type Watcher struct {
	client *Client
	about  watchSpec
	ctx    context.Context // ends with the watch
	stop   context.CancelFunc
	items  chan watchItem
	back   chan watchBack // shards whose stream has ended

	ready     chan struct{} // closed when every shard has begun that begins now
	unready   int           // how many have not; guarded by mu
	mu        sync.Mutex    // guards unready, err and trouble
	err       error         // why it ended
	trouble   string        // how a stream of it last ended
	ended     chan struct{} // closed when nothing comes any more
	batch     watchItem     // Next's: what is being handed out
	delivered map[shardmap.ShardID]delivered
	shards    int    // of the key space
	cluster   string // the cluster's id
}

// delivered is how far Next has come in a shard.
type delivered struct {
	version uint64
	partial bool // its keys were begun, and not completed
}

// watchItem is a message for Next: events of one shard, and through which
// version they lead.
type watchItem struct {
	shard   shardmap.ShardID
	events  []Event
	through uint64
	partial bool
}

// Watch watches one key: see Watcher. ctx is that of the whole watch; Watch
// returns when it has begun.
func (c *Client) Watch(ctx context.Context, key string, options ...WatchOption) (*Watcher, error) {
	w, err := c.newWatcher(ctx, watchSpec{key: []byte(key), start: flotillav1.WatchFrom_NOW}, options)
	if err != nil {
		return nil, fmt.Errorf("watch %q: %w", clip(key), err)
	}
	return w, nil
}

// WatchPrefix watches the keys that begin with prefix, all keys if it is empty.
// Its order is that of each shard; keys with the same part between braces share
// one.
func (c *Client) WatchPrefix(ctx context.Context, prefix string, options ...WatchOption) (*Watcher, error) {
	w, err := c.newWatcher(ctx, watchSpec{prefix: []byte(prefix), start: flotillav1.WatchFrom_NOW}, options)
	if err != nil {
		return nil, fmt.Errorf("watch prefix %q: %w", clip(prefix), err)
	}
	return w, nil
}

func (c *Client) newWatcher(ctx context.Context, about watchSpec, options []WatchOption) (*Watcher, error) {
	for _, o := range options {
		o(&about)
	}
	if _, ok := c.options.Dialer.(WatchDialer); !ok {
		return nil, fmt.Errorf("%w: the client's Dialer does not watch", ErrInvalid)
	}
	m, err := c.WaitMap(ctx)
	if err != nil {
		return nil, err
	}
	shards, err := about.begin(m)
	if err != nil {
		return nil, err
	}
	w := &Watcher{
		client:    c,
		about:     about,
		items:     make(chan watchItem, watchQueue),
		back:      make(chan watchBack),
		ready:     make(chan struct{}),
		ended:     make(chan struct{}),
		delivered: make(map[shardmap.ShardID]delivered, len(shards)),
		shards:    len(m.Shards),
		cluster:   m.ClusterID,
	}
	w.ctx, w.stop = context.WithCancel(ctx)
	for _, s := range shards {
		w.delivered[s.id] = delivered{version: s.version, partial: s.start == flotillav1.WatchFrom_STATE}
		if s.start == flotillav1.WatchFrom_NOW {
			w.unready++
		}
	}
	if w.unready == 0 {
		close(w.ready)
	}
	if !c.runWatcher(w, shards) {
		return nil, ErrClosed
	}
	return w, w.waitReady(ctx)
}

// runWatcher starts the watcher's goroutine, unless the client is closed.
func (c *Client) runWatcher(w *Watcher, shards []*watchShard) bool {
	c.linksMu.Lock() // Close waits for what was started under it
	defer c.linksMu.Unlock()
	if c.ctx.Err() != nil {
		w.stop()
		return false
	}
	closing := context.AfterFunc(c.ctx, func() { w.fail(ErrClosed) })
	c.wait.Go(func() {
		defer closing()
		defer close(w.ended)
		(&watching{Watcher: w, streams: make(map[*watchStream]struct{})}).run(shards)
	})
	return true
}

func (w *Watcher) waitReady(ctx context.Context) error {
	ctx, cancel := w.client.bounded(ctx)
	defer cancel()
	select {
	case <-w.ready:
		return nil
	case <-w.ended:
		return w.why()
	case <-ctx.Done():
		w.Close()
		return fmt.Errorf("%w: %w: the watch could not begin%s%s", ctx.Err(), ErrUnavailable, w.lastTrouble(), w.client.mapTrouble())
	}
}

// lastTrouble is what a node said last that ended a stream.
func (w *Watcher) lastTrouble() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.trouble
}

// begin are the shards that the watch is of, and where it begins.
func (s *watchSpec) begin(m *shardmap.Map) ([]*watchShard, error) {
	switch {
	case len(s.key) == 0 && s.version > 0:
		return nil, fmt.Errorf("%w: a prefix is watched from a token, not from a version", ErrInvalid)
	case s.key != nil && len(s.key) == 0:
		return nil, fmt.Errorf("%w: the key is empty", ErrInvalid)
	}
	var ids []shardmap.ShardID
	if s.key != nil {
		ids = []shardmap.ShardID{shardmap.Shard(s.key, len(m.Shards))}
	} else {
		scan := scanSpec{prefix: s.prefix, shard: -1}
		var err error
		if ids, err = scan.shards(m); err != nil {
			return nil, err
		}
	}
	shards := make([]*watchShard, len(ids))
	for i, id := range ids {
		shards[i] = &watchShard{id: id, start: s.start, version: s.version}
	}
	if s.tokenGiven {
		return shards, s.readToken(shards, m)
	}
	return shards, nil
}

// Next returns the next event, as soon as there is one. Errors: ctx's, ErrClosed,
// that of the watch's own context, and ErrInvalid or ErrInternal if the cluster
// refused it. After another error than ctx's there is nothing more.
func (w *Watcher) Next(ctx context.Context) (Event, error) {
	for {
		select {
		case <-w.ended:
			return Event{}, w.why()
		default:
		}
		if len(w.batch.events) > 0 {
			return w.pop(), nil
		}
		select {
		case w.batch = <-w.items:
		case <-ctx.Done():
			return Event{}, ctx.Err()
		case <-w.ended:
			return Event{}, w.why()
		}
		if len(w.batch.events) == 0 {
			w.delivered[w.batch.shard] = delivered{w.batch.through, w.batch.partial}
		}
	}
}

func (w *Watcher) pop() Event {
	e := w.batch.events[0]
	w.batch.events = w.batch.events[1:]
	at := delivered{e.Version, w.batch.partial}
	if len(w.batch.events) == 0 {
		at.version = w.batch.through
	}
	w.delivered[w.batch.shard] = at
	return e
}

// Close ends the watch and waits for its goroutines.
func (w *Watcher) Close() error {
	w.fail(ErrClosed)
	<-w.ended
	return nil
}

// fail ends the watch; the first reason counts.
func (w *Watcher) fail(err error) {
	w.mu.Lock()
	if w.err == nil {
		w.err = err
	}
	w.mu.Unlock()
	w.stop()
}

func (w *Watcher) why() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	return context.Cause(w.ctx)
}

// hasBegun says where a shard has begun that begins now. Until all have nobody
// calls Next.
func (w *Watcher) hasBegun(id shardmap.ShardID, version uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.delivered[id] = delivered{version: version}
	if w.unready--; w.unready == 0 {
		close(w.ready)
	}
}

const tokenVersion = 2

// Token is where the watch stands behind the last event that Next returned:
// FromToken goes on there, in this process or another. It is to be called where
// Next is.
//
//	version 1 | hash of the cluster's id 4 | hash of key or prefix 4 | number of
//	shards uv | for each shard watched, ascending: 0, if its keys are to be read,
//	or the version + 1, uv
func (w *Watcher) Token() []byte {
	b := binary.BigEndian.AppendUint32([]byte{tokenVersion}, hashOf(w.cluster))
	b = binary.BigEndian.AppendUint32(b, w.about.hash())
	b = binary.AppendUvarint(b, uint64(w.shards))
	for id := range shardmap.ShardID(w.shards) {
		if at, watched := w.delivered[id]; watched && at.partial {
			b = binary.AppendUvarint(b, 0)
		} else if watched {
			b = binary.AppendUvarint(b, at.version+1)
		}
	}
	return b
}

func (s *watchSpec) hash() uint32 {
	h := fnv.New32a()
	if s.key != nil {
		h.Write([]byte{1})
	}
	h.Write(s.key)
	h.Write(s.prefix)
	return h.Sum32()
}

func hashOf(id string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(id))
	return h.Sum32()
}

var (
	errToken        = fmt.Errorf("%w: the token is not of this watch", ErrInvalid)
	errTokenCluster = fmt.Errorf("%w: the token is of another cluster", ErrInvalid)
)

func (s *watchSpec) readToken(shards []*watchShard, m *shardmap.Map) error {
	const head = 1 + 4 + 4
	b := s.token
	switch {
	case len(b) < head || b[0] != tokenVersion:
		return errToken
	case binary.BigEndian.Uint32(b[1:]) != hashOf(m.ClusterID):
		return errTokenCluster
	case binary.BigEndian.Uint32(b[5:]) != s.hash():
		return errToken
	}
	n, size := binary.Uvarint(b[head:])
	if size <= 0 || n != uint64(len(m.Shards)) {
		return errToken
	}
	b = b[head+size:]
	for _, sh := range shards {
		at, size := binary.Uvarint(b)
		if size <= 0 {
			return errToken
		}
		b = b[size:]
		sh.start, sh.version = flotillav1.WatchFrom_AFTER, at-1
		if at == 0 {
			sh.start, sh.version = flotillav1.WatchFrom_STATE, 0
		}
	}
	if len(b) > 0 {
		return errToken
	}
	return nil
}

// eventOf takes an event off the wire.
func eventOf(shard shardmap.ShardID, p *flotillav1.WatchEvent) (Event, error) {
	e := Event{Shard: int(shard), Version: p.GetVersion(), Key: string(p.GetKey()), Value: p.GetValue(), Expires: expiry(p.GetExpireAtMs())}
	switch p.GetKind() {
	case flotillav1.WatchEvent_PUT:
	case flotillav1.WatchEvent_DELETE:
		e.Kind = EventDelete
	case flotillav1.WatchEvent_EXPIRED:
		e.Kind = EventExpired
	case flotillav1.WatchEvent_CLEAR:
		e.Kind, e.End, e.Prefix = EventClear, string(p.GetEnd()), string(p.GetPrefix())
	default:
		return Event{}, fmt.Errorf("%w: an event of kind %v", ErrInternal, p.GetKind())
	}
	return e, nil
}
