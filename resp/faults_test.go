package resp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

// TestProtocolErrors sends what must end a connection: an error line, then the
// end, and the server goes on for others.
func TestProtocolErrors(t *testing.T) {
	s, _ := startModel(t, 8, nil)
	for _, in := range protocolInputs {
		if in.err == "" {
			continue
		}
		t.Run(in.name, func(t *testing.T) {
			c := dial(t, s.Addr().String())
			go io.WriteString(c.nc, in.input+strings.Repeat("more\r\n", 1000))
			got := c.rest()
			want := "-ERR Protocol error: " + in.err + "\r\n"
			if !strings.HasSuffix(got, want) {
				t.Errorf("got %.300q, want it to end with %q", got, want)
			}
		})
	}
	dial(t, s.Addr().String()).expect("+PONG\r\n", "PING")
	if n := s.Stats().ProtocolErrors; n == 0 {
		t.Error("no protocol error was counted")
	}
}

// TestErrorAfterCommands checks that the commands before a protocol error are
// carried out and answered first.
func TestErrorAfterCommands(t *testing.T) {
	s, _ := startModel(t, 8, nil)
	c := dial(t, s.Addr().String())
	c.send(array("SET", "k", "v") + array("GET", "k") + "*1\r\n$-2\r\n" + array("SET", "k", "w"))
	if got, want := c.rest(), "+OK\r\n$1\r\nv\r\n-ERR Protocol error: invalid bulk length\r\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	dial(t, s.Addr().String()).expect("$1\r\nv\r\n", "GET", "k")
}

func TestHTTPIsClosed(t *testing.T) {
	s, _ := startModel(t, 8, nil)
	for _, in := range []string{
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\nSET k evil\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\n\r\nSET k evil\r\n",
		array("post", "x"),
		array("HOST:", "x"),
	} {
		c := dial(t, s.Addr().String())
		c.send(in)
		if got, _ := io.ReadAll(c.r); strings.Contains(string(got), "OK") {
			t.Errorf("%q was answered %q", in, got)
		}
	}
	dial(t, s.Addr().String()).expect("$-1\r\n", "GET", "k")
}

