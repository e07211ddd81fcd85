package client

import (
	"context"
	"fmt"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/client/routing"
	"time"
)

// Outcome is what became of a write whose outcome was unknown.
type Outcome uint8

// The outcomes.
const (
	// Expired: the shard no longer knows the number. It may have been applied;
	// it will not be any more.
	Expired Outcome = iota
	// Applied: it took effect, once.
	Applied
	// NotApplied: it did not, and never will.
	NotApplied
)

// String is the outcome as a word.
func (o Outcome) String() string {
	switch o {
	case Applied:
		return "applied"
	case NotApplied:
		return "not applied"
	}
	return "expired"
}

// Outcome asks what became of a write that failed with ErrUnknownOutcome, and
// closes its number: what was not applied by now never will be. Ask soon: the
// shard keeps the answer of a given-up write for the next 256 writes of this
// client to the same shard at most, and for less than an hour.
//
//	var unknown *client.UnknownOutcomeError
//	if errors.As(err, &unknown) { outcome, err = c.Outcome(ctx, unknown.Write) }
func (c *Client) Outcome(ctx context.Context, w WriteID) (Outcome, error) {
	p, err := c.do(ctx, &flotillav1.Request{
		Shard:   uint64(w.Shard),
		Outcome: &flotillav1.Outcome{ClientId: w.Client, BirthMs: w.BirthMS, Seq: w.Seq},
	})
	if err != nil {
		return Expired, fmt.Errorf("outcome: %w", err)
	}
	c.step(func(r *routing.Router, _ time.Time) { r.Forget(w) })
	switch p.GetOutcome() {
	case flotillav1.OutcomeState_APPLIED:
		return Applied, nil
	case flotillav1.OutcomeState_NOT_APPLIED:
		return NotApplied, nil
	case flotillav1.OutcomeState_EXPIRED:
		return Expired, nil
	}
	return Expired, fmt.Errorf("outcome: %w: the answer says nothing", ErrInternal)
}
