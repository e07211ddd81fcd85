package resp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// goRedis is a client of the library that most Go programs use.
func goRedis(t *testing.T, s *Server, protocol int) *redis.Client {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: s.Addr().String(), Protocol: protocol, ClientName: "test", MaxRetries: -1})
	t.Cleanup(func() { c.Close() })
	return c
}

func TestGoRedis(t *testing.T) {
	for _, protocol := range []int{2, 3} {
		t.Run(fmt.Sprint("RESP ", protocol), func(t *testing.T) {
			s, _ := startModel(t, 64, nil)
			c := goRedis(t, s, protocol)
			t.Run("strings", func(t *testing.T) { goRedisStrings(t, c) })
			t.Run("expiry", func(t *testing.T) { goRedisExpiry(t, c) })
			t.Run("transactions", func(t *testing.T) { goRedisTransactions(t, c) })
			t.Run("scan", func(t *testing.T) { goRedisScan(t, c) })
			t.Run("pipeline", func(t *testing.T) { goRedisPipeline(t, c) })
			t.Run("server", func(t *testing.T) { goRedisServer(t, c) })
		})
	}
}

// must returns a command's value.
func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func goRedisStrings(t *testing.T, c *redis.Client) {
	ctx := t.Context()
	if err := c.Get(ctx, "none").Err(); !errors.Is(err, redis.Nil) {
		t.Errorf("absent key: %v", err)
	}
	must[string](t)(c.Set(ctx, "k", "v", 0).Result())
	equal(t, "GET", must[string](t)(c.Get(ctx, "k").Result()), "v")
	equal(t, "SETNX", must[bool](t)(c.SetNX(ctx, "k", "w", 0).Result()), false)
	equal(t, "SET XX", must[bool](t)(c.SetXX(ctx, "k", "w", time.Hour).Result()), true)
	equal(t, "GETSET", must[string](t)(c.Do(ctx, "GETSET", "k", "x").Text()), "w")
	equal(t, "GETDEL", must[string](t)(c.GetDel(ctx, "k").Result()), "x")
	equal(t, "APPEND", must[int64](t)(c.Append(ctx, "a", "abc").Result()), 3)
	equal(t, "STRLEN", must[int64](t)(c.StrLen(ctx, "a").Result()), 3)
	equal(t, "INCRBY", must[int64](t)(c.IncrBy(ctx, "n", 41).Result()), 41)
	equal(t, "DECR", must[int64](t)(c.Decr(ctx, "n").Result()), 40)
	equal(t, "EXISTS", must[int64](t)(c.Exists(ctx, "a", "n", "none").Result()), 2)
	equal(t, "TYPE", must[string](t)(c.Type(ctx, "a").Result()), "string")
	values := must[[]any](t)(c.MGet(ctx, "a", "none", "n").Result())
	equal(t, "MGET", fmt.Sprint(values), "[abc <nil> 40]")
	equal(t, "DEL", must[int64](t)(c.Del(ctx, "a", "n", "none").Result()), 2)
	must[string](t)(c.MSet(ctx, "{m}1", "1", "{m}2", "2").Result())
	if err := c.MSet(ctx, "a", 1, "b", 2, "c", 3, "d", 4).Err(); err == nil || !strings.HasPrefix(err.Error(), "CROSSSLOT") {
		t.Errorf("MSET across shards: %v", err)
	}
	big := strings.Repeat("b", bulkBytesMax)
	must[string](t)(c.Set(ctx, "big", big, 0).Result())
	if got := must[string](t)(c.Get(ctx, "big").Result()); got != big {
		t.Errorf("a value of 4 MiB came back with %d bytes", len(got))
	}
	if err := c.Append(ctx, "big", "x").Err(); err == nil || !strings.Contains(err.Error(), "exceeds maximum") {
		t.Errorf("APPEND past 4 MiB: %v", err)
	}
}

