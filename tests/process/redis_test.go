//go:build process

package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// TestGoRedisOnACluster uses a live cluster as go-redis users do, in both
// protocols: what one node took is read at the others.
func TestGoRedisOnACluster(t *testing.T) {
	d := startDev(t, t.TempDir())
	for _, protocol := range []int{2, 3} {
		t.Run(fmt.Sprint("RESP", protocol), func(t *testing.T) {
			at := func(i int) *redis.Client {
				c := redis.NewClient(&redis.Options{Addr: d.resp(i), Protocol: protocol, MaxRetries: -1, ReadTimeout: 30 * time.Second})
				t.Cleanup(func() { c.Close() })
				return c
			}
			a, b, c := at(0), at(1), at(2)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			if err := a.FlushAll(ctx).Err(); err != nil {
				t.Fatal(err)
			}
			t.Run("HELLO", func(t *testing.T) { hello(ctx, t, a, protocol) })
			t.Run("strings", func(t *testing.T) { stringsAcross(ctx, t, a, b) })
			t.Run("TTL", func(t *testing.T) { ttlAcross(ctx, t, a, b) })
			t.Run("MULTI and WATCH", func(t *testing.T) { watchAcross(ctx, t, a, b) })
			t.Run("a pipeline of 10,000, and SCAN", func(t *testing.T) { pipelineAndScan(ctx, t, a, []*redis.Client{a, b, c}) })
		})
	}
}

// hello asks for the protocol itself; go-redis would fall back in silence.
func hello(ctx context.Context, t *testing.T, c *redis.Client, protocol int) {
	answer, err := c.Do(ctx, "HELLO", protocol).Result()
	if err != nil {
		t.Fatal(err)
	}
	found := ""
	switch fields := answer.(type) {
	case map[any]any: // RESP3 has maps
		found = fmt.Sprint(fields["proto"])
		if protocol != 3 {
			t.Errorf("HELLO %d answers with a map", protocol)
		}
	case []any:
		for i := 0; i+1 < len(fields); i += 2 {
			if fields[i] == "proto" {
				found = fmt.Sprint(fields[i+1])
			}
		}
		if protocol != 2 {
			t.Errorf("HELLO %d answers with a list", protocol)
		}
	}
	if found != strconv.Itoa(protocol) {
		t.Errorf("HELLO %d says proto %q: %v", protocol, found, answer)
	}
}

