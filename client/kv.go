package client

import (
	"context"
	"fmt"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

// Item is a key as it was found.
type Item struct {
	Key   string
	Value []byte
	// Version is the count of the shard's writes at the key's last one: it only
	// grows, and no two writes of a shard share one.
	Version uint64
	// Expires is zero if the key does not.
	Expires time.Time
}

// PutResult is what a Put did.
type PutResult struct {
	Version  uint64
	Existed  bool   // the key was there before
	Previous []byte // the value before, if asked for and there
}

// DeleteResult is what a Delete did.
type DeleteResult struct {
	Existed  bool
	Previous []byte // if asked for and there
}

// Get reads a key; ErrNotFound if there is none.
func (c *Client) Get(ctx context.Context, key string, options ...ReadOption) (Item, error) {
	q := readRequest(options, getOp([]byte(key)))
	result, err := c.one(ctx, q)
	if err != nil {
		return Item{}, fmt.Errorf("get %q: %w", clip(key), err)
	}
	if result.GetStatus() == flotillav1.Result_ABSENT {
		return Item{}, fmt.Errorf("get %q: %w", clip(key), ErrNotFound)
	}
	return itemOf(key, result), nil
}

// Put writes a key. With a condition that does not hold, the error is a
// *ConditionError and nothing was written. value must not be changed until Put
// returns, and if it returned an error other than ErrInvalid not at all.
func (c *Client) Put(ctx context.Context, key string, value []byte, options ...PutOption) (PutResult, error) {
	result, err := c.one(ctx, writeRequest(putOp(key, value, options)))
	if err == nil {
		err = statusError(key, result)
	}
	if err != nil {
		return PutResult{}, fmt.Errorf("put %q: %w", clip(key), err)
	}
	return PutResult{Version: result.GetVersion(), Existed: result.GetExisted(), Previous: result.GetValue()}, nil
}

// CompareAndSwap writes a key if its value is old; a nil old stands for an
// absent key. Otherwise the error is a *ConditionError.
func (c *Client) CompareAndSwap(ctx context.Context, key string, old, value []byte, options ...PutOption) (PutResult, error) {
	condition := IfValue(old)
	if old == nil {
		condition = IfAbsent()
	}
	return c.Put(ctx, key, value, append([]PutOption{condition}, options...)...)
}

// Delete removes a key. That there was none is no error.
func (c *Client) Delete(ctx context.Context, key string, options ...DeleteOption) (DeleteResult, error) {
	d := &flotillav1.Delete{Key: []byte(key)}
	for _, o := range options {
		o(d)
	}
	result, err := c.one(ctx, writeRequest(&flotillav1.Op{Op: &flotillav1.Op_Delete{Delete: d}}))
	if err == nil && result.GetStatus() != flotillav1.Result_ABSENT {
		err = statusError(key, result)
	}
	if err != nil {
		return DeleteResult{}, fmt.Errorf("delete %q: %w", clip(key), err)
	}
	return DeleteResult{Existed: result.GetExisted(), Previous: result.GetValue()}, nil
}

// Append adds to the end of a value, which is empty if there is none, and
// returns the new length. value is as for Put.
func (c *Client) Append(ctx context.Context, key string, value []byte) (length int64, err error) {
	result, err := c.one(ctx, writeRequest(appendOp(key, value)))
	if err == nil {
		err = statusError(key, result)
	}
	if err != nil {
		return 0, fmt.Errorf("append %q: %w", clip(key), err)
	}
	return result.GetNumber(), nil
}

// Incr adds to a decimal 64-bit integer, an absent one being 0, and returns
// the new value. Errors: ErrNotAnInteger, ErrOverflow.
func (c *Client) Incr(ctx context.Context, key string, by int64) (int64, error) {
	result, err := c.one(ctx, writeRequest(incrOp(key, by)))
	if err == nil {
		err = statusError(key, result)
	}
	if err != nil {
		return 0, fmt.Errorf("incr %q: %w", clip(key), err)
	}
	return result.GetNumber(), nil
}

// Expire lets a key expire after ttl, which must be positive; ErrNotFound if
// there is no such key.
func (c *Client) Expire(ctx context.Context, key string, ttl time.Duration) error {
	if ttl <= 0 {
		return fmt.Errorf("expire %q: %w: a TTL of %v", clip(key), ErrInvalid, ttl)
	}
	return c.expire(ctx, key, &flotillav1.Expire{Key: []byte(key), TtlMs: int64(wireMillis(ttl))})
}

// Persist takes a key's expiry away; ErrNotFound if there is no such key.
func (c *Client) Persist(ctx context.Context, key string) error {
	return c.expire(ctx, key, &flotillav1.Expire{Key: []byte(key)})
}

func (c *Client) expire(ctx context.Context, key string, e *flotillav1.Expire) error {
	result, err := c.one(ctx, writeRequest(&flotillav1.Op{Op: &flotillav1.Op_Expire{Expire: e}}))
	if err == nil {
		err = statusError(key, result)
	}
	if err != nil {
		return fmt.Errorf("expire %q: %w", clip(key), err)
	}
	return nil
}

// one sends a request of one op and returns its result.
func (c *Client) one(ctx context.Context, q *flotillav1.Request) (*flotillav1.Result, error) {
	p, err := c.do(ctx, q)
	return single(answer{p, err})
}

// single is the result of an answer to one op.
func single(a answer) (*flotillav1.Result, error) {
	if a.err != nil {
		return nil, a.err
	}
	if n := len(a.response.GetResults()); n != 1 {
		return nil, fmt.Errorf("%w: %d results of one operation", ErrInternal, n)
	}
	return a.response.GetResults()[0], nil
}

// statusError is the error of an op's result, nil if it did what it should.
func statusError(key string, r *flotillav1.Result) error {
	switch r.GetStatus() {
	case flotillav1.Result_DONE:
		return nil
	case flotillav1.Result_ABSENT:
		return ErrNotFound
	case flotillav1.Result_CONDITION_FAILED:
		return &ConditionError{Found: itemOf(key, r), Present: r.GetVersion() != 0}
	case flotillav1.Result_NOT_AN_INTEGER:
		return ErrNotAnInteger
	case flotillav1.Result_OVERFLOW:
		return ErrOverflow
	case flotillav1.Result_TOO_LARGE:
		return ErrTooLarge
	}
	return fmt.Errorf("%w: result status %v", ErrInternal, r.GetStatus())
}

func itemOf(key string, r *flotillav1.Result) Item {
	return Item{Key: key, Value: r.GetValue(), Version: r.GetVersion(), Expires: expiry(r.GetExpireAtMs())}
}

func expiry(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

func readRequest(options []ReadOption, ops ...*flotillav1.Op) *flotillav1.Request {
	q := &flotillav1.Request{Ops: ops}
	for _, o := range options {
		o.applyRead(q)
	}
	return q
}

func writeRequest(ops ...*flotillav1.Op) *flotillav1.Request {
	return &flotillav1.Request{Ops: ops}
}

func getOp(key []byte) *flotillav1.Op {
	return &flotillav1.Op{Op: &flotillav1.Op_Get{Get: &flotillav1.Get{Key: key}}}
}

func putOp(key string, value []byte, options []PutOption) *flotillav1.Op {
	p := &flotillav1.Put{Key: []byte(key), Value: value}
	for _, o := range options {
		o(p)
	}
	return &flotillav1.Op{Op: &flotillav1.Op_Put{Put: p}}
}

func appendOp(key string, value []byte) *flotillav1.Op {
	return &flotillav1.Op{Op: &flotillav1.Op_Append{Append: &flotillav1.Append{Key: []byte(key), Value: value}}}
}

func incrOp(key string, by int64) *flotillav1.Op {
	return &flotillav1.Op{Op: &flotillav1.Op_Incr{Incr: &flotillav1.Incr{Key: []byte(key), By: by}}}
}
