package resp

import (
	"errors"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Backend is what the door stands before: the node's own client.
type Backend interface {
	// NewLane makes the lane of a new connection. It needs no closing.
	NewLane() Lane
	// Map is the newest shard map known, nil before there is one.
	Map() *shardmap.Map
	// Info is what INFO tells of the node.
	Info() Info
}

// Lane carries out the requests of one connection.
type Lane interface {
	// Submit carries out a request on keys of one shard and calls done exactly
	// once, from any goroutine, also before Submit returns. Of two requests of
	// a lane on one shard the later takes effect after the earlier, or the
	// earlier never does, even where its outcome was given up as unknown.
	// Routing, session numbers and retries are the lane's; so is giving up
	// after Request.timeout_ms. The request and its bytes are the lane's until
	// done is called. Submit does not block for long: the door bounds what a
	// connection has under way. An error may tell by a method Code what kind of
	// failure it is; without one the outcome is taken to be unknown.
	Submit(req *flotillav1.Request, done func(*flotillav1.Response, error))
}

// Info is what a node tells of itself. Unknown numbers are -1.
type Info struct {
	ClusterID string
	NodeID    uint64
	NodeName  string
	Keys      int64 // an estimate, of the whole cluster
}

// codeOf is the kind of an error of Submit, by its method Code; the client's
// errors have it. Any other error leaves the outcome open.
func codeOf(err error) flotillav1.Code {
	var coded interface{ Code() flotillav1.Code }
	if errors.As(err, &coded) {
		return coded.Code()
	}
	return flotillav1.Code_UNKNOWN
}

// answerCode is the kind of a request's answer.
func answerCode(resp *flotillav1.Response, err error) flotillav1.Code {
	switch {
	case err != nil:
		return codeOf(err)
	case resp == nil:
		return flotillav1.Code_UNKNOWN
	}
	return resp.Code
}

// faultText turns a request's failure into an error line as Redis clients
// understand them, "" if it did not fail. CLUSTERDOWN and TRYAGAIN promise
// that nothing was done and clients may retry on them; where that is not known
// the text begins with ERR, which clients hand to their caller.
func faultText(resp *flotillav1.Response, err error) string {
	code, message := answerCode(resp, err), resp.GetMessage()
	if err != nil {
		message = err.Error()
	}
	if code == flotillav1.Code_OK && err == nil {
		return ""
	}
	return codeText(code, message)
}

const errUnknownOutcome = "ERR outcome unknown, the command may or may not have taken effect: "

const errMisfit = "ERR internal error: the answer does not fit the request"

func codeText(code flotillav1.Code, message string) string {
	switch code {
	case flotillav1.Code_NO_QUORUM:
		return "CLUSTERDOWN The group has no quorum" + because(message)
	case flotillav1.Code_UNAVAILABLE:
		return "CLUSTERDOWN The shard is not served now" + because(message)
	case flotillav1.Code_BUSY:
		return "TRYAGAIN busy" + because(message)
	case flotillav1.Code_NOT_LEADER:
		return "TRYAGAIN the group has no known leader" + because(message)
	case flotillav1.Code_MOVED:
		return "TRYAGAIN the shard is moving" + because(message)
	case flotillav1.Code_INVALID:
		return "ERR " + orElse(message, "invalid request")
	case flotillav1.Code_UNKNOWN:
		return errUnknownOutcome + orElse(message, "no answer in time")
	case flotillav1.Code_SESSION_EXPIRED:
		return errUnknownOutcome + orElse(message, "the session has ended")
	}
	return "ERR internal error" + because(message)
}

func because(message string) string {
	if message == "" {
		return ""
	}
	return ": " + message
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
