//go:build chaos

package chaos

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"
)

// proxies put a TCP proxy between each two nodes, one for each that dials. They
// stand before gRPC only: gossip, which decides nothing, goes past them.
type proxies struct {
	ports []int // of the nodes' gRPC, on loopback
	links map[pair]*link
}

// pair is a direction: what one node sends to another.
type pair struct{ from, to int }

func newProxies(t testing.TB, ports []int) *proxies {
	t.Helper()
	p := &proxies{ports: ports, links: make(map[pair]*link)}
	for from := range ports {
		for to := range ports {
			if from == to {
				continue
			}
			l, err := newLink(loopback(ports[to]))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(l.close)
			p.links[pair{from, to}] = l
		}
	}
	return p
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

func (p *proxies) String() string { return "TCP proxies" }

func (p *proxies) place(node int) place {
	dials := make(map[string]string)
	for direction, l := range p.links {
		if direction.from == node {
			dials[l.target] = l.listener.Addr().String()
		}
	}
	return place{host: "127.0.0.1", dials: dials}
}

// each changes what one node sends to another: there, on the connections that it
// has dialled, and back, on those that the other has.
func (p *proxies) each(from, to int, change func(*way)) error {
	p.links[pair{from, to}].change(there, change)
	p.links[pair{to, from}].change(back, change)
	return nil
}

func (p *proxies) cut(from, to int) error  { return p.each(from, to, func(w *way) { w.cut = true }) }
func (p *proxies) join(from, to int) error { return p.each(from, to, func(w *way) { w.cut = false }) }

func (p *proxies) delay(from, to int, by time.Duration) error {
	return p.each(from, to, func(w *way) { w.delay = by })
}

func (p *proxies) limit(node, bytesPerSecond int) error {
	for direction := range p.links {
		if direction.from == node || direction.to == node {
			p.each(direction.from, direction.to, func(w *way) { w.rate = bytesPerSecond })
		}
	}
	return nil
}

func (p *proxies) forget(a, b int) error {
	p.links[pair{a, b}].forget()
	p.links[pair{b, a}].forget()
	return nil
}

// The ways of a link.
const (
	there = 0 // from the node that dialled
	back  = 1
)

// way is what is done to one way of a link.
type way struct {
	cut   bool
	delay time.Duration
	rate  int // bytes a second on each connection, 0: no limit
}

// link is the proxy of one node's connections to another.
type link struct {
	target   string
	listener net.Listener
	ctx      context.Context // ends with close
	stop     context.CancelFunc
	running  sync.WaitGroup

	mu      sync.Mutex // guards what follows
	ways    [2]way
	changed chan struct{} // closed, and replaced, when a way has changed
	tunnels []*tunnel
}

// tunnel is one connection through a link.
type tunnel struct {
	near, far net.Conn
	ctx       context.Context // ends when the tunnel is closed or forgotten
	end       context.CancelFunc
}

func newLink(target string) (*link, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	l := &link{target: target, listener: listener, changed: make(chan struct{})}
	l.ctx, l.stop = context.WithCancel(context.Background())
	l.running.Go(l.accept)
	return l, nil
}

func (l *link) change(i int, change func(*way)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.ways[i])
	close(l.changed)
	l.changed = make(chan struct{})
}

// look is one way as it is now, and what tells when it has changed.
func (l *link) look(i int) (way, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ways[i], l.changed
}

