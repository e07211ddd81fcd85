package peer

import (
	"sync"
	"time"
)

const (
	// callPatience is how long a call holds back the next to the same peer.
	// While it lasts, calls arrive in the order in which they were made, and
	// what is said meanwhile shares one. A call that takes longer may be lost
	// and hang for seconds: the next goes out beside it. One with many bytes is
	// given more, as if the way carried 20 MB a second, up to a limit far below
	// an election timeout: what overtakes entries makes them be sent twice.
	callPatience    = 20 * time.Millisecond
	bytePatience    = 50 * time.Nanosecond
	callPatienceMax = 200 * time.Millisecond
	// callsMax is how many calls to one peer may be out. At the limit nothing
	// more is said to it until one returns. A peer that is cut off gets a
	// heartbeat's call every 120 ms, so with calls that hang for less than half
	// a minute the limit is never reached.
	callsMax = 256
	// laneMax is how many requests wait for a call; the oldest makes room, and
	// Raft repairs what is lost.
	laneMax = 64
)

// deliverMethod is the name of Raft.Deliver in a Call.
const deliverMethod = "Raft.Deliver"

// lane carries requests to one peer.
type lane struct {
	from, to int
	end      ClientEnd
	stop     chan struct{}
	// answered takes what came of a call; called without a lock.
	answered func(to int, args *DeliverArgs, reply *DeliverReply, ok bool)
	wake     chan struct{}
	out      chan struct{} // an element for each call that is out

	mu    sync.Mutex // guards queue
	queue []Request
}

func newLane(from, to int, end ClientEnd, stop chan struct{}, answered func(int, *DeliverArgs, *DeliverReply, bool)) *lane {
	return &lane{
		from: from, to: to, end: end, stop: stop, answered: answered,
		wake: make(chan struct{}, 1),
		out:  make(chan struct{}, callsMax),
	}
}

// send queues r behind what waits already; it never blocks.
func (l *lane) send(r Request) {
	l.mu.Lock()
	l.queue = enqueue(l.queue, r)
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// enqueue adds r. A heartbeat says all that the one before it said, and a
// snapshot is at least as late as one that still waits.
func enqueue(queue []Request, r Request) []Request {
	if n := len(queue); n > 0 && r.isHeartbeat() && queue[n-1].isHeartbeat() && queue[n-1].Term == r.Term {
		queue[n-1] = r
		return queue
	}
	if r.InstallSnapshot != nil {
		for i := range queue {
			if queue[i].InstallSnapshot != nil {
				queue[i] = r
				return queue
			}
		}
	}
	if len(queue) >= laneMax {
		queue = append(queue[:0], queue[1:]...)
	}
	return append(queue, r)
}

func (l *lane) take() []Request {
	l.mu.Lock()
	defer l.mu.Unlock()
	queue := l.queue
	l.queue = nil
	return queue
}

// run makes one call after the other, each with all that waits for it.
func (l *lane) run() {
	timer := time.NewTimer(callPatience)
	defer timer.Stop()
	for {
		select {
		case <-l.wake:
		case <-l.stop:
			return
		}
		select {
		case l.out <- struct{}{}:
		case <-l.stop:
			return
		}
		requests := l.take()
		if len(requests) == 0 {
			<-l.out
			continue
		}
		returned := make(chan struct{})
		go l.call(requests, returned)
		timer.Reset(patienceFor(requests))
		select {
		case <-returned:
		case <-timer.C:
		case <-l.stop:
			return
		}
	}
}

// patienceFor is how long a call with these requests holds back the next.
func patienceFor(requests []Request) time.Duration {
	size := 0
	for i := range requests {
		size += requests[i].bytes()
	}
	return min(callPatience+time.Duration(size)*bytePatience, callPatienceMax)
}

// call makes one call. It is owned by nobody: only the ClientEnd knows when it
// ends.
func (l *lane) call(requests []Request, returned chan struct{}) {
	args := &DeliverArgs{From: l.from, To: l.to, Requests: requests}
	reply := &DeliverReply{}
	ok := l.end.Call(deliverMethod, args, reply)
	<-l.out
	l.answered(l.to, args, reply, ok)
	close(returned)
}
