package resp

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// startRedis runs a real redis-server on a free port, or skips the test.
func startRedis(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		t.Skip("redis-server is not installed: replies are not compared with it")
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	port := strconv.Itoa(free.Addr().(*net.TCPAddr).Port)
	free.Close()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, path, "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
		"--daemonize", "no", "--dir", t.TempDir(), "--databases", "1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		cmd.Wait()
	})
	eventually(t, "redis-server answers", func() bool {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			return false
		}
		defer nc.Close()
		nc.SetDeadline(time.Now().Add(time.Second))
		nc.Write([]byte("PING\r\n"))
		n, _ := nc.Read(make([]byte, 16))
		return n == len("+PONG\r\n")
	})
	return addr
}

// sameAsRedis are scripts whose every reply must be Redis' own, byte for byte.
// Each runs on a new connection and an empty database. A line is a command
// whose words are divided by spaces; <sp>, <nl> and <empty> stand for a space,
// a line end and an empty argument.
var sameAsRedis = []struct{ name, script string }{
	{"strings", `
		get k
		set k v
		get k
		set k v2 nx
		set k v2 xx
		set k2 v xx
		set k v3 get
		set none v get
		set k v4 nx get
		set k5 v4 nx get
		set k6 v4 xx get
		get k6
		getset k v5
		getset new v
		getdel k
		getdel k
		setnx k a
		setnx k b
		append k bcd
		append fresh x
		strlen k
		strlen nokey
		type k
		type nokey
		mset a 1 b 2 a 3
		mget a b c a
		exists a b c a
		touch a b c
		del a a c
		unlink b b
		dbsize`},
	{"arguments of SET", `
		set a
		set a b nx xx
		set a b xx nx
		set a b nx nx
		set a b ex
		set a b ex 0
		set a b ex -1
		set a b ex abc
		set a b ex 9223372036854775807
		set a b px 9223372036854775807
		set a b exat 0
		set a b exat -5
		set a b exat 9223372036854775
		set a b exat 9223372036854775807
		set a b keepttl ex 5
		set a b ex 5 keepttl
		set a b ex 5 px 5
		set a b persist
		set a b foo
		set a b GeT Nx
		set a b pxat 5
		get a
		setex a 0 b
		setex a x b
		psetex a -1 b
		setex a 100 b
		ttl a
		set a c keepttl
		ttl a
		set a d
		ttl a`},
	{"integers", `
		incr n
		incrby n 5
		decr n
		decrby n 10
		get n
		incrby n abc
		incrby n 1.5
		incrby n 9223372036854775807
		incrby n 9223372036854775807
		decrby n -9223372036854775808
		set n 9223372036854775807
		incr n
		set n -9223372036854775808
		decr n
		set n <sp>1
		incr n
		set n 01
		incr n
		set n foo
		incr n
		set n <empty>
		incr n
		incrby n +1
		incrby n -0`},
	{"expiry", `
		ttl k
		pttl k
		expiretime k
		pexpiretime k
		expire k 10
		set k v
		ttl k
		pttl k
		expiretime k
		expire k 100
		ttl k
		persist k
		persist k
		persist none
		expireat k 33177117420
		expiretime k
		pexpiretime k
		pexpireat k 33177117420123
		expiretime k
		pexpiretime k
		expire k abc
		expire k 9223372036854775807
		expire k -9223372036854775808
		pexpire k 9223372036854775807
		expire nokey 9223372036854775807
		expire k -1
		exists k
		set k v
		expireat k 5
		exists k
		set k v
		expireat k 0
		exists k
		set k v
		pexpireat k -1
		exists k`},
	{"conditional expiry", `
		expire k 10 nx
		set k v
		expire k 10 xx
		expire k 10 gt
		expire k 100 lt
		ttl k
		expire k 10 nx
		expire k 50 gt
		expire k 200 gt
		ttl k
		expire k 50 xx lt
		ttl k
		expire k 1 foo
		expire k 1 nx xx
		expire k 1 nx gt
		expire k 1 gt lt
		expire k -1 gt
		expire k -1 lt
		exists k`},
	{"GETEX", `
		getex k
		set k v
		getex k
		getex k ex 100
		ttl k
		getex k persist
		ttl k
		getex k ex 0
		getex k exat -1
		getex k foo
		getex k ex 10 persist
		getex k persist ex 10
		getex k nx
		getex k pxat 33177117420000
		expiretime k
		getex k pxat 1
		exists k`},
	{"transactions", `
		exec
		discard
		multi
		multi
		set k v
		incr k
		set k v ex abc
		mget k none
		ping
		watch k
		echo hi
		getex k persist
		exec
		multi
		foo
		set a b
		exec
		get a
		multi
		set a
		exec
		multi
		set a 1
		discard
		get a
		multi
		exec
		multi
		exec x
		exec
		discard x
		multi
		discard x
		exec
		exec x
		watch
		unwatch
		multi
		unwatch
		del k a
		exists k
		setnx k 1
		setnx k 2
		getset k 3
		getdel k
		append k x
		strlen k
		expire k 100
		persist k
		persist k
		ttl k
		type k
		exec
		multi
		select 0
		client getname
		exec`},
	{"watch", `
		watch k
		multi
		set k v
		exec
		watch k
		set k 2
		multi
		get k
		exec
		watch k
		unwatch
		set k 3
		multi
		get k
		exec
		watch none
		set none 1
		multi
		ping
		exec
		watch a b
		del a
		multi
		set a 1
		exec
		watch a
		expire a 100
		multi
		exec`},
	{"connection", `
		ping
		ping hello
		ping a b
		echo
		echo x
		select 0
		select 1
		select abc
		auth x
		auth a b
		auth default x
		auth a b c
		client getname
		client setname foo
		client getname
		client setname a<sp>b
		client setname <empty>
		client getname
		client setname
		client foo
		client
		client id 3
		client reply foo
		client no-evict foo
		client no-evict on
		client list type x
		client list id x
		client list id 999999
		client list foo
		reset
		client getname
		hello 4
		hello abc
		hello 2 foo
		hello 2 auth a
		hello 2 auth a b
		hello 2 setname
		hello 2 setname a<sp>b
		quit`},
	{"mute", `
		client reply on
		client reply on`},
	{"unknown and refused", `
		foo
		foo a b
		foo <nl>
		client|id
		get
		get a b
		mset a
		mset a b c
		config foo
		config get
		config set foo bar
		config set save
		config set databases 5
		config rewrite
		config resetstat
		config get save
		config
		cluster
		cluster info
		cluster slots
		readonly
		readwrite
		asking
		debug sleep 0
		command foo
		command count x
		command info nope
		command list filterby foo x
		command list filterby
		command getkeys
		command getkeys foo bar
		command getkeys get
		command getkeys ping
		command getkeys mset a 1 b 2
		command getkeys del a b c
		command docs nope
		time x
		flushall foo
		flushall a b
		flushdb async
		flushall sync
		info foo`},
	{"scan", `
		scan abc
		scan 0 count 0
		scan 0 count abc
		scan 0 match
		scan 0 foo 1
		scan 0
		set k v
		scan 0
		scan 0 match x*
		scan 0 match k*
		scan 0 type list
		scan 0 type string
		scan 0 match k count 100 type string
		keys *
		keys x
		keys`},
}

