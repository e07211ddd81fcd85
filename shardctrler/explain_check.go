package shardctrler

import (
	"fmt"
	"slices"
	"strings"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// CheckExplained is for tests: it asks for the explanation of everything, and of
// the decisions behind one, and returns the last. Each must have facts; what is
// chosen must be what is wished, and all else have a reason for or against; it must
// say where a shard is; and a decision must be the same when it is taken again.
func CheckExplained(s *State, o Observed, after DecisionID) (last DecisionID, err error) {
	c := explainCheck{state: s, observed: o}
	for _, g := range s.Groups {
		c.group(g)
	}
	for _, n := range s.Nodes {
		c.add(ExplainNode(s, o, n.ID))
	}
	for i, at := range s.Shards {
		c.shard(shardmap.ShardID(i), at)
	}
	for last = after; last < s.LastDecision; last++ {
		if _, kept := s.decisionOf(last + 1); kept {
			c.decision(last + 1)
		}
	}
	return last, c.err
}

type explainCheck struct {
	state    *State
	observed Observed
	err      error // the first
}

func (c *explainCheck) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf(format, args...)
	}
}

// add takes an explanation in, and all that is part of it.
func (c *explainCheck) add(x *Explanation, err error) *Explanation {
	if err != nil {
		c.fail("it is not explained: %w", err)
		return new(Explanation)
	}
	if len(x.Facts) == 0 {
		c.fail("%s: nothing is known", x.Subject)
	}
	for _, candidate := range x.Candidates {
		if len(candidate.For)+len(candidate.Against) == 0 {
			c.fail("%s: no reason for or against %d", x.Subject, candidate.ID)
		}
	}
	for _, part := range x.Parts {
		c.add(part, nil)
	}
	return x
}

func (c *explainCheck) group(g Group) {
	for _, candidate := range c.add(ExplainGroup(c.state, c.observed, g.ID)).Candidates {
		is := slices.ContainsFunc(g.Members, func(m shardmap.Member) bool { return uint64(m.Node) == candidate.ID })
		if candidate.Chosen != is {
			c.fail("group %d has members %s; node %d: %+v", g.ID, membersText(g.Members), candidate.ID, candidate)
		}
	}
}

func (c *explainCheck) shard(id shardmap.ShardID, at shardmap.Assignment) {
	x := c.add(ExplainShard(c.state, c.observed, id))
	if len(c.state.Configs) == 0 {
		return
	}
	wished := c.state.config().Owners[id]
	chosen := slices.IndexFunc(x.Candidates, func(c Candidate) bool { return c.Chosen })
	if chosen < 0 || raft.GroupID(x.Candidates[chosen].ID) != wished {
		c.fail("shard %d is wished at group %d: %+v", id, wished, x.Candidates)
	}
	if text := strings.Join(x.Facts, "\n"); !strings.Contains(text, subjectGroup(at.Group)) {
		c.fail("shard %d is at group %d:\n%s", id, at.Group, text)
	}
}

func (c *explainCheck) decision(id DecisionID) {
	x := c.add(ExplainDecision(c.state, id))
	if text := strings.Join(x.Facts, "\n"); !strings.Contains(text, "decided again from the same, it is the same") || strings.Contains(text, "forgotten") {
		c.fail("decision %d:\n%s", id, text)
	}
}
