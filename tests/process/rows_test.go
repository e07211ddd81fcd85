//go:build process

package process

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// door is a plain connection to a Redis door, for what a client library does
// not do: to send without waiting, and fast.
type door struct {
	t    testing.TB
	conn net.Conn
	in   *bufio.Reader
	out  *bufio.Writer
}

// doorTimeout bounds one read or write: a door that stands still is a failure.
const doorTimeout = 30 * time.Second

func dialDoor(t testing.TB, addr string) *door {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, doorTimeout)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &door{t: t, conn: conn, in: bufio.NewReaderSize(conn, 1<<16), out: bufio.NewWriterSize(conn, 1<<16)}
}

// send sends one command at once.
func (d *door) send(args ...string) {
	d.t.Helper()
	d.put(args...)
	d.conn.SetWriteDeadline(time.Now().Add(doorTimeout))
	if err := d.out.Flush(); err != nil {
		d.t.Fatal(err)
	}
}

// put buffers one command.
func (d *door) put(args ...string) {
	fmt.Fprintf(d.out, "*%d\r\n", len(args))
	for _, arg := range args {
		fmt.Fprintf(d.out, "$%d\r\n%s\r\n", len(arg), arg)
	}
}

// reply reads a reply and fails if none comes.
func (d *door) reply() string {
	d.t.Helper()
	text, err := d.next()
	if err != nil {
		d.t.Fatalf("no reply of %s: %v", d.conn.RemoteAddr(), err)
	}
	return text
}

// next reads a reply: a bulk string as it is, any other with its first byte.
func (d *door) next() (string, error) {
	d.conn.SetReadDeadline(time.Now().Add(doorTimeout))
	line, err := d.in.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimSuffix(line, "\r\n")
	size, isBulk := strings.CutPrefix(line, "$")
	if !isBulk || size == "-1" {
		return line, nil
	}
	n, err := strconv.Atoi(size)
	if err != nil {
		return "", err
	}
	text := make([]byte, n+2)
	_, err = io.ReadFull(d.in, text)
	return string(text[:n]), err
}

// pipelined sends n commands and hands on each reply as it comes, without
// waiting in between; the replies are those of the commands in their order. It
// stops at the first error.
func (d *door) pipelined(n int, command func(i int) []string, take func(i int, reply string) error) error {
	var sending sync.WaitGroup
	var sendErr error
	sending.Go(func() {
		for i := range n {
			d.put(command(i)...)
			if d.out.Buffered() > 1<<15 || i == n-1 {
				d.conn.SetWriteDeadline(time.Now().Add(doorTimeout))
				if sendErr = d.out.Flush(); sendErr != nil {
					return
				}
			}
		}
	})
	defer sending.Wait()
	for i := range n {
		reply, err := d.next()
		if err == nil {
			err = take(i, reply)
		}
		if err != nil {
			d.conn.Close() // ends the sending
			sending.Wait()
			if sendErr != nil {
				return fmt.Errorf("reply %d of %d: %w (sending: %w)", i, n, err, sendErr)
			}
			return fmt.Errorf("reply %d of %d: %w", i, n, err)
		}
	}
	return nil
}

// rows are keys whose values follow from their number and the seed, and do not
// compress.
type rows struct {
	count int
	seed  uint64
}

const rowBytes = 256

func rowKey(i int) string { return fmt.Sprintf("row:%08d", i) }

func (r rows) value(i int) string {
	var seed [32]byte
	copy(seed[:], fmt.Sprintf("%d of %d", i, r.seed))
	value := make([]byte, rowBytes)
	rand.NewChaCha8(seed).Read(value)
	value[0] = 'v' // so that none looks like an error
	return string(value)
}

// doors is how many connections load or read rows.
const doors = 4

// each runs one pipeline per connection over the rows. A command that is
// refused, or whose outcome is not known, is sent again, as any client would:
// that happens where other work on the machine leaves the nodes no time to hear
// each other. With -soak the machine is ours, and it is a failure.
func (r rows) each(t testing.TB, addr string, command func(i int) []string, good func(i int, reply string) bool) {
	t.Helper()
	errs := make([]error, doors)
	var running sync.WaitGroup
	var mu sync.Mutex // guards again
	var again []int
	for d := range doors {
		first, end := r.count*d/doors, r.count*(d+1)/doors
		conn := dialDoor(t, addr)
		running.Go(func() {
			defer conn.conn.Close()
			errs[d] = conn.pipelined(end-first, func(i int) []string { return command(first + i) }, func(i int, reply string) error {
				switch {
				case good(first+i, reply):
					return nil
				case !strings.HasPrefix(reply, "-") || *soak > 0:
					return fmt.Errorf("%s %s: %.200q", command(first + i)[0], rowKey(first+i), reply)
				}
				mu.Lock()
				defer mu.Unlock()
				if again = append(again, first+i); len(again) == 1 {
					t.Logf("%s %s: %q", command(first + i)[0], rowKey(first+i), reply)
				}
				return nil
			})
		})
	}
	running.Wait()
	for _, err := range errs {
		if err != nil {
			t.Fatalf("%d rows through %s: %v", r.count, addr, err)
		}
	}
	if len(again) == 0 {
		return
	}
	t.Logf("%d of %d rows are sent again", len(again), r.count)
	conn := dialDoor(t, addr)
	for _, i := range again {
		eventually(t, time.Minute, func() error {
			conn.send(command(i)...)
			if reply := conn.reply(); !good(i, reply) {
				return fmt.Errorf("%s %s: %.200q", command(i)[0], rowKey(i), reply)
			}
			return nil
		})
	}
}

// load writes the rows through a node.
func (r rows) load(t testing.TB, addr string) {
	t.Helper()
	r.each(t, addr, func(i int) []string { return []string{"SET", rowKey(i), r.value(i)} },
		func(_ int, reply string) bool { return reply == "+OK" })
}

// check reads the rows through a node and compares each.
func (r rows) check(t testing.TB, addr string) {
	t.Helper()
	r.each(t, addr, func(i int) []string { return []string{"GET", rowKey(i)} },
		func(i int, reply string) bool { return reply == r.value(i) })
}

func TestRowsDiffer(t *testing.T) {
	r := rows{count: 2, seed: 1}
	if a, b := r.value(0), r.value(1); len(a) != rowBytes || a == b || bytes.Equal([]byte(a), make([]byte, rowBytes)) || a == (rows{seed: 2}).value(0) {
		t.Errorf("rows are %q and %q", a, b)
	}
}