// TestByteByByte delivers commands in single bytes.
func TestByteByByte(t *testing.T) {
	s, _ := startModel(t, 8, nil)
	c := dial(t, s.Addr().String())
	in := array("SET", "k", "v\r\n\x00") + "GET k\r\n" + array("MGET", "k", "none") + array("INCR", "n")
	for i := range len(in) {
		c.send(in[i : i+1])
	}
	for _, want := range []string{"+OK\r\n", "$4\r\nv\r\n\x00\r\n", "*2\r\n$4\r\nv\r\n\x00\r\n$-1\r\n", ":1\r\n"} {
		if got := c.reply(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestHundredThousandPipelined sends a long pipeline before reading anything.
func TestHundredThousandPipelined(t *testing.T) {
	s, _ := startModel(t, 256, nil)
	c := dial(t, s.Addr().String())
	const n = 100_000
	go func() {
		for i := 0; i < n; i += 1000 {
			var b strings.Builder
			for k := i; k < i+1000; k++ {
				b.WriteString(array("SET", fmt.Sprint("key:", k%5000), fmt.Sprint(k)))
			}
			io.WriteString(c.nc, b.String())
		}
		io.WriteString(c.nc, array("PING"))
	}()
	for i := range n {
		if got := c.reply(); got != "+OK\r\n" {
			t.Fatalf("reply %d: %q", i, got)
		}
	}
	if got := c.reply(); got != "+PONG\r\n" {
		t.Fatal(got)
	}
	c.expect("$5\r\n99999\r\n", "GET", "key:4999")
}

// TestSlowReader writes a pipeline whose replies nobody reads: the server must
// stop reading, hold a bounded amount, and go on when replies are taken.
func TestSlowReader(t *testing.T) {
	s, _ := startModel(t, 64, nil)
	c := dial(t, s.Addr().String())
	const size, n = 256 << 10, 400 // 100 MiB of replies
	c.expect("+OK\r\n", "SET", "big", strings.Repeat("v", size))
	before := heapBytes()
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(c.nc, strings.Repeat(array("GET", "big"), n))
		sent <- err
	}()
	var pipe *pipe
	for _, conn := range s.open() {
		pipe = conn.pipe
	}
	eventually(t, "replies are held", func() bool {
		pipe.mu.Lock()
		defer pipe.mu.Unlock()
		return pipe.held > 1<<20
	})
	quiet := 0
	for last := 0; quiet < 50; quiet++ {
		time.Sleep(2 * time.Millisecond)
		pipe.mu.Lock()
		held := pipe.held
		pipe.mu.Unlock()
		if held != last {
			last, quiet = held, 0
		}
		if held > 2*heldBytesMax {
			t.Fatalf("%d bytes held", held)
		}
	}
	if grown := heapBytes() - before; grown > 4*heldBytesMax {
		t.Errorf("the heap has grown by %d MiB", grown>>20)
	}
	want := fmt.Sprintf("$%d\r\n%s\r\n", size, strings.Repeat("v", size))
	for i := range n {
		if got := c.reply(); got != want {
			t.Fatalf("reply %d of %d bytes", i, len(got))
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

func heapBytes() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// TestManyKeys asks for more keys in one command than may be under way.
func TestManyKeys(t *testing.T) {
	s, _ := startModel(t, 256, nil)
	c := dial(t, s.Addr().String())
	keys := []string{"EXISTS"}
	for i := range 3 * opsMax {
		keys = append(keys, fmt.Sprint("k", i%1000))
	}
	for i := range 1000 {
		c.send(array("SET", fmt.Sprint("k", i), fmt.Sprint(i)))
	}
	for range 1000 {
		c.reply()
	}
	c.expect(fmt.Sprintf(":%d\r\n", 3*opsMax), keys...)
	keys[0] = "MGET"
	var want strings.Builder
	fmt.Fprintf(&want, "*%d\r\n", 3*opsMax)
	for i := range 3 * opsMax {
		v := fmt.Sprint(i % 1000)
		fmt.Fprintf(&want, "$%d\r\n%s\r\n", len(v), v)
	}
	if got := c.do(keys...); got != want.String() {
		t.Error("MGET's values are not those of its keys")
	}
	keys[0] = "DEL"
	c.expect(":1000\r\n", keys...)
	c.expect(":0\r\n", "DBSIZE")
}

// TestReplyTooLarge asks for one key so often that the reply would be huge.
func TestReplyTooLarge(t *testing.T) {
	s, _ := startModel(t, 8, nil)
	c := dial(t, s.Addr().String())
	c.expect("+OK\r\n", "SET", "big", strings.Repeat("v", bulkBytesMax))
	args := []string{"MGET"}
	for range replyBytesMax/bulkBytesMax + 1 {
		args = append(args, "big")
	}
	if got := c.do(args...); !strings.HasPrefix(got, "-ERR the reply would be larger") {
		t.Errorf("%.100q", got)
	}
	c.expect("+PONG\r\n", "PING")
	// The same as single commands is allowed, and must pass in bounded pieces.
	go io.WriteString(c.nc, strings.Repeat(array("GET", "big"), 24))
	for i := range 24 {
		if got := c.reply(); len(got) != bulkBytesMax+12 {
			t.Fatalf("reply %d: %.100q", i, got)
		}
	}
}

// TestBackendErrors maps what the cluster says to what Redis clients expect.
func TestBackendErrors(t *testing.T) {
	s, m := startModel(t, 8, nil)
	c := dial(t, s.Addr().String())
	for _, f := range []struct {
		resp *flotillav1.Response
		err  error
		want string
	}{
		{resp: &flotillav1.Response{Code: flotillav1.Code_NO_QUORUM, Message: "group 3: 1 of 3 replicas"}, want: "-CLUSTERDOWN The group has no quorum: group 3: 1 of 3 replicas\r\n"},
		{resp: &flotillav1.Response{Code: flotillav1.Code_BUSY}, want: "-TRYAGAIN busy\r\n"},
		{resp: &flotillav1.Response{Code: flotillav1.Code_UNKNOWN, Message: "no answer"}, want: "-ERR outcome unknown, the command may or may not have taken effect: no answer\r\n"},
		{resp: &flotillav1.Response{Code: flotillav1.Code_INTERNAL, Message: "a\r\n+OK"}, want: "-ERR internal error: a  +OK\r\n"},
		{resp: &flotillav1.Response{}, want: "-ERR internal error: the answer does not fit the request\r\n"},
		{err: context.DeadlineExceeded, want: "-ERR outcome unknown, the command may or may not have taken effect: context deadline exceeded\r\n"},
		{err: codedError{flotillav1.Code_UNAVAILABLE}, want: "-CLUSTERDOWN The shard is not served now: coded\r\n"},
		{err: fmt.Errorf("wrapped: %w", codedError{flotillav1.Code_BUSY}), want: "-TRYAGAIN busy: wrapped: coded\r\n"},
	} {
		m.mu.Lock()
		m.fail = func(*flotillav1.Request) (*flotillav1.Response, error) { return f.resp, f.err }
		m.mu.Unlock()
		c.expect(f.want, "GET", "k")
		c.expect(f.want, "SET", "k", "v")
		c.expect(f.want, "MGET", "a", "b", "c")
		c.expect(f.want, "DBSIZE")
		c.expect("+OK\r\n", "MULTI")
		c.expect("+QUEUED\r\n", "GET", "k")
		c.expect(f.want, "EXEC")
	}
}

type codedError struct{ code flotillav1.Code }

func (e codedError) Error() string         { return "coded" }
func (e codedError) Code() flotillav1.Code { return e.code }

// TestOneBadCommandOfMany lets the backend refuse requests for the sake of one
// command: those merged with it must not suffer.
func TestOneBadCommandOfMany(t *testing.T) {
	s, m := startModel(t, 1, nil)
	m.fail = func(req *flotillav1.Request) (*flotillav1.Response, error) {
		for _, key := range requestKeys(req) {
			if string(key) == "bad" {
				return &flotillav1.Response{Code: flotillav1.Code_INVALID, Message: "bad key"}, nil
			}
		}
		return nil, nil
	}
	c := dial(t, s.Addr().String())
	const n = 200
	var in strings.Builder
	for i := range n {
		in.WriteString(array("INCR", "n"))
		if i%10 == 5 {
			in.WriteString(array("INCR", "bad"))
		}
	}
	c.send(in.String())
	for i := range n {
		if got, want := c.reply(), fmt.Sprintf(":%d\r\n", i+1); got != want {
			t.Fatalf("%q, want %q", got, want)
		}
		if i%10 == 5 {
			if got := c.reply(); got != "-ERR bad key\r\n" {
				t.Fatalf("the bad one: %q", got)
			}
		}
	}
}

func TestNoShardsYet(t *testing.T) {
	s, m := startModel(t, 8, nil)
	m.noMap = true
	c := dial(t, s.Addr().String())
	c.expect("-CLUSTERDOWN The cluster has no shards yet\r\n", "GET", "k")
	c.expect("-CLUSTERDOWN The cluster has no shards yet\r\n", "MGET", "k", "l")
	c.expect("-CLUSTERDOWN The cluster has no shards yet\r\n", "DBSIZE")
	c.expect("-CLUSTERDOWN The cluster has no shards yet\r\n", "SCAN", "0")
	c.expect("-CLUSTERDOWN The cluster has no shards yet\r\n", "WATCH", "k")
	c.expect("+PONG\r\n", "PING")
}

func TestPassword(t *testing.T) {
	s, _ := startModel(t, 8, func(o *Options) { o.Password = "secret" })
	addr := s.Addr().String()
	c := dial(t, addr)
	c.expect("-NOAUTH Authentication required.\r\n", "GET", "k")
	c.expect("-NOAUTH Authentication required.\r\n", "PING")
	c.expect("-ERR unknown command 'foo', with args beginning with: \r\n", "foo")
	c.expect("-WRONGPASS invalid username-password pair or user is disabled.\r\n", "AUTH", "wrong")
	c.expect("-WRONGPASS invalid username-password pair or user is disabled.\r\n", "AUTH", "root", "secret")
	if got := c.do("HELLO", "3"); !strings.HasPrefix(got, "-NOAUTH HELLO must be called") {
		t.Errorf("%q", got)
	}
	c.expect("+OK\r\n", "AUTH", "default", "secret")
	c.expect("$-1\r\n", "GET", "k")
	c.expect("+OK\r\n", "SET", "k", strings.Repeat("v", 20<<10))
	c.expect("+RESET\r\n", "RESET")
	c.expect("-NOAUTH Authentication required.\r\n", "GET", "k")
	if got := c.do("HELLO", "3", "AUTH", "default", "secret"); !strings.HasPrefix(got, "%7\r\n") {
		t.Errorf("%q", got)
	}
	c.expect("_\r\n", "GET", "none")

	big := dial(t, addr)
	big.send("*2\r\n$4\r\nAUTH\r\n$20000\r\n")
	if got := big.rest(); got != "-ERR Protocol error: unauthenticated bulk length\r\n" {
		t.Errorf("%q", got)
	}
}

func TestMaxClients(t *testing.T) {
	s, _ := startModel(t, 8, func(o *Options) { o.MaxClients = 2 })
	addr := s.Addr().String()
	first, second := dial(t, addr), dial(t, addr)
	first.expect("+PONG\r\n", "PING")
	second.expect("+PONG\r\n", "PING")
	third := dial(t, addr)
	if got := third.rest(); got != "-ERR max number of clients reached\r\n" {
		t.Errorf("%q", got)
	}
	first.expect("+OK\r\n", "QUIT")
	if got := first.rest(); got != "" {
		t.Errorf("after QUIT: %q", got)
	}
	first.nc.Close()
	eventually(t, "the place is free", func() bool { return s.Stats().Clients == 1 })
	dial(t, addr).expect("+PONG\r\n", "PING")
}

func TestIdleTimeout(t *testing.T) {
	s, m := startModel(t, 8, func(o *Options) { o.IdleTimeout = 50 * time.Millisecond })
	c := dial(t, s.Addr().String())
	if got := c.rest(); got != "" {
		t.Errorf("%q", got)
	}
	// A connection that is owed a reply is not idle.
	hold := make(chan struct{})
	m.mu.Lock()
	m.hold = hold
	m.mu.Unlock()
	c = dial(t, s.Addr().String())
	c.send(array("GET", "k"))
	time.AfterFunc(200*time.Millisecond, func() { close(hold) })
	if got := c.rest(); got != "$-1\r\n" {
		t.Errorf("%q", got)
	}
}

func TestClientReply(t *testing.T) {
	s, _ := startModel(t, 8, nil)
	c := dial(t, s.Addr().String())
	c.send("CLIENT REPLY OFF\r\nPING\r\nSET k 1\r\nCLIENT REPLY SKIP\r\nPING\r\nCLIENT REPLY ON\r\n" +
		"CLIENT REPLY SKIP\r\nPING\r\nGET k\r\nCLIENT REPLY SKIP\r\nCLIENT REPLY SKIP\r\nPING\r\nECHO end\r\nQUIT\r\n")
	if got, want := c.rest(), "+OK\r\n$1\r\n1\r\n$3\r\nend\r\n+OK\r\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestHalfClose sends commands and ends its direction: all must be answered.
func TestHalfClose(t *testing.T) {
	s, _ := startModel(t, 8, nil)
	c := dial(t, s.Addr().String())
	c.send(strings.Repeat("INCR n\r\n", 1000))
	c.nc.(*net.TCPConn).CloseWrite()
	if got := strings.Count(c.rest(), "\r\n"); got != 1000 {
		t.Errorf("%d replies", got)
	}
}

// TestCloseAnswers closes the server with commands under way: they are
// answered, later ones are not read, and no goroutine stays.
func TestCloseAnswers(t *testing.T) {
	goroutines := runtime.NumGoroutine()
	m := newModel(8, 2)
	s := start(t, m, nil)
	hold := make(chan struct{})
	m.hold = hold
	c := dial(t, s.Addr().String())
	c.send(array("SET", "k", "v") + array("GET", "k"))
	eventually(t, "the request is under way", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.requests > 0
	})
	closed := make(chan error, 1)
	go func() { closed <- s.Close(context.Background()) }()
	eventually(t, "closing has begun", s.closing.Load)
	close(hold)
	if got, want := c.rest(), "+OK\r\n$1\r\nv\r\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", s.Addr().String()); err == nil {
		t.Error("still listening")
	}
	m.close()
	eventually(t, "all goroutines have ended", func() bool { return runtime.NumGoroutine() <= goroutines+1 })
}

// TestCloseGivesUp closes with a backend that does not answer in time.
func TestCloseGivesUp(t *testing.T) {
	m := newModel(8, 4)
	s := start(t, m, nil)
	hold := make(chan struct{})
	m.hold = hold
	c, d := dial(t, s.Addr().String()), dial(t, s.Addr().String())
	c.send(array("SET", "k", "v"))
	d.send(array("SET", "k", "v") + array("SCAN", "0"))
	eventually(t, "the requests are under way", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.requests == 2
	})
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := s.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	close(hold)
	m.close()
}

// TestVanishedClient leaves with replies owed; what it sent is carried out.
func TestVanishedClient(t *testing.T) {
	s, m := startModel(t, 8, nil)
	hold := make(chan struct{})
	m.mu.Lock()
	m.hold = hold
	m.mu.Unlock()
	c := dial(t, s.Addr().String())
	c.send(strings.Repeat(array("INCR", "n"), 500))
	eventually(t, "all is received", func() bool { return s.Stats().Commands == 500 })
	c.nc.Close()
	close(hold)
	eventually(t, "the connection is gone", func() bool { return s.Stats().Clients == 0 })
	dial(t, s.Addr().String()).expect("$3\r\n500\r\n", "GET", "n")
}
