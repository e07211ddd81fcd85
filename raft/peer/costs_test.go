package peer

import (
	"bytes"
	"fmt"
	"testing"
	"time"
)

// In the normal case the bytes of a command go once to each follower.
func TestBytes(t *testing.T) {
	scenario(t, 3, func(c *cluster) {
		c.agree(3)
		_, before := c.net.sent(-1)
		payload := 0
		for i := range 10 {
			command := append(fmt.Appendf(nil, "%d ", i), bytes.Repeat([]byte{byte('a' + i)}, 5000)...)
			if index := c.agreeOn(command, 3); index != i+2 {
				c.fatal("command %d is at index %d", i+2, index)
			}
			payload += len(command)
		}
		_, after := c.net.sent(-1)
		if used, limit := after-before, 2*payload+100_000; used > limit {
			c.fatal("ten commands of 5,000 bytes took %d bytes on the network, more than %d", used, limit)
		} else {
			c.t.Logf("ten commands of 5,000 bytes, two followers: %d bytes beside 2 times %d", used-2*payload, payload)
		}
	})
}

// A burst of large commands is not resent while it is on its way.
func TestBytesOfABurst(t *testing.T) {
	scenario(t, 3, func(c *cluster) {
		c.agree(3)
		leader := c.leader()
		_, before := c.net.sent(-1)
		const n, size = 100, 10_000
		last := 0
		for i := range n {
			command := append(fmt.Appendf(nil, "burst %d ", i), make([]byte, size)...)
			index, _, leads := c.peers[leader].Start(command)
			if !leads {
				c.fatal("peer %d does not lead any more", leader)
			}
			last = index
		}
		if !c.until(agreementLimit, func() bool { k, _ := c.check.committed(last); return k == 3 }) {
			c.fatal("the burst is not committed within %v", agreementLimit)
		}
		_, after := c.net.sent(-1)
		if used, limit := after-before, 2*n*size*11/10; used > limit {
			c.fatal("%d commands of %d bytes took %d bytes on the network, more than %d", n, size, used, limit)
		}
	})
}

// Elections, agreements and silence take few calls.
func TestCalls(t *testing.T) {
	scenario(t, 3, func(c *cluster) {
		leader := c.leader()
		if calls, _ := c.net.sent(-1); calls < 1 || calls > 30 {
			c.fatal("the first election took %d calls", calls)
		}

		c.agree(3)
		before, _ := c.net.sent(-1)
		const many = 10
		last := 0
		for range many {
			last, _ = c.must(leader)
		}
		if !c.until(agreementLimit, func() bool { n, _ := c.check.committed(last); return n == 3 }) {
			c.fatal("command %d is not committed", last)
		}
		after, _ := c.net.sent(-1)
		if used := after - before; used > (many+1+3)*3 {
			c.fatal("%d commands took %d calls", many, used)
		}

		time.Sleep(time.Second)
		c.idle(leader, 1, 3)
	})
}

// idle checks that a peer gets at most ten calls in any second from each who
// has something to say to it; the leader is not looked at.
func (c *cluster) idle(leader, senders, seconds int) {
	c.t.Helper()
	for range seconds {
		before := make([]int, len(c.peers))
		for i := range c.peers {
			before[i], _ = c.net.sent(i)
		}
		time.Sleep(time.Second)
		for i := range c.peers {
			after, _ := c.net.sent(i)
			if i != leader && after-before[i] > 10*senders {
				c.fatal("idle, peer %d got %d calls in a second from %d others", i, after-before[i], senders)
			}
		}
	}
}

// Silence is cheap too where most calls hang, and for those who campaign in
// vain.
func TestIdleCallsWithoutAQuorum(t *testing.T) {
	scenario(t, 3, func(c *cluster) {
		c.net.set(weather{hanging: true})
		leader := c.leader()
		c.unlink(c.others(leader)...)
		time.Sleep(3 * electionTimeout)
		c.idle(-1, 2, 10)
	})
}

// While calls to a follower hang for seconds the others go on, and when it is
// back it has everything at once.
func TestHangingCallsHoldNothingUp(t *testing.T) {
	scenario(t, 3, func(c *cluster) {
		c.net.set(weather{hanging: true})
		c.agree(3)
		away := c.others(c.leader())[0]
		c.unlink(away)
		for range 20 {
			began := time.Now()
			c.agree(2)
			if took := time.Since(began); took > time.Second {
				c.fatal("agreement of two took %v while the third's calls hang", took)
			}
			time.Sleep(200 * time.Millisecond)
		}
		c.link(away)
		began := time.Now()
		c.agree(3)
		if took := time.Since(began); took > 2*time.Second {
			c.fatal("the third took %v to catch up", took)
		}
	})
}
