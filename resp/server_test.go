package resp

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"
)

// testDeadline is how long a test waits for anything: it bounds the time
// without progress, not a test's length.
const testDeadline = 10 * time.Second

// start serves a backend on a free port until the test ends.
func start(t testing.TB, backend Backend, change func(*Options)) *Server {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Listener: listener, Backend: backend, Version: "test"}
	if change != nil {
		change(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testDeadline)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s
}

// startModel serves a fresh model of some shards.
func startModel(t testing.TB, shards int, change func(*Options)) (*Server, *model) {
	t.Helper()
	m := newModel(shards, 4)
	t.Cleanup(m.close)
	return start(t, m, change), m
}

// rawClient speaks to a server in bytes.
type rawClient struct {
	t  testing.TB
	nc net.Conn
	r  *bufio.Reader
}

func dial(t testing.TB, addr string) *rawClient {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(testDeadline))
	return &rawClient{t: t, nc: nc, r: bufio.NewReaderSize(nc, 64<<10)}
}

func (c *rawClient) send(s string) {
	c.t.Helper()
	c.nc.SetDeadline(time.Now().Add(testDeadline))
	if _, err := io.WriteString(c.nc, s); err != nil {
		c.t.Fatalf("send: %v", err)
	}
}

// array is a command as clients send it.
func array(args ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	return b.String()
}

// do sends a command and reads its reply.
func (c *rawClient) do(args ...string) string {
	c.t.Helper()
	c.send(array(args...))
	return c.reply()
}

// reply reads one reply as its bytes.
func (c *rawClient) reply() string {
	c.t.Helper()
	c.nc.SetDeadline(time.Now().Add(testDeadline))
	s, err := readReply(c.r)
	if err != nil {
		c.t.Fatalf("reply: %v (so far %.100q)", err, s)
	}
	return s
}

// readReply reads one reply, whatever its kind, as its bytes.
func readReply(r *bufio.Reader) (string, error) {
	var b strings.Builder
	err := copyReply(&b, r)
	return b.String(), err
}

func copyReply(b *strings.Builder, r *bufio.Reader) error {
	line, err := r.ReadString('\n')
	b.WriteString(line)
	if err != nil {
		return err
	}
	n, _ := strconv.Atoi(strings.TrimSpace(line[1:]))
	switch line[0] {
	case '$', '=':
		if n >= 0 {
			_, err = io.CopyN(b, r, int64(n+2))
		}
		return err
	case '%':
		n *= 2
	case '*', '~':
	default:
		return nil
	}
	for i := 0; i < n && err == nil; i++ {
		err = copyReply(b, r)
	}
	return err
}

// expect sends a command and compares its reply.
func (c *rawClient) expect(want string, args ...string) {
	c.t.Helper()
	if got := c.do(args...); got != want {
		c.t.Errorf("%.200q: %.200q, want %.200q", args, got, want)
	}
}

// rest reads to the end of the connection.
func (c *rawClient) rest() string {
	c.t.Helper()
	all, err := io.ReadAll(c.r)
	if err != nil {
		c.t.Fatalf("the connection did not end: %v (so far %.100q)", err, all)
	}
	return string(all)
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(testDeadline)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestStrings(t *testing.T) {
	s, _ := startModel(t, 64, nil)
	c := dial(t, s.Addr().String())
	c.expect("+PONG\r\n", "PING")
	c.expect("$-1\r\n", "GET", "k")
	c.expect("+OK\r\n", "SET", "k", "v")
	c.expect("$1\r\nv\r\n", "GET", "k")
	c.expect("*3\r\n$1\r\nv\r\n$-1\r\n$1\r\nv\r\n", "MGET", "k", "none", "k")
	c.expect(":1\r\n", "DEL", "k", "none")
	c.expect("+OK\r\n", "SET", "bin\x00\r\n", "a\r\n\x00b")
	c.expect("$5\r\na\r\n\x00b\r\n", "GET", "bin\x00\r\n")
	c.expect("$0\r\n\r\n", "ECHO", "")
	c.expect("+OK\r\n", "SET", "empty", "")
	c.expect("$0\r\n\r\n", "GET", "empty")
	c.expect("*2\r\n$0\r\n\r\n$-1\r\n", "MGET", "empty", "none")
	c.expect("-ERR a key has 1 to 65535 bytes\r\n", "SET", "", "v")
	c.expect("-ERR a key has 1 to 65535 bytes\r\n", "GET", strings.Repeat("k", 65536))
	c.expect("-CROSSSLOT Keys in request don't hash to the same slot\r\n", "MSET", "a", "1", "b", "2", "c", "3", "d", "4")
	c.expect("+OK\r\n", "MSET", "{x}a", "1", "{x}b", "2")
	c.expect("*2\r\n$1\r\n1\r\n$1\r\n2\r\n", "MGET", "{x}a", "{x}b")
}

// TestOrderWithinShard pipelines commands on one key: each must see those
// before it, whatever order the backend answers in.
func TestOrderWithinShard(t *testing.T) {
	s, m := startModel(t, 16, nil)
	c := dial(t, s.Addr().String())
	const rounds = 3000
	var in, want bytes.Buffer
	for i := range rounds {
		in.WriteString(array("INCR", "n") + array("GET", "n") + array("SET", "other"+strconv.Itoa(i%50), "x"))
		n := strconv.Itoa(i + 1)
		fmt.Fprintf(&want, ":%s\r\n$%d\r\n%s\r\n+OK\r\n", n, len(n), n)
	}
	go c.nc.Write(in.Bytes())
	got := make([]byte, want.Len())
	if _, err := io.ReadFull(c.r, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Fatal("replies are out of order")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	t.Logf("%d commands in %d requests", 3*rounds, m.requests)
}

// TestMerging counts requests: a pipeline of one shard becomes few.
func TestMerging(t *testing.T) {
	s, m := startModel(t, 1, nil)
	c := dial(t, s.Addr().String())
	const n = 10_000
	go c.nc.Write([]byte(strings.Repeat(array("INCR", "n"), n)))
	for i := range n {
		if got, want := c.reply(), fmt.Sprintf(":%d\r\n", i+1); got != want {
			t.Fatalf("%q, want %q", got, want)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ops != n || m.requests > n/4 {
		t.Fatalf("%d operations in %d requests", m.ops, m.requests)
	}
}
