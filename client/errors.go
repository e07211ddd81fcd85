package client

import (
	"context"
	"errors"
	"fmt"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/client/routing"
)

// What a caller can act on. Match with errors.Is.
var (
	// ErrNotFound: there is no such key.
	ErrNotFound = errors.New("no such key")
	// ErrConditionFailed: the condition did not hold and nothing was written.
	// errors.As finds a *ConditionError with what stood there.
	ErrConditionFailed = errors.New("condition not met")
	// ErrUnknownOutcome: the write may have happened or may yet happen.
	// errors.As finds an *UnknownOutcomeError; Client.Outcome settles it.
	ErrUnknownOutcome = errors.New("outcome unknown")
	// ErrNoQuorum: the key's group has no majority of its replicas left.
	ErrNoQuorum = errors.New("no quorum")
	// ErrBusy: the cluster, or this client, has too much under way. Nothing
	// happened; try again later.
	ErrBusy = errors.New("busy")
	// ErrUnavailable: nobody could be asked. Nothing happened.
	ErrUnavailable = errors.New("unavailable")
	// ErrSessionExpired: the client's session ended before the write was
	// answered, or the client's clock is far from the cluster's.
	ErrSessionExpired = errors.New("session expired")
	// ErrInvalid: the request is wrong, by its sizes for instance.
	ErrInvalid = errors.New("invalid request")
	// ErrCrossShard: keys that must lie in one shard do not. Keys with the same
	// part between braces, as in "a{user7}" and "b{user7}", always do.
	ErrCrossShard = errors.New("keys in different shards")
	// ErrNotAnInteger: Incr found a value that is no decimal 64-bit integer.
	ErrNotAnInteger = errors.New("value is not an integer")
	// ErrOverflow: the result of Incr would not fit 64 bits.
	ErrOverflow = errors.New("increment would overflow")
	// ErrTooLarge: the value would pass the limit of 4 MiB.
	ErrTooLarge = errors.New("value too large")
	// ErrInternal: the server failed in a way that is its own fault.
	ErrInternal = errors.New("internal error")
	// ErrClosed: the client was closed.
	ErrClosed = errors.New("client closed")
)

// ConditionError is an unmet condition and what was found instead.
type ConditionError struct {
	Found   Item // Key, and the rest if the key is present
	Present bool
}

// Error says what was found, not its value.
func (e *ConditionError) Error() string {
	if !e.Present {
		return fmt.Sprintf("%v: key %q is absent", ErrConditionFailed, clip(e.Found.Key))
	}
	return fmt.Sprintf("%v: key %q is at version %d", ErrConditionFailed, clip(e.Found.Key), e.Found.Version)
}

// Is matches ErrConditionFailed.
func (e *ConditionError) Is(target error) bool { return target == ErrConditionFailed }

// WriteID names a numbered write; see Client.Outcome.
type WriteID = routing.WriteID

// UnknownOutcomeError says that a write may have happened: it was sent, and no
// attempt brought a conclusive answer.
type UnknownOutcomeError struct {
	// Write names it for Client.Outcome.
	Write WriteID
	// Cause is why the client stopped asking: context.DeadlineExceeded, ...
	Cause error
}

// Error says why it is not known.
func (e *UnknownOutcomeError) Error() string {
	return fmt.Sprintf("%v, the write may have happened: %v", ErrUnknownOutcome, e.Cause)
}

// Is matches ErrUnknownOutcome.
func (e *UnknownOutcomeError) Is(target error) bool { return target == ErrUnknownOutcome }

// Unwrap gives the cause.
func (e *UnknownOutcomeError) Unwrap() error { return e.Cause }

// callError is how a call failed, with the code that a response would have
// had: for those who pass answers on, as a node's RESP door does.
type callError struct {
	err  error
	code flotillav1.Code
}

func (e *callError) Error() string         { return e.err.Error() }
func (e *callError) Unwrap() error         { return e.err }
func (e *callError) Code() flotillav1.Code { return e.code }

