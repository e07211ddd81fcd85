package transport

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/flotilla-kv/flotilla/internal/wire"
	"github.com/flotilla-kv/flotilla/raft"
)

// Identity says who this node is. A node learns it when it registers, which is
// why it is not among the Options.
type Identity struct {
	ClusterID string
	Self      raft.NodeID
	// Boot differs from start to start of the node. A peer that hears a new
	// one takes the old process for dead.
	Boot uint64
}

func (id Identity) check() error {
	if id.ClusterID == "" || id.Self == 0 || id.Boot == 0 {
		return errors.New("transport: cluster id, node id and boot number are required")
	}
	if len(id.ClusterID) > clusterIDBytesMax {
		return errors.New("transport: cluster id too long")
	}
	return nil
}

// clusterIDBytesMax bounds what is taken for a cluster id, own or received.
const clusterIDBytesMax = 256

// Options of a Transport. All have defaults.
type Options struct {
	Logger      *slog.Logger                     // nil: slog.Default
	Clock       func() time.Time                 // nil: time.Now. The monotonic part times liveness, the wall part is what peers are told
	Credentials credentials.TransportCredentials // nil: plain text
	Dial        dialFunc                         // nil: TCP. Tests put a faulty network here
	Limits      Limits
	Timing      Timing
}

// Limits bound what the transport holds. Zero fields take the default named
// behind them.
type Limits struct {
	// QueueMessages and QueueBytes bound what waits for one peer; beyond it the
	// oldest messages are dropped. 65,536 and 32 MiB: a campaign of every group
	// of a node, and more appends than the windows of a busy leader hold.
	QueueMessages int
	QueueBytes    int
	// BatchBytes is when a batch is full; 1 MiB.
	BatchBytes int
	// SnapshotSendsMax and SnapshotReceivesMax bound the transfers under way;
	// 2 and 2. A send beyond it waits, a receive is refused (ErrSnapshotBusy).
	SnapshotSendsMax    int
	SnapshotReceivesMax int
	// SnapshotBytesPerSecond bounds all snapshots that are sent, together;
	// 128 MiB. Negative: no limit. Lower it where snapshots hurt the traffic
	// of clients.
	SnapshotBytesPerSecond int
	// SnapshotWindow is how many chunks are sent ahead of their
	// acknowledgement; 4.
	SnapshotWindow int
}

// Timing of the transport. Zero fields take the default named behind them.
type Timing struct {
	PingInterval time.Duration // between two liveness messages to a peer; 100 ms
	// SuspectAfter is how long a silent peer counts as alive, and how long a
	// Send to a peer that is not alive may block; 500 ms, the shortest election
	// timeout.
	SuspectAfter   time.Duration
	ConnectTimeout time.Duration // one attempt to connect; 2 s
	RefusedPause   time.Duration // before the next attempt at a peer that refuses us; 1 s
	// SnapshotGrace is how long a broken snapshot stream may be taken up
	// again; 10 s.
	SnapshotGrace time.Duration
}

// Sizes on the wire.
const (
	// ReceiveBytesMax is the largest gRPC message taken; a node's server has to
	// be made with ServerOptions, which says so.
	ReceiveBytesMax = 16 << 20
	// messageBytesMax is the largest Raft message sent. One that is larger
	// holds an entry that no peer could receive: it is dropped and counted.
	messageBytesMax = ReceiveBytesMax - 1<<20
	// SnapshotChunkBytesMax is the largest chunk of a snapshot.
	SnapshotChunkBytesMax = 4 << 20
	// batchMessagesMax bounds a batch in messages, so that the receiver's worker
	// inboxes are fed in bites.
	batchMessagesMax = 4096
)

// gRPC's reconnect backoff and keepalive.
const (
	backoffBase       = 20 * time.Millisecond
	backoffMultiplier = 1.3
	backoffMax        = 500 * time.Millisecond
	keepaliveTime     = 10 * time.Second
	keepaliveTimeout  = 5 * time.Second
	keepaliveMinTime  = 5 * time.Second
)

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Credentials == nil {
		o.Credentials = insecure.NewCredentials()
	}
	if o.Dial == nil {
		var dialer net.Dialer
		o.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", addr)
		}
	}
	o.Limits = o.Limits.withDefaults()
	o.Timing = o.Timing.withDefaults()
	return o
}

func (l Limits) withDefaults() Limits {
	setDefault(&l.QueueMessages, 1<<16)
	setDefault(&l.QueueBytes, 32<<20)
	setDefault(&l.BatchBytes, 1<<20)
	setDefault(&l.SnapshotSendsMax, 2)
	setDefault(&l.SnapshotReceivesMax, 2)
	setDefault(&l.SnapshotBytesPerSecond, 128<<20)
	setDefault(&l.SnapshotWindow, 4)
	return l
}

func (l Limits) check() error {
	for _, n := range []int{l.QueueMessages, l.QueueBytes, l.BatchBytes, l.SnapshotSendsMax, l.SnapshotReceivesMax, l.SnapshotWindow} {
		if n < 0 {
			return errors.New("transport: a limit is negative")
		}
	}
	if l.BatchBytes > messageBytesMax {
		return errors.New("transport: BatchBytes exceeds what a peer receives")
	}
	return nil
}

func (t Timing) withDefaults() Timing {
	setDefault(&t.PingInterval, 100*time.Millisecond)
	setDefault(&t.SuspectAfter, 500*time.Millisecond)
	setDefault(&t.ConnectTimeout, 2*time.Second)
	setDefault(&t.RefusedPause, time.Second)
	setDefault(&t.SnapshotGrace, 10*time.Second)
	return t
}

func (t Timing) check() error {
	for _, d := range []time.Duration{t.PingInterval, t.SuspectAfter, t.ConnectTimeout, t.RefusedPause, t.SnapshotGrace} {
		if d < 0 {
			return errors.New("transport: a duration is negative")
		}
	}
	if t.SuspectAfter < 2*t.PingInterval {
		return errors.New("transport: SuspectAfter must be at least two PingIntervals: one lost ping is not a death")
	}
	return nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// streamsMax bounds the streams and calls under way on one connection; each may
// have a window of data waiting.
const streamsMax = 1024

// ServerOptions are what the node's gRPC server needs for this transport:
// messages of up to ReceiveBytesMax, and peers that send keepalives.
func ServerOptions() []grpc.ServerOption {
	return append(wire.ServerOptions(),
		grpc.MaxRecvMsgSize(ReceiveBytesMax),
		grpc.MaxConcurrentStreams(streamsMax),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveMinTime, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
	)
}
