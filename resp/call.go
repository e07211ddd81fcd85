package resp

import (
	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Some commands need answers before they know what to ask next, or ask all
// shards. They are rare, so the reader carries them out by itself, one step
// after the other, once all commands before them are answered. They too go
// through the connection's lane: the answer may have been "outcome unknown".

// settle waits until all commands before this one are answered. It is false
// if the connection has been given up.
func (j *job) settle() bool {
	return j.c.pipe.settle() || j.failed(errGivenUp)
}

const errGivenUp = "ERR the connection is being closed"

// callOne carries out one request on a shard. A failure is answered.
func (j *job) callOne(shard shardmap.ShardID, req *flotillav1.Request) (*flotillav1.Response, bool) {
	req.Shard = uint64(shard)
	responses, ok := j.callAll([]*flotillav1.Request{req})
	if !ok {
		return nil, false
	}
	return responses[0], true
}

// callAll carries out requests at the same time. The first failure is
// answered.
func (j *job) callAll(requests []*flotillav1.Request) ([]*flotillav1.Response, bool) {
	type answer struct {
		i    int
		resp *flotillav1.Response
		text string
	}
	answers := make(chan answer, len(requests))
	for i, req := range requests {
		req.TimeoutMs = j.c.pipe.timeoutMS
		j.c.pipe.lane.Submit(req, func(resp *flotillav1.Response, err error) {
			text := faultText(resp, err)
			if met := len(req.Compares) == 0 || resp.GetCompared(); text == "" && met && len(resp.Results) != len(req.Ops) {
				text = errMisfit
			}
			answers <- answer{i, resp, text}
		})
	}
	responses := make([]*flotillav1.Response, len(requests))
	fault := ""
	for range requests {
		select {
		case a := <-answers:
			responses[a.i] = a.resp
			if fault == "" {
				fault = a.text
			}
		case <-j.c.gone:
			return nil, j.failed(errGivenUp)
		}
	}
	if fault != "" {
		return nil, j.failed(fault)
	}
	return responses, true
}
