package peer

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

func TestBasicAgreement(t *testing.T) {
	scenario(t, 5, func(c *cluster) {
		for want := 1; want <= 3; want++ {
			if n, _ := c.check.committed(want); n > 0 {
				c.fatal("%d peers have command %d before it was started", n, want)
			}
			if index := c.agree(5); index != want {
				c.fatal("command %d is at index %d", want, index)
			}
		}
	})
}

func TestFollowerFailure(t *testing.T) {
	scenario(t, 3, func(c *cluster) {
		c.agree(3)
		leader := c.leader()
		followers := c.others(leader)
		c.unlink(followers[0])
		c.agree(2)
		time.Sleep(electionTimeout)
		c.agree(2)

		c.unlink(followers[1])
		c.neverCommits(c.must(leader))
	})
}

func TestLeaderFailure(t *testing.T) {
	scenario(t, 3, func(c *cluster) {
		c.agree(3)
		first := c.leader()
		c.unlink(first)
		c.agree(2)
		time.Sleep(electionTimeout)
		c.agree(2)

		second := c.leader()
		index, term := c.must(second)
		c.unlink(second)
		c.neverCommits(index, term)
	})
}

// neverCommits checks that for a while nobody applies what was started at index.
func (c *cluster) neverCommits(index, term int) {
	c.t.Helper()
	if c.until(2*electionTimeout, func() bool { n, _ := c.check.committed(index); return n > 0 }) {
		c.fatal("command %d of term %d is applied without a majority", index, term)
	}
}

// A follower that was away catches up when it is back.
func TestAgreementAfterAFollowerReturns(t *testing.T) {
	scenario(t, 3, func(c *cluster) {
		c.agree(3)
		away := c.others(c.leader())[0]
		c.unlink(away)
		for range 4 {
			c.agree(2)
		}
		time.Sleep(electionTimeout)
		c.agree(2)

		c.link(away)
		c.agree(3)
		time.Sleep(electionTimeout)
		c.agree(3)
	})
}

// With most followers away nothing is agreed on; when they return, it goes on
// with whatever their leader says.
func TestNoAgreementWithoutAMajority(t *testing.T) {
	scenario(t, 5, func(c *cluster) {
		c.agree(5)
		leader := c.leader()
		away := c.others(leader)[:3]
		c.unlink(away...)
		index, term := c.must(leader)
		if index != 2 {
			c.fatal("the second command is at index %d", index)
		}
		c.neverCommits(index, term)

		c.link(away...)
		next, _ := c.must(c.leader())
		if next != 2 && next != 3 {
			c.fatal("a command after the return is at index %d, behind 1 or 2", next)
		}
		c.agree(5)
	})
}

// Starts that run at the same time get indexes of their own, without gaps, and
// all are committed.
func TestConcurrentStarts(t *testing.T) {
	scenario(t, 3, func(c *cluster) {
		c.retry(5, func() bool {
			leader := c.leader()
			before, term := c.must(leader)
			indexes, commands, steady := c.startTogether(leader, term, short(20, 200))
			if !steady {
				return false // the leadership moved: begin again
			}
			sorted := slices.Sorted(slices.Values(indexes))
			for i, index := range sorted {
				if index != before+1+i {
					c.fatal("concurrent commands behind %d got indexes %v", before, sorted)
				}
			}
			for i := range indexes {
				if !c.until(agreementLimit, func() bool { return c.isCommitted(indexes[i], commands[i], 3) }) {
					return false
				}
			}
			return true
		})
	})
}

// startTogether starts n commands at a peer, each in a goroutine; false: it did
// not lead the term all the while.
func (c *cluster) startTogether(leader, term, n int) (indexes []int, commands [][]byte, steady bool) {
	var mu sync.Mutex // guards indexes, commands, steady
	var running sync.WaitGroup
	steady = true
	for i := range n {
		running.Go(func() {
			command := fmt.Appendf(nil, "concurrent %d.%d", term, i)
			index, in, leads := c.peers[leader].Start(command)
			mu.Lock()
			defer mu.Unlock()
			indexes, commands = append(indexes, index), append(commands, command)
			steady = steady && leads && in == term
		})
	}
	running.Wait()
	return indexes, commands, steady
}

// retry lets a story that needs a steady leader begin again.
func (c *cluster) retry(times int, story func() bool) {
	c.t.Helper()
	for range times {
		if story() {
			return
		}
		c.ok()
	}
	c.fatal("no leadership lasted through any of %d attempts", times)
}

// The log of a leader that was cut off, and went on alone, gives way.
func TestRejoinOfAPartitionedLeader(t *testing.T) {
	scenario(t, 3, func(c *cluster) {
		c.agree(3)
		first := c.leader()
		c.unlink(first)
		for range 3 {
			c.must(first) // in vain
		}
		c.agree(2)

		second := c.leader()
		c.unlink(second)
		c.link(first)
		c.agree(2)

		c.link(second)
		c.agree(3)
	})
}

// Long logs that conflict, of leaders that went on alone, are brought together
// in few round trips.
func TestBackUpOverLongConflictingLogs(t *testing.T) {
	scenario(t, 5, func(c *cluster) {
		many := short(20, 50)
		c.agree(5)

		// A leader and one follower alone, with many commands in vain.
		first := c.leader()
		rest := c.others(first)
		mate, others := rest[0], rest[1:]
		c.unlink(others...)
		for range many {
			c.must(first)
		}
		time.Sleep(electionTimeout / 2)
		c.unlink(first, mate)

		// The other three agree on many.
		c.link(others...)
		for range many {
			c.agree(3)
		}

		// One of them is away, and many more are started in vain.
		second := c.leader()
		away := others[0]
		if away == second {
			away = others[1]
		}
		c.unlink(away)
		for range many {
			c.must(second)
		}
		time.Sleep(electionTimeout / 2)

		// The first two are back, with the one that was away.
		c.unlink(c.alive()...)
		c.link(first, mate, away)
		calls, _ := c.net.sent(-1)
		began := time.Now()
		for range many {
			c.agree(3)
		}

		c.link(0, 1, 2, 3, 4)
		c.agree(5)
		c.caughtUp()
		after, _ := c.net.sent(-1)
		limit := 200 + 12*many + int(time.Since(began)/tickInterval)*5
		if used := after - calls; used > limit {
			c.fatal("the logs came together with %d calls, more than %d", used, limit)
		}
	})
}

// On a network that loses and delays, all commands are agreed on.
func TestUnreliableAgreement(t *testing.T) {
	scenario(t, 5, func(c *cluster) {
		c.net.set(weather{lossy: true})
		var running sync.WaitGroup
		for round := range short(10, 50) {
			for j := range 4 {
				command := fmt.Appendf(nil, "round %d, %d", round, j)
				running.Go(func() { c.startAnywhere(command) })
			}
			c.agree(1)
		}
		running.Wait()
		c.net.set(weather{})
		c.agree(5)
		c.caughtUp()
	})
}

// All kinds of bad weather at once, with leaders crashing: each agreement comes
// in time.
func TestAgreementInAStorm(t *testing.T) {
	scenario(t, 5, func(c *cluster) {
		c.net.set(storm)
		for round := range short(5, 25) {
			c.agree(3)
			if round%3 == 0 {
				leader := c.leader()
				c.crash(leader)
				c.agree(3)
				c.start(leader)
			}
		}
		c.agree(5)
	})
}