// Code is that of an outcome that is not known.
func (e *UnknownOutcomeError) Code() flotillav1.Code { return flotillav1.Code_UNKNOWN }

// errorOf turns a router's failure into what the caller sees.
func errorOf(f *routing.Failure) error {
	err := withCause(reasonError(f.Reason), f)
	if f.Possible {
		return &UnknownOutcomeError{Write: f.Write, Cause: err}
	}
	return &callError{err: err, code: codeOf(f)}
}

// codeOf is the code of a failure that had no effect.
func codeOf(f *routing.Failure) flotillav1.Code {
	switch f.Reason {
	case routing.ReasonInvalid, routing.ReasonCrossShard:
		return flotillav1.Code_INVALID
	case routing.ReasonSessionExpired:
		return flotillav1.Code_SESSION_EXPIRED
	case routing.ReasonInternal:
		return flotillav1.Code_INTERNAL
	case routing.ReasonClosed:
		return flotillav1.Code_UNAVAILABLE
	}
	switch f.Last {
	case routing.CauseWindow:
		return flotillav1.Code_BUSY
	case routing.Cause(flotillav1.Code_NOT_LEADER), routing.Cause(flotillav1.Code_MOVED),
		routing.Cause(flotillav1.Code_BUSY), routing.Cause(flotillav1.Code_NO_QUORUM):
		return flotillav1.Code(f.Last)
	}
	return flotillav1.Code_UNAVAILABLE
}

// refused is the error of a call that this client did not take on.
func refused(code flotillav1.Code, err error) error { return &callError{err: err, code: code} }

func reasonError(reason routing.Reason) error {
	switch reason {
	case routing.ReasonDeadline:
		return context.DeadlineExceeded
	case routing.ReasonCancelled:
		return context.Canceled
	case routing.ReasonClosed:
		return ErrClosed
	case routing.ReasonInvalid:
		return ErrInvalid
	case routing.ReasonCrossShard:
		return ErrCrossShard
	case routing.ReasonSessionExpired:
		return ErrSessionExpired
	}
	return ErrInternal
}

// withCause adds what the last attempt met, typed where a caller may ask.
func withCause(err error, f *routing.Failure) error {
	detail := f.Message
	if detail == "" {
		detail = f.Last.String()
	}
	switch f.Reason {
	case routing.ReasonInvalid, routing.ReasonInternal, routing.ReasonSessionExpired:
		return fmt.Errorf("%w: %s", err, detail)
	case routing.ReasonCrossShard, routing.ReasonClosed, routing.ReasonCancelled:
		return err
	}
	also := causeError(f.Last)
	switch {
	case also == nil && f.Message == "":
		return fmt.Errorf("%w (last: %v)", err, f.Last)
	case also == nil:
		return fmt.Errorf("%w (last: %v: %s)", err, f.Last, f.Message)
	case f.Message == "":
		return fmt.Errorf("%w: %w", err, also)
	}
	return fmt.Errorf("%w: %w: %s", err, also, f.Message)
}

// causeError is the sentinel for what the last attempt met, nil if there is
// none.
func causeError(c routing.Cause) error {
	switch c {
	case routing.CauseUnsent, routing.CauseNoMap, routing.CauseNobody, routing.CauseLost, routing.CauseSilent:
		return fmt.Errorf("%w: %v", ErrUnavailable, c)
	case routing.CauseWindow:
		return ErrBusy
	}
	switch flotillav1.Code(c) {
	case flotillav1.Code_BUSY:
		return ErrBusy
	case flotillav1.Code_NO_QUORUM:
		return ErrNoQuorum
	case flotillav1.Code_UNAVAILABLE:
		return ErrUnavailable
	}
	return nil
}

// clip keeps an error's key readable.
func clip(key string) string {
	const keyShownMax = 64
	if len(key) > keyShownMax {
		return key[:keyShownMax] + "..."
	}
	return key
}
