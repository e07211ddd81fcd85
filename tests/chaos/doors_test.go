//go:build chaos

package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flotilla-kv/flotilla/client"
	"github.com/flotilla-kv/flotilla/internal/history"
)

// Times of the clients.
const (
	opTimeout = 3 * time.Second // of one operation
	think     = 4 * time.Millisecond
)

// goClient makes a Go client of the cluster.
func (c *cluster) goClient() (*client.Client, error) {
	return client.New(client.Options{Servers: c.servers(), Timeout: opTimeout})
}

// redis makes a client of one node's Redis door.
func (n *node) redis() *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr: n.resp(), MaxRetries: -1, DialerRetries: 1, PoolSize: 16, ContextTimeoutEnabled: true,
		DialTimeout: time.Second, ReadTimeout: opTimeout, WriteTimeout: opTimeout,
	})
}

// errWithout marks a failure of which is known that nothing was written.
var errWithout = errors.New("without effect")

// settle makes of a Redis door's failure of a write what the Go client would
// say: whatever is not known to have had no effect may have had one.
func settle(err error) error {
	var reply redis.Error
	var network *net.OpError
	switch {
	case err == nil, errors.Is(err, errWithout), errors.Is(err, client.ErrConditionFailed):
		return err
	case errors.As(err, &reply):
		if strings.HasPrefix(reply.Error(), "ERR outcome unknown") {
			return &client.UnknownOutcomeError{Cause: err}
		}
		return err
	case errors.As(err, &network) && network.Op == "dial", errors.Is(err, redis.ErrPoolTimeout):
		return err
	}
	return &client.UnknownOutcomeError{Cause: err}
}

// redisStore is a node's Redis door as a store whose history can be recorded.
type redisStore struct{ *redis.Client }

func (s redisStore) Get(ctx context.Context, key string, _ ...client.ReadOption) (client.Item, error) {
	value, err := s.Client.Get(ctx, key).Bytes()
	if errors.Is(err, redis.Nil) {
		return client.Item{}, client.ErrNotFound
	}
	return client.Item{Key: key, Value: value, Version: history.Untold}, err
}

func (s redisStore) Put(ctx context.Context, key string, value []byte, _ ...client.PutOption) (client.PutResult, error) {
	return client.PutResult{Version: history.Untold}, settle(s.Set(ctx, key, value, 0).Err())
}

func (s redisStore) Delete(ctx context.Context, key string, _ ...client.DeleteOption) (client.DeleteResult, error) {
	n, err := s.Del(ctx, key).Result()
	return client.DeleteResult{Existed: n == 1}, settle(err)
}

func (s redisStore) Incr(ctx context.Context, key string, by int64) (int64, error) {
	n, err := s.IncrBy(ctx, key, by).Result()
	return n, settle(err)
}

// CompareAndSwap is WATCH, GET, MULTI, SET, EXEC. That EXEC refuses tells that
// the key was written meanwhile, not that its value is another: the operation
// had no effect and tells nothing.
func (s redisStore) CompareAndSwap(ctx context.Context, key string, old, value []byte, _ ...client.PutOption) (client.PutResult, error) {
	err := s.Watch(ctx, func(tx *redis.Tx) error {
		found, err := tx.Get(ctx, key).Bytes()
		switch {
		case errors.Is(err, redis.Nil):
			found = nil
		case err != nil:
			return fmt.Errorf("%w: %w", errWithout, err)
		}
		if (found == nil) != (old == nil) || !bytes.Equal(found, old) {
			return client.ErrConditionFailed
		}
		_, err = tx.TxPipelined(ctx, func(p redis.Pipeliner) error { return p.Set(ctx, key, value, 0).Err() })
		return err
	}, key)
	return client.PutResult{Version: history.Untold}, settle(err)
}

// anyDoor is a store that goes through another door with each operation.
type anyDoor []history.Store

func (a anyDoor) pick() history.Store { return a[rand.IntN(len(a))] }

func (a anyDoor) Get(ctx context.Context, key string, o ...client.ReadOption) (client.Item, error) {
	return a.pick().Get(ctx, key, o...)
}

func (a anyDoor) Put(ctx context.Context, key string, value []byte, o ...client.PutOption) (client.PutResult, error) {
	return a.pick().Put(ctx, key, value, o...)
}

func (a anyDoor) Delete(ctx context.Context, key string, o ...client.DeleteOption) (client.DeleteResult, error) {
	return a.pick().Delete(ctx, key, o...)
}

func (a anyDoor) Incr(ctx context.Context, key string, by int64) (int64, error) {
	return a.pick().Incr(ctx, key, by)
}

func (a anyDoor) CompareAndSwap(ctx context.Context, key string, old, value []byte, o ...client.PutOption) (client.PutResult, error) {
	return a.pick().CompareAndSwap(ctx, key, old, value, o...)
}

// effect is what is known of a write.
type effect uint8

const (
	applied effect = iota // and answered, or found out afterwards
	without               // it had none and never will
	open                  // nobody knows
)

// writer is a door for increments and appends. heard tells whether the answer
// is that of the write; a write that was found out about has none.
type writer interface {
	incr(ctx context.Context, key string) (answer int64, heard bool, e effect)
	append(ctx context.Context, key, token string) effect
}

// redisWriter writes through a node's Redis door.
type redisWriter struct{ *redis.Client }

func (w redisWriter) incr(ctx context.Context, key string) (int64, bool, effect) {
	n, err := w.Client.Incr(ctx, key).Result()
	e := effectOf(settle(err))
	return n, e == applied, e
}

func (w redisWriter) append(ctx context.Context, key, token string) effect {
	return effectOf(settle(w.Client.Append(ctx, key, token).Err()))
}

func effectOf(err error) effect {
	switch {
	case err == nil:
		return applied
	case errors.Is(err, client.ErrUnknownOutcome) && !errors.Is(err, errWithout):
		return open
	}
	return without
}

// goWriter writes through the Go client, and asks what became of a write whose
// outcome it was not told.
type goWriter struct{ *client.Client }

func (w goWriter) incr(ctx context.Context, key string) (int64, bool, effect) {
	n, err := w.Client.Incr(ctx, key, 1)
	return n, err == nil, w.effect(err)
}

func (w goWriter) append(ctx context.Context, key, token string) effect {
	_, err := w.Client.Append(ctx, key, []byte(token))
	return w.effect(err)
}

func (w goWriter) effect(err error) effect {
	var unknown *client.UnknownOutcomeError
	if !errors.As(err, &unknown) {
		return effectOf(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), opTimeout)
	defer cancel()
	outcome, err := w.Outcome(ctx, unknown.Write)
	switch {
	case err != nil:
		return open
	case outcome == client.Applied:
		return applied
	case outcome == client.NotApplied:
		return without
	}
	return open
}
