package transport

import (
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/internal/wire"
	"github.com/flotilla-kv/flotilla/raft"
)

// line is the way to a peer at one address: two connections, and on the first
// of them a stream of messages and one of pings, each with a goroutine that
// opens it again whenever it breaks. An address that changes is another line.
type line struct {
	t    *Transport
	p    *peer
	addr string
	conn *grpc.ClientConn // messages and liveness
	bulk *grpc.ClientConn // snapshots; connects when there is one

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // the two keepers

	// Of the sender alone.
	taken   []raft.Message
	encoder batchEncoder

	mu           sync.Mutex // guards all below
	cancelSend   context.CancelFunc
	sendingSince time.Time // of the Send that is under way; zero: none is
	complaint    string    // what was last logged
	socket       net.Conn  // of conn, the latest; nil: none, or hung up
	socketSince  time.Time
}

func (t *Transport) newLine(p *peer, addr string) (*line, error) {
	l := &line{t: t, p: p, addr: addr}
	var err error
	if l.conn, err = t.newConn(addr, l.dial); err != nil {
		return nil, fmt.Errorf("transport: address %q of node %d: %w", addr, p.id, err)
	}
	if l.bulk, err = t.newConn(addr, t.opts.Dial); err != nil {
		l.conn.Close()
		return nil, fmt.Errorf("transport: address %q of node %d: %w", addr, p.id, err)
	}
	l.ctx, l.cancel = context.WithCancel(t.ctx)
	return l, nil
}

type dialFunc = func(ctx context.Context, addr string) (net.Conn, error)

// dial makes the first connection and remembers the socket, for hangUp.
func (l *line) dial(ctx context.Context, addr string) (net.Conn, error) {
	socket, err := l.t.opts.Dial(ctx, addr)
	if err == nil {
		l.mu.Lock()
		l.socket, l.socketSince = socket, l.t.opts.Clock()
		l.mu.Unlock()
	}
	return socket, err
}

// hangUp closes the first connection to a peer that fell silent, or that will
// not come up over it. It may be half open, and TCP would notice only after its
// retransmissions, which grow rarer the longer the network is away; a new
// attempt is answered as soon as it is back.
func (l *line) hangUp() {
	l.mu.Lock()
	socket := l.socket
	l.socket = nil
	l.mu.Unlock()
	if socket != nil {
		socket.Close()
	}
}

func (t *Transport) newConn(addr string, dial dialFunc) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+addr, append(wire.DialOptions(),
		grpc.WithTransportCredentials(t.opts.Credentials),
		grpc.WithContextDialer(dial),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: backoffBase, Multiplier: backoffMultiplier, Jitter: 0.2, MaxDelay: backoffMax},
			MinConnectTimeout: t.opts.Timing.ConnectTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout, PermitWithoutStream: true}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(ReceiveBytesMax)),
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
	)...)
}

func (l *line) start() {
	l.wg.Add(2)
	go l.keep(l.sendMessages, func() { l.t.count.droppedUnreachable.Add(uint64(l.p.clearQueue())) })
	go l.keep(l.sendPings, func() {
		if l.p.broken() {
			l.t.announce()
		}
	})
}

// close ends the streams and waits for their goroutines.
func (l *line) close() {
	l.cancel()
	l.conn.Close()
	l.bulk.Close()
	l.wg.Wait()
}

// keep runs one stream after another until the line is closed; broken is
// called when one has ended.
func (l *line) keep(run func() error, broken func()) {
	defer l.wg.Done()
	for fruitless := 0; l.ctx.Err() == nil; {
		began := l.t.opts.Clock()
		err := run()
		if l.ctx.Err() != nil {
			return
		}
		broken()
		l.t.count.streamsBroken.Add(1)
		l.complain(err)
		if fruitless++; l.t.opts.Clock().Sub(began) > backoffMax {
			fruitless = 0
		}
		l.rest(fruitless, err)
	}
}

// rest pauses before the next attempt: as gRPC's backoff demands if there is no
// connection, for RefusedPause if the node there will have nothing of us, and
// otherwise a little longer each time. It ends early when the peer is heard.
func (l *line) rest(fruitless int, err error) {
	pause := backoffBase
	for range fruitless {
		pause = min(backoffMax, time.Duration(float64(pause)*backoffMultiplier))
	}
	revived := l.p.revival()
	if status.Code(err) == codes.FailedPrecondition {
		pause, revived = l.t.opts.Timing.RefusedPause, nil
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-revived:
	case <-l.ctx.Done():
		return
	}
	for {
		state := l.conn.GetState()
		if state == connectivity.Idle {
			l.conn.Connect()
		}
		if state != connectivity.TransientFailure || !l.conn.WaitForStateChange(l.ctx, state) {
			return
		}
	}
}

// heard cuts the connection's backoff short: the peer lives.
func (l *line) heard() {
	if l.conn.GetState() == connectivity.TransientFailure {
		l.conn.ResetConnectBackoff()
	}
}

// complain logs why a stream ended, once for each reason.
func (l *line) complain(err error) {
	text := status.Convert(err).Message()
	l.mu.Lock()
	same := text == l.complaint
	l.complaint = text
	l.mu.Unlock()
	if same {
		return
	}
	if status.Code(err) == codes.FailedPrecondition {
		l.t.log.Warn("peer refuses this node", "peer", l.p.id, "addr", l.addr, "err", text)
		return
	}
	l.t.log.Info("no stream to peer", "peer", l.p.id, "addr", l.addr, "err", text)
}