func stringsAcross(ctx context.Context, t *testing.T, a, b *redis.Client) {
	if err := a.Set(ctx, "bin\x00\r\nkey", "bin\x00\r\nvalue", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if got, err := b.Get(ctx, "bin\x00\r\nkey").Result(); err != nil || got != "bin\x00\r\nvalue" {
		t.Errorf("GET at another node: %q, %v", got, err)
	}
	if err := b.Get(ctx, "absent").Err(); !errors.Is(err, redis.Nil) {
		t.Errorf("GET of an absent key: %v", err)
	}
	for i, client := range []*redis.Client{a, b, a} {
		if n, err := client.IncrBy(ctx, "n", 5).Result(); err != nil || n != int64(5*(i+1)) {
			t.Errorf("INCRBY: %d, %v", n, err)
		}
	}
	if n, err := b.Append(ctx, "bin\x00\r\nkey", "!").Result(); err != nil || n != 12 {
		t.Errorf("APPEND: %d, %v", n, err)
	}
	var keys []string
	for i := range 100 { // in many shards
		keys = append(keys, fmt.Sprint("m", i))
		if err := a.Set(ctx, keys[i], i, 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	values, err := b.MGet(ctx, keys...).Result()
	for i, value := range values {
		if value != strconv.Itoa(i) {
			t.Fatalf("MGET over shards: %d is %v", i, value)
		}
	}
	if n, delErr := b.Del(ctx, keys...).Result(); err != nil || delErr != nil || n != 100 {
		t.Errorf("DEL over shards: %d, %v, %v", n, err, delErr)
	}
}

func ttlAcross(ctx context.Context, t *testing.T, a, b *redis.Client) {
	if err := a.Set(ctx, "short", "v", 300*time.Millisecond).Err(); err != nil {
		t.Fatal(err)
	}
	if err := a.Set(ctx, "long", "v", time.Hour).Err(); err != nil {
		t.Fatal(err)
	}
	if ttl, err := b.TTL(ctx, "long").Result(); err != nil || ttl < 59*time.Minute || ttl > time.Hour {
		t.Errorf("TTL at another node: %s, %v", ttl, err)
	}
	eventually(t, 10*time.Second, func() error {
		if err := b.Get(ctx, "short").Err(); !errors.Is(err, redis.Nil) {
			return fmt.Errorf("a key of 300 ms: %v", err)
		}
		return nil
	})
	if n, err := b.Exists(ctx, "long", "short").Result(); err != nil || n != 1 {
		t.Errorf("EXISTS: %d, %v", n, err)
	}
}

// watchAcross: a transaction at one node fails if another node changed the key
// it watches, and else takes effect as a whole.
func watchAcross(ctx context.Context, t *testing.T, a, b *redis.Client) {
	if err := a.Set(ctx, "{w}balance", 10, 0).Err(); err != nil {
		t.Fatal(err)
	}
	transfer := func(interfere bool) error {
		return a.Watch(ctx, func(tx *redis.Tx) error {
			balance, err := tx.Get(ctx, "{w}balance").Int()
			if err != nil {
				return err
			}
			if interfere {
				if err := b.Incr(ctx, "{w}balance").Err(); err != nil {
					return err
				}
			}
			_, err = tx.TxPipelined(ctx, func(p redis.Pipeliner) error {
				p.Set(ctx, "{w}balance", balance-1, 0)
				p.Incr(ctx, "{w}spent")
				return nil
			})
			return err
		}, "{w}balance")
	}
	if err := transfer(true); !errors.Is(err, redis.TxFailedErr) {
		t.Errorf("EXEC behind a change at another node: %v, want it to fail", err)
	}
	if err := transfer(false); err != nil {
		t.Errorf("EXEC: %v", err)
	}
	if values, err := b.MGet(ctx, "{w}balance", "{w}spent").Result(); err != nil || fmt.Sprint(values) != "[10 1]" {
		t.Errorf("after one transfer: %v, %v; want [10 1]", values, err)
	}
}

// pipelineAndScan sends 10,000 pairs in one pipeline, and finds each key once
// with SCAN at each node.
func pipelineAndScan(ctx context.Context, t *testing.T, a *redis.Client, all []*redis.Client) {
	const n = 10_000
	pipeline := a.Pipeline()
	gets := make([]*redis.StringCmd, n)
	for i := range n {
		pipeline.Set(ctx, fmt.Sprint("scan:", i), i, 0)
		gets[i] = pipeline.Get(ctx, fmt.Sprint("scan:", i))
	}
	if _, err := pipeline.Exec(ctx); err != nil {
		t.Fatal(err)
	}
	for i, get := range gets {
		if got := get.Val(); got != strconv.Itoa(i) {
			t.Fatalf("GET %d behind its SET: %q", i, got)
		}
	}
	for i, client := range all {
		found := make(map[string]int)
		iterator := client.Scan(ctx, 0, "scan:*", 500).Iterator()
		for iterator.Next(ctx) {
			found[iterator.Val()]++
		}
		if err := iterator.Err(); err != nil || len(found) != n {
			t.Errorf("SCAN at node %d finds %d keys, %v; want %d", i+1, len(found), err, n)
		}
		for key, times := range found {
			if times != 1 {
				t.Errorf("SCAN at node %d gave %s %d times, and nothing was written", i+1, key, times)
				break
			}
		}
	}
}

// TestRedisBenchmarkOnACluster lets redis-benchmark run to its end.
func TestRedisBenchmarkOnACluster(t *testing.T) {
	needs(t, "redis-benchmark")
	d := startDev(t, t.TempDir())
	for i, depth := range []string{"1", "16"} {
		host, port, _ := net.SplitHostPort(d.resp(i))
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		out, err := exec.CommandContext(ctx, "redis-benchmark", "-h", host, "-p", port,
			"-t", "set,get,incr", "-n", sized("100000", "5000"), "-r", "100000", "-P", depth, "--csv").CombinedOutput()
		if err != nil || strings.Contains(strings.ToLower(string(out)), "error") {
			t.Fatalf("redis-benchmark -P %s: %v\n%s", depth, err, out)
		}
		for _, test := range []string{"SET", "GET", "INCR"} {
			if !strings.Contains(string(out), `"`+test+`","`) {
				t.Errorf("redis-benchmark -P %s did not finish %s:\n%s", depth, test, out)
			}
		}
		t.Logf("-P %s:\n%s", depth, out)
	}
}