// command turns a script's line into arguments.
func scriptLine(line string) []string {
	words := strings.Fields(line)
	for i, w := range words {
		w = strings.NewReplacer("<sp>", " ", "<nl>", "\n", "<empty>", "").Replace(w)
		words[i] = w
	}
	return words
}

// TestSameAsRedis runs scripts against the door and against a real Redis, in
// both protocol versions, and compares the replies byte for byte.
func TestSameAsRedis(t *testing.T) {
	redis := startRedis(t)
	for _, version := range []string{"2", "3"} {
		for _, script := range sameAsRedis {
			t.Run("RESP "+version+" "+script.name, func(t *testing.T) {
				s, _ := startModel(t, 1, nil)
				real, ours := dial(t, redis), dial(t, s.Addr().String())
				real.do("FLUSHALL")
				for _, c := range []*rawClient{real, ours} {
					c.do("HELLO", version)
				}
				for _, line := range strings.Split(strings.TrimSpace(script.script), "\n") {
					args := scriptLine(line)
					want, got := real.do(args...), ours.do(args...)
					if !sameReply(want, got) {
						t.Errorf("%q\n door: %q\nRedis: %q", args, got, want)
					}
				}
			})
		}
	}
}

// sameReply compares replies; milliseconds left may differ by what passes
// between the two.
func sameReply(want, got string) bool {
	if want == got {
		return true
	}
	var a, b int
	n, _ := fmt.Sscanf(want+got, ":%d\r\n:%d", &a, &b)
	return n == 2 && a > 50_000 && a < 1_000_000 && b > a-1000 && b < a+1000
}

// TestGlobAsRedis matches patterns with keys here and there.
func TestGlobAsRedis(t *testing.T) {
	redis := startRedis(t)
	s, _ := startModel(t, 1, nil)
	real, ours := dial(t, redis), dial(t, s.Addr().String())
	patterns := []string{"*", "a", "?", "a*", "*a", "a*b*c", "[ab]", "[^ab]", "[a-c]*", "[c-a]*", "[^a-c]*", "[", "[a", "[^", "[]", "[]a]", "[^]",
		`\*`, `\`, `a\`, `[\]]`, `[\`, "[a-", "[a-]", "[-a]", "**", "a**c", "*?", "?*?", "[[]", "x[^]]y", `[a\-c]`}
	keys := []string{"a", "b", "c", "d", "ab", "abc", "axbyc", "*", "[", "]", "-", `\`, `a\`, "^", "x[y", "[]", "aac", "xay"}
	for _, key := range keys {
		for _, c := range []*rawClient{real, ours} {
			c.do("FLUSHALL")
			c.do("SET", key, "v")
		}
		for _, pattern := range patterns {
			if want, got := real.do("KEYS", pattern), ours.do("KEYS", pattern); got != want {
				t.Errorf("%q with key %q: %q, Redis %q", pattern, key, got, want)
			}
		}
	}
}

// TestCommandInfoAsRedis compares the command table with Redis' own: name,
// arity, flags, key positions and categories.
func TestCommandInfoAsRedis(t *testing.T) {
	redis := startRedis(t)
	s, _ := startModel(t, 1, nil)
	real, ours := dial(t, redis), dial(t, s.Addr().String())
	for _, c := range s.commands.all {
		names := []string{c.name}
		for _, sub := range c.subs {
			names = append(names, sub.name)
		}
		for _, name := range names {
			want, got := infoHead(real.do("COMMAND", "INFO", name)), infoHead(ours.do("COMMAND", "INFO", name))
			if !strings.HasPrefix(want, "*1\r\n$-1") && got != want {
				t.Errorf("%s:\n door: %q\nRedis: %q", name, got, want)
			}
		}
	}
}

// infoHead is the first seven of COMMAND INFO's fields.
func infoHead(reply string) string {
	lines := strings.Split(strings.TrimPrefix(reply, "*1\r\n"), "\r\n")
	if len(lines) < 4 {
		return reply
	}
	end, sets := 0, 0
	for i, l := range lines[1:] {
		if strings.HasPrefix(l, "*") {
			if sets++; sets == 3 {
				end = i + 1
				break
			}
		}
	}
	return strings.Join(lines[1:end], " ")
}