// connected forgets the last complaint, now that the peer is up: the next one
// is logged.
func (l *line) connected() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.complaint = ""
}

// outgoing is a stream that is open: its context ends with it.
type outgoing struct {
	ctx    context.Context
	cancel context.CancelFunc
	ended  chan error // has the reason, once
}

// watch waits for the end of a stream to the peer, which answers nothing
// before that.
func watch(ctx context.Context, cancel context.CancelFunc, stream grpc.ClientStream) *outgoing {
	o := &outgoing{ctx: ctx, cancel: cancel, ended: make(chan error, 1)}
	go func() {
		err := stream.RecvMsg(new(flotillav1.RaftClosed))
		if err == nil {
			err = io.EOF
		}
		o.ended <- err
		cancel()
	}()
	return o
}

// end cancels the stream, waits for its watcher and returns why it ended.
func (o *outgoing) end() error {
	o.cancel()
	return <-o.ended
}

// sendMessages runs one stream of messages until it breaks.
func (l *line) sendMessages() error {
	ctx, cancel := context.WithCancel(l.ctx)
	defer cancel()
	l.setCancelSend(cancel)
	defer l.setCancelSend(nil)
	stream, err := flotillav1.NewRaftTransportClient(l.conn).Messages(ctx)
	if err != nil {
		return err
	}
	out := watch(ctx, cancel, stream)
	if l.send(stream, l.t.envelopeTo(l.p.id), nil) == nil {
		l.t.count.streamsOpened.Add(1)
		l.t.log.Debug("stream to peer open", "peer", l.p.id, "addr", l.addr)
		for l.sendBatch(out.ctx, stream) == nil {
		}
	}
	return out.end()
}

// sendBatch waits until something is queued and sends as much of it as fits in
// one batch.
func (l *line) sendBatch(ctx context.Context, stream grpc.ClientStreamingClient[flotillav1.RaftBatch, flotillav1.RaftClosed]) error {
	for {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		l.taken = l.p.take(l.taken[:0], l.t.opts.Limits.BatchBytes)
		if len(l.taken) > 0 {
			break
		}
		select {
		case <-l.p.wake:
			runtime.Gosched() // who is about to send shares the batch
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	err := l.send(stream, nil, l.taken)
	clear(l.taken)
	return err
}

func (l *line) send(stream grpc.ClientStreamingClient[flotillav1.RaftBatch, flotillav1.RaftClosed], first *flotillav1.Envelope, ms []raft.Message) error {
	l.setSendingSince(l.t.opts.Clock())
	err := stream.Send(l.encoder.encode(first, ms))
	l.setSendingSince(time.Time{})
	l.encoder.release()
	count := &l.t.count
	if err != nil {
		count.droppedUnreachable.Add(uint64(len(ms)))
		return err
	}
	count.batchesSent.Add(1)
	count.messagesSent.Add(uint64(len(ms)))
	bytes := 0
	for i := range ms {
		bytes += messageBytes(&ms[i])
	}
	count.bytesSent.Add(uint64(bytes))
	return nil
}

func (l *line) setCancelSend(cancel context.CancelFunc) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cancelSend = cancel
}

func (l *line) setSendingSince(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sendingSince = now
}

// suspect is called for a peer that is not up. It cancels the stream of
// messages, now if the peer just went down, or when its Send has been blocked
// for too long: a peer that is up may be slow. It hangs up if the peer just
// went down, or the connection has had hangUpAfter to bring it up.
func (l *line) suspect(now time.Time, wentDown bool, suspectAfter time.Duration) {
	l.mu.Lock()
	cancel := l.cancelSend
	blocked := !l.sendingSince.IsZero() && now.Sub(l.sendingSince) > suspectAfter
	useless := now.Sub(l.socketSince) > hangUpAfter*suspectAfter
	l.mu.Unlock()
	if cancel != nil && (wentDown || blocked) {
		cancel()
		l.t.count.streamsCancelled.Add(1)
	}
	if wentDown || useless {
		l.hangUp()
	}
}

// hangUpAfter is the age, in SuspectAfters, at which a connection to a peer that
// is not up is given up for a new one.
const hangUpAfter = 4

// sendPings runs one stream of pings until it breaks. The first goes out at
// once.
func (l *line) sendPings() error {
	ctx, cancel := context.WithCancel(l.ctx)
	defer cancel()
	stream, err := flotillav1.NewRaftTransportClient(l.conn).Liveness(ctx)
	if err != nil {
		return err
	}
	out := watch(ctx, cancel, stream)
	ticker := time.NewTicker(l.t.opts.Timing.PingInterval)
	defer ticker.Stop()
	first := l.t.envelopeTo(l.p.id)
	for {
		if stream.Send(encodePing(first, l.p.nextPing(l.t.opts.Clock()))) != nil {
			return out.end()
		}
		first = nil
		l.t.count.pingsSent.Add(1)
		select {
		case <-ticker.C:
		case <-l.p.kick:
		case <-ctx.Done():
			return out.end()
		}
	}
}