func goRedisExpiry(t *testing.T, c *redis.Client) {
	ctx := t.Context()
	must[string](t)(c.Set(ctx, "e", "v", 100*time.Second).Result())
	equal(t, "TTL", must[time.Duration](t)(c.TTL(ctx, "e").Result()), 100*time.Second)
	equal(t, "PERSIST", must[bool](t)(c.Persist(ctx, "e").Result()), true)
	equal(t, "TTL", must[time.Duration](t)(c.TTL(ctx, "e").Result()), -1)
	equal(t, "TTL", must[time.Duration](t)(c.TTL(ctx, "none").Result()), -2)
	equal(t, "EXPIRE", must[bool](t)(c.Expire(ctx, "e", time.Minute).Result()), true)
	equal(t, "EXPIRE NX", must[bool](t)(c.ExpireNX(ctx, "e", time.Hour).Result()), false)
	equal(t, "EXPIRE GT", must[bool](t)(c.ExpireGT(ctx, "e", time.Hour).Result()), true)
	at := time.Now().Add(time.Hour).Truncate(time.Second)
	equal(t, "EXPIREAT", must[bool](t)(c.ExpireAt(ctx, "e", at).Result()), true)
	equal(t, "EXPIRETIME", must[time.Duration](t)(c.ExpireTime(ctx, "e").Result()), time.Duration(at.Unix())*time.Second)
	equal(t, "GETEX", must[string](t)(c.GetEx(ctx, "e", 20*time.Millisecond).Result()), "v")
	eventually(t, "the key expires", func() bool { return errors.Is(c.Get(ctx, "e").Err(), redis.Nil) })
}

// goRedisTransactions lets clients count under WATCH: no increment is lost.
func goRedisTransactions(t *testing.T, c *redis.Client) {
	ctx := t.Context()
	cmds := must[[]redis.Cmder](t)(c.TxPipelined(ctx, func(p redis.Pipeliner) error {
		p.Set(ctx, "{t}a", 1, 0)
		p.Incr(ctx, "{t}a")
		p.MGet(ctx, "{t}a", "{t}none")
		return nil
	}))
	equal(t, "INCR in MULTI", cmds[1].(*redis.IntCmd).Val(), 2)
	_, err := c.TxPipelined(ctx, func(p redis.Pipeliner) error {
		for _, k := range []string{"a", "b", "c", "d", "e"} {
			p.Set(ctx, k, 1, 0)
		}
		return nil
	})
	if err == nil || !strings.HasPrefix(err.Error(), "CROSSSLOT") {
		t.Errorf("MULTI across shards: %v", err)
	}
	const clients, each = 4, 25
	var wait sync.WaitGroup
	for range clients {
		wait.Add(1)
		go func() {
			defer wait.Done()
			for done := 0; done < each; {
				err := c.Watch(ctx, func(tx *redis.Tx) error {
					n, err := tx.Get(ctx, "counter").Int()
					if err != nil && !errors.Is(err, redis.Nil) {
						return err
					}
					_, err = tx.TxPipelined(ctx, func(p redis.Pipeliner) error {
						p.Set(ctx, "counter", n+1, 0)
						return nil
					})
					return err
				}, "counter")
				switch {
				case err == nil:
					done++
				case !errors.Is(err, redis.TxFailedErr):
					t.Error(err)
					return
				}
			}
		}()
	}
	wait.Wait()
	equal(t, "the counter", must[string](t)(c.Get(ctx, "counter").Result()), strconv.Itoa(clients*each))
}

func goRedisScan(t *testing.T, c *redis.Client) {
	ctx := t.Context()
	must[string](t)(c.FlushDB(ctx).Result())
	var want []string
	p := c.Pipeline()
	for i := range 2000 {
		key := fmt.Sprintf("scan:%d", i)
		want = append(want, key)
		p.Set(ctx, key, i, 0)
		p.Set(ctx, "other:"+key, i, 0)
	}
	must[[]redis.Cmder](t)(p.Exec(ctx))
	equal(t, "DBSIZE", must[int64](t)(c.DBSize(ctx).Result()), 4000)
	slices.Sort(want)
	for _, count := range []int64{0, 7, 100, 100_000} {
		for _, match := range []string{"scan:*", "s*[n]:*"} {
			var got []string
			iterator := c.Scan(ctx, 0, match, count).Iterator()
			for iterator.Next(ctx) {
				got = append(got, iterator.Val())
			}
			if err := iterator.Err(); err != nil {
				t.Fatal(err)
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("SCAN %s COUNT %d gave %d keys, want %d", match, count, len(got), len(want))
			}
		}
	}
	if err := c.Scan(ctx, 12345, "", 10).Err(); err == nil || !strings.Contains(err.Error(), "unknown cursor") {
		t.Errorf("a cursor never given: %v", err)
	}
	equal(t, "KEYS", len(must[[]string](t)(c.Keys(ctx, "scan:*").Result())), 2000)
	must[string](t)(c.FlushAll(ctx).Result())
	equal(t, "DBSIZE", must[int64](t)(c.DBSize(ctx).Result()), 0)
}

