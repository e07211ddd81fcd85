package client

import (
	"context"
	"fmt"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

// Op is an operation of a transaction or a batch. Make one with GetOp, PutOp,
// DeleteOp, AppendOp or IncrOp.
type Op struct {
	key  string
	wire *flotillav1.Op
}

// GetOp reads a key.
func GetOp(key string) Op { return Op{key, getOp([]byte(key))} }

// PutOp writes a key. An unmet condition of its own makes its result an error
// and leaves the other operations alone.
func PutOp(key string, value []byte, options ...PutOption) Op {
	return Op{key, putOp(key, value, options)}
}

// DeleteOp removes a key.
func DeleteOp(key string, options ...DeleteOption) Op {
	d := &flotillav1.Delete{Key: []byte(key)}
	for _, o := range options {
		o(d)
	}
	return Op{key, &flotillav1.Op{Op: &flotillav1.Op_Delete{Delete: d}}}
}

// AppendOp adds to the end of a value.
func AppendOp(key string, value []byte) Op { return Op{key, appendOp(key, value)} }

// IncrOp adds to a decimal 64-bit integer.
func IncrOp(key string, by int64) Op { return Op{key, incrOp(key, by)} }

// OpResult is what became of an operation.
type OpResult struct {
	// Item is the key after the operation; its Value is what Get found, or the
	// previous value if Put or Delete were asked for it.
	Item Item
	// Existed: the key was there before the operation.
	Existed bool
	// Number is the new value of Incr or the new length of Append.
	Number int64
	// Err is nil, ErrNotFound for a read of an absent key, a *ConditionError,
	// ErrNotAnInteger, ErrOverflow or ErrTooLarge; in a Batch also what the
	// request to the key's shard failed with.
	Err error
}

// Compare is a condition of a transaction.
type Compare struct{ wire *flotillav1.Compare }

// Exists holds if the key is there.
func Exists(key string) Compare {
	return Compare{&flotillav1.Compare{Target: flotillav1.Compare_EXISTS, Key: []byte(key)}}
}

// Absent holds if it is not.
func Absent(key string) Compare {
	return Compare{&flotillav1.Compare{Target: flotillav1.Compare_ABSENT, Key: []byte(key)}}
}

// VersionIs holds if the key is at that version; 0 is an absent key's.
func VersionIs(key string, version uint64) Compare {
	return Compare{&flotillav1.Compare{Target: flotillav1.Compare_VERSION, Key: []byte(key), Version: version}}
}

// ValueIs holds if the key has that value.
func ValueIs(key string, value []byte) Compare {
	return Compare{&flotillav1.Compare{Target: flotillav1.Compare_VALUE, Key: []byte(key), Value: value}}
}

// Txn is a transaction on keys of one shard: if all its compares hold its Then
// operations take effect together and in order, otherwise its Else operations
// do. It is made by Client.Txn, filled and committed by one goroutine.
type Txn struct {
	client    *Client
	compares  []*flotillav1.Compare
	then      []Op
	otherwise []Op
}

// Txn begins a transaction.
//
//	r, err := c.Txn().If(client.ValueIs("a{7}", old)).
//		Then(client.PutOp("a{7}", v), client.IncrOp("n{7}", 1)).
//		Else(client.GetOp("a{7}")).Commit(ctx)
func (c *Client) Txn() *Txn { return &Txn{client: c} }

// If adds compares.
func (t *Txn) If(compares ...Compare) *Txn {
	for _, cmp := range compares {
		t.compares = append(t.compares, cmp.wire)
	}
	return t
}

// Then adds operations for when all compares hold.
func (t *Txn) Then(ops ...Op) *Txn {
	t.then = append(t.then, ops...)
	return t
}

// Else adds operations for when they do not.
func (t *Txn) Else(ops ...Op) *Txn {
	t.otherwise = append(t.otherwise, ops...)
	return t
}

// TxnResult is what a transaction did.
type TxnResult struct {
	// Succeeded: the compares held, and Results are those of Then; otherwise
	// those of Else.
	Succeeded bool
	Results   []OpResult
}

// Commit carries the transaction out. ErrCrossShard: its keys do not lie in one
// shard.
func (t *Txn) Commit(ctx context.Context) (TxnResult, error) {
	p, err := t.client.do(ctx, &flotillav1.Request{
		Compares:  t.compares,
		Ops:       wireOps(t.then),
		Otherwise: wireOps(t.otherwise),
	})
	if err != nil {
		return TxnResult{}, fmt.Errorf("txn: %w", err)
	}
	ran := t.then
	if !p.GetCompared() {
		ran = t.otherwise
	}
	results, err := opResults(ran, p.GetResults())
	if err != nil {
		return TxnResult{}, fmt.Errorf("txn: %w", err)
	}
	return TxnResult{Succeeded: p.GetCompared(), Results: results}, nil
}

func wireOps(ops []Op) []*flotillav1.Op {
	wire := make([]*flotillav1.Op, len(ops))
	for i, op := range ops {
		wire[i] = op.wire
	}
	return wire
}

func opResults(ops []Op, wire []*flotillav1.Result) ([]OpResult, error) {
	if len(wire) != len(ops) {
		return nil, fmt.Errorf("%w: %d results of %d operations", ErrInternal, len(wire), len(ops))
	}
	results := make([]OpResult, len(ops))
	for i, r := range wire {
		results[i] = opResult(ops[i], r)
	}
	return results, nil
}

func opResult(op Op, r *flotillav1.Result) OpResult {
	result := OpResult{Item: itemOf(op.key, r), Existed: r.GetExisted(), Number: r.GetNumber()}
	switch op.wire.GetOp().(type) {
	case *flotillav1.Op_Get:
		if r.GetStatus() == flotillav1.Result_ABSENT {
			result.Err = ErrNotFound
		}
	case *flotillav1.Op_Delete:
		if r.GetStatus() != flotillav1.Result_ABSENT {
			result.Err = statusError(op.key, r)
		}
	default:
		result.Err = statusError(op.key, r)
	}
	return result
}
