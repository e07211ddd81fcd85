package routing

import "time"

// Reason is why a call failed.
type Reason uint8

// The reasons.
const (
	ReasonDeadline       Reason = iota // its deadline passed
	ReasonCancelled                    // its caller gave up
	ReasonClosed                       // the client was closed
	ReasonInvalid                      // the server refused the request
	ReasonCrossShard                   // its keys lie in different shards, or its shard does not exist
	ReasonSessionExpired               // the number's session has ended
	ReasonInternal                     // the server failed in a way that no retry helps
)

// Failure is a call's end without an answer.
type Failure struct {
	Reason  Reason
	Last    Cause  // what the last attempt met
	Message string // what came with it
	// Possible: the call writes, and may have happened or may yet happen.
	Possible bool
	// Write names the write if it was numbered.
	Write    WriteID
	Attempts int
}

// failure describes how c ends if it ends now.
func (r *Router) failure(c *Call, reason Reason) *Failure {
	f := &Failure{Reason: reason, Last: c.last, Message: c.message, Possible: c.uncertain(), Attempts: c.attempts}
	numbered := c
	if c.whole != nil {
		numbered = c.whole
		f.Last, f.Message, f.Attempts = numbered.last, numbered.message, numbered.attempts
	}
	if numbered.numbered {
		f.Write = numbered.number.id()
	}
	return f
}

// uncertain reports whether a write may have had an effect, or may yet.
func (c *Call) uncertain() bool {
	if c.whole != nil {
		return c.whole.uncertain()
	}
	return c.kind == kindWrite && (c.possible || c.state == stateInFlight)
}

// failParts ends the parts of a merged call with it.
func (r *Router) failParts(now time.Time, whole *Call, f *Failure) {
	for _, c := range whole.parts {
		if c.state != stateDone {
			r.finish(now, c, nil, f)
		}
	}
}