func goRedisPipeline(t *testing.T, c *redis.Client) {
	ctx := t.Context()
	const n = 10_000
	p := c.Pipeline()
	gets := make([]*redis.StringCmd, n)
	for i := range n {
		key := fmt.Sprint("p:", i%1000)
		p.Set(ctx, key, i, 0)
		gets[i] = p.Get(ctx, key)
	}
	must[[]redis.Cmder](t)(p.Exec(ctx))
	for i, get := range gets {
		if got := get.Val(); got != strconv.Itoa(i) {
			t.Fatalf("GET %d after its SET: %q", i, got)
		}
	}
}

func goRedisServer(t *testing.T, c *redis.Client) {
	ctx := t.Context()
	info := must[string](t)(c.Info(ctx).Result())
	for _, line := range []string{"redis_version:7.0.15", "role:master", "cluster_enabled:0", "flotilla_version:test", "connected_clients:"} {
		if !strings.Contains(info, line) {
			t.Errorf("INFO has no %q", line)
		}
	}
	if got := must[string](t)(c.Info(ctx, "replication").Result()); strings.Contains(got, "redis_version") {
		t.Error("INFO replication gives other sections")
	}
	equal(t, "CLIENT GETNAME", must[string](t)(c.ClientGetName(ctx).Result()), "test")
	if list := must[string](t)(c.ClientList(ctx).Result()); !strings.Contains(list, "name=test") || !strings.Contains(list, "cmd=client|list") {
		t.Errorf("CLIENT LIST: %s", list)
	}
	must[*redis.ClientInfo](t)(c.ClientInfo(ctx).Result())
	config := must[map[string]string](t)(c.ConfigGet(ctx, "max*").Result())
	equal(t, "CONFIG GET", config["maxclients"], "10000")
	commands := must[map[string]*redis.CommandInfo](t)(c.Command(ctx).Result())
	if get := commands["get"]; get == nil || !get.ReadOnly || get.Arity != 2 {
		t.Errorf("COMMAND tells of GET: %+v", get)
	}
	now := must[time.Time](t)(c.Time(ctx).Result())
	if d := time.Since(now); d < -time.Second || d > 10*time.Second {
		t.Errorf("TIME is %v off", d)
	}
}

// run runs a program to its end and returns what it printed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skip(name + " is not installed")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*testDeadline)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func TestRedisCLI(t *testing.T) {
	s, _ := startModel(t, 16, nil)
	host, port, _ := net.SplitHostPort(s.Addr().String())
	cli := func(args ...string) string {
		return strings.TrimSpace(run(t, "redis-cli", append([]string{"-h", host, "-p", port}, args...)...))
	}
	equal(t, "SET", cli("SET", "k", "v"), "OK")
	equal(t, "GET", cli("-3", "GET", "k"), "v")
	equal(t, "CLUSTER INFO", cli("CLUSTER", "INFO"), "ERR This instance has cluster support disabled")
	equal(t, "--scan", cli("--scan", "--pattern", "k*"), "k")
	equal(t, "-r", cli("-r", "3", "INCR", "n"), "1\n2\n3")
}

func TestRedisBenchmark(t *testing.T) {
	s, _ := startModel(t, 256, nil)
	host, port, _ := net.SplitHostPort(s.Addr().String())
	for _, pipeline := range []string{"1", "16"} {
		out := run(t, "redis-benchmark", "-h", host, "-p", port, "-t", "set,get,incr", "-n", "10000", "-c", "20", "-P", pipeline, "-r", "1000", "-q")
		if strings.Contains(out, "Error") || strings.Count(out, "requests per second") != 3 {
			t.Errorf("-P %s: %s", pipeline, out)
		}
		t.Logf("-P %s: %s", pipeline, strings.ReplaceAll(out, "\r", "\n"))
	}
	one, _ := startModel(t, 1, nil)
	_, port, _ = net.SplitHostPort(one.Addr().String())
	if out := run(t, "redis-benchmark", "-h", host, "-p", port, "-t", "mset", "-n", "2000", "-c", "10", "-P", "16", "-q"); !strings.Contains(out, "requests per second") || strings.Contains(out, "Error") {
		t.Errorf("mset: %s", out)
	}
}