// passable waits while a way is cut, and tells whether ctx still lives.
func (l *link) passable(ctx context.Context, i int) bool {
	for {
		w, changed := l.look(i)
		if !w.cut || ctx.Err() != nil {
			return ctx.Err() == nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

func (l *link) accept() {
	for {
		near, err := l.listener.Accept()
		if err != nil {
			return // closed
		}
		l.running.Go(func() { l.serve(near) })
	}
}

// serve carries one connection. A handshake needs both ways.
func (l *link) serve(near net.Conn) {
	if !l.passable(l.ctx, there) || !l.passable(l.ctx, back) {
		near.Close()
		return
	}
	far, err := net.DialTimeout("tcp", l.target, 2*time.Second)
	if err != nil {
		near.(*net.TCPConn).SetLinger(0) // refused: a reset
		near.Close()
		return
	}
	t := &tunnel{near: near, far: far}
	t.ctx, t.end = context.WithCancel(l.ctx)
	l.mu.Lock()
	l.tunnels = append(l.tunnels, t)
	l.mu.Unlock()
	l.running.Go(func() { l.carry(t, there, near, far) })
	l.running.Go(func() { l.carry(t, back, far, near) })
}

// chunk is what one read brought, and when.
type chunk struct {
	bytes []byte
	at    time.Time
}

// carry moves bytes one way. A way that is cut is not read from: what is sent
// fills the sender's buffers, as it does when a network loses everything.
func (l *link) carry(t *tunnel, i int, from, to net.Conn) {
	chunks := make(chan chunk, 64)
	l.running.Go(func() {
		defer close(chunks)
		for l.passable(t.ctx, i) {
			buffer := make([]byte, 16<<10)
			n, err := from.Read(buffer)
			if err != nil {
				return
			}
			select {
			case chunks <- chunk{buffer[:n], time.Now()}:
			case <-t.ctx.Done():
				return
			}
		}
	})
	for c := range chunks {
		w, _ := l.look(i)
		wait := time.Until(c.at.Add(w.delay))
		if w.rate > 0 {
			wait += time.Duration(len(c.bytes)) * time.Second / time.Duration(w.rate)
		}
		if !sleep(t.ctx, wait) || !l.passable(t.ctx, i) {
			return
		}
		if _, err := to.Write(c.bytes); err != nil {
			break
		}
	}
	// The end of a connection is lost with everything else while the way is cut.
	if l.passable(t.ctx, i) {
		l.drop(t)
	}
}

// sleep waits, and tells whether ctx still lives.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (l *link) drop(t *tunnel) {
	l.mu.Lock()
	l.tunnels = slices.DeleteFunc(l.tunnels, func(other *tunnel) bool { return other == t })
	l.mu.Unlock()
	t.end()
	t.near.Close()
	t.far.Close()
}

// forget leaves the connections open with nobody to carry them.
func (l *link) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range l.tunnels {
		t.end()
	}
}

func (l *link) close() {
	l.stop()
	l.listener.Close()
	l.mu.Lock()
	tunnels := slices.Clone(l.tunnels)
	l.mu.Unlock()
	for _, t := range tunnels {
		l.drop(t)
	}
	l.running.Wait()
}

// TestProxies: a way that is cut holds what is sent until it is joined, the
// other way goes on, and forgotten connections stay silent while new ones work.
func TestProxies(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	accepted := make(chan net.Conn, 8)
	go func() {
		for {
			conn, err := server.Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	}()
	l, err := newLink(server.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	dial := func() (near, far net.Conn) {
		near, err := net.Dial("tcp", l.listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { near.Close() })
		fmt.Fprint(near, "?")
		far = <-accepted
		t.Cleanup(func() { far.Close() })
		heard(t, far, "?")
		return near, far
	}

	near, far := dial()
	l.change(there, func(w *way) { w.cut = true })
	fmt.Fprint(near, "a")
	fmt.Fprint(far, "b")
	heard(t, near, "b")
	silent(t, far)
	l.change(there, func(w *way) { w.cut = false })
	heard(t, far, "a")

	l.forget()
	fmt.Fprint(near, "c")
	silent(t, far)
	near, far = dial()
	begin := time.Now()
	l.change(back, func(w *way) { w.delay = 50 * time.Millisecond })
	fmt.Fprint(far, "d")
	heard(t, near, "d")
	if took := time.Since(begin); took < 50*time.Millisecond {
		t.Errorf("a delay of 50 ms took %v", took)
	}
}

func heard(t *testing.T, conn net.Conn, want string) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	buffer := make([]byte, 16)
	n, err := conn.Read(buffer)
	if err != nil || string(buffer[:n]) != want {
		t.Fatalf("heard %q, %v; want %q", buffer[:n], err, want)
	}
}

func silent(t *testing.T, conn net.Conn) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	buffer := make([]byte, 16)
	if n, err := conn.Read(buffer); err == nil {
		t.Fatalf("heard %q over what is cut", buffer[:n])
	}
}
