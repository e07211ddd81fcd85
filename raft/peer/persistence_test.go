package peer

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// restart crashes peers and brings them back.
func (c *cluster) restart(peers ...int) {
	for _, i := range peers {
		c.crash(i)
	}
	for _, i := range peers {
		c.start(i)
	}
}

func TestRestarts(t *testing.T) {
	scenario(t, 3, func(c *cluster) {
		c.agree(3)
		c.restart(0, 1, 2)
		c.agree(3)

		leader := c.leader()
		c.restart(leader)
		c.agree(3)

		leader = c.leader()
		c.crash(leader)
		c.agree(2)
		c.start(leader)
		c.caughtUp()

		follower := c.others(c.leader())[0]
		c.crash(follower)
		c.agree(2)
		c.start(follower)
		c.agree(3)
		if n := c.check.length(); n < 6 {
			c.fatal("of six commands %d are left", n)
		}
	})
}

// Majorities change while others are down.
func TestRestartsOfChangingMajorities(t *testing.T) {
	scenario(t, 5, func(c *cluster) {
		for range short(2, 5) {
			c.agree(5)
			first := c.leader()
			rest := c.others(first)
			c.crash(rest[0])
			c.crash(rest[1])
			c.agree(3)

			c.crash(first)
			c.crash(rest[2])
			c.crash(rest[3])
			c.start(rest[0])
			c.start(rest[1])
			time.Sleep(electionTimeout)
			c.start(rest[2])
			c.agree(3)

			c.start(rest[3])
			c.start(first)
		}
		c.agree(5)
	})
}

// A leader and a follower die after they agreed with a third that is cut off
// later: what was agreed on stays.
func TestRestartOfALeaderWithAPartition(t *testing.T) {
	scenario(t, 3, func(c *cluster) {
		c.agree(3)
		leader := c.leader()
		rest := c.others(leader)
		c.unlink(rest[1])
		c.agree(2)
		c.crash(leader)
		c.crash(rest[0])
		c.link(rest[1])
		c.start(leader)
		c.agree(2)
		c.start(rest[0])
		c.agree(3)
	})
}

// Figure 8 of the paper, at random: leaders crash with entries that are, or are
// not, on a majority.
func TestFigure8(t *testing.T) {
	scenario(t, 5, func(c *cluster) {
		c.agree(1)
		up := 5
		for range short(60, 400) {
			leader := -1
			for i, rf := range c.peers {
				if rf == nil {
					continue
				}
				if _, _, leads := rf.Start(c.command()); leads {
					leader = i
				}
			}
			if c.net.intn(10) == 0 {
				time.Sleep(time.Duration(c.net.intn(500)) * time.Millisecond)
			} else {
				time.Sleep(time.Duration(c.net.intn(13)) * time.Millisecond)
			}
			if leader >= 0 && c.net.intn(2) == 0 {
				c.crash(leader)
				up--
			}
			if i := c.net.intn(5); up < 3 && c.peers[i] == nil {
				c.start(i)
				up++
			}
			c.ok()
		}
		for i := range c.peers {
			if c.peers[i] == nil {
				c.start(i)
			}
		}
		c.agree(5)
	})
}

// The same with partitions, on a network that loses and reorders.
func TestFigure8Unreliable(t *testing.T) {
	figure8(t, weather{lossy: true}, weather{lossy: true, reordering: true})
}

// The same in a storm.
func TestFigure8InAStorm(t *testing.T) { figure8(t, weather{lossy: true, late: true}, storm) }

func figure8(t *testing.T, first, then weather) {
	scenario(t, 5, func(c *cluster) {
		c.net.set(first)
		c.agree(1)
		rounds := short(100, 600)
		for n := range rounds {
			if n == rounds/5 {
				c.net.set(then)
			}
			leader := -1
			for i, rf := range c.peers {
				if _, _, leads := rf.Start(c.command()); leads && c.linked[i] {
					leader = i
				}
			}
			if c.net.intn(10) == 0 {
				time.Sleep(time.Duration(c.net.intn(500)) * time.Millisecond)
			} else {
				time.Sleep(time.Duration(c.net.intn(13)) * time.Millisecond)
			}
			if leader >= 0 && c.net.intn(2) == 0 {
				c.unlink(leader)
			}
			if i := c.net.intn(5); len(c.alive()) < 3 && !c.linked[i] {
				c.link(i)
			}
			c.ok()
		}
		c.link(0, 1, 2, 3, 4)
		c.agree(5)
	})
}

func TestChurn(t *testing.T) { churn(t, weather{}, 20) }

func TestUnreliableChurn(t *testing.T) { churn(t, weather{lossy: true}, 5) }

// In a storm with half of the peers down there may be no agreement at all.
func TestChurnInAStorm(t *testing.T) { churn(t, storm, 0) }

// churn crashes, restarts, cuts off and links peers while clients write; what a
// client has seen committed is in the log at the end, and it is not less than
// it would be if the group only began to work when the churn ends.
func churn(t *testing.T, kind weather, least int) {
	scenario(t, 5, func(c *cluster) {
		c.agree(5)
		c.net.set(kind)
		clients := newClients(c, 3)
		for range short(6, 20) {
			c.churnOnce(clients)
			time.Sleep(time.Duration(100+c.net.intn(600)) * time.Millisecond)
			c.ok()
		}
		clients.lock.Lock()
		for i := range c.peers {
			if c.peers[i] == nil {
				c.start(i)
			}
		}
		c.link(0, 1, 2, 3, 4)
		clients.lock.Unlock()
		time.Sleep(3 * electionTimeout) // in the churn there may never have been a majority for long
		confirmed := clients.stop()
		c.net.set(weather{})
		c.agree(5)
		c.caughtUp()
		for index, command := range confirmed {
			if !c.isCommitted(index, []byte(command), 5) {
				c.fatal("command %d, %q, was confirmed to a client and is gone", index, command)
			}
		}
		if len(confirmed) < least {
			c.fatal("through the whole churn only %d commands were confirmed", len(confirmed))
		}
		c.t.Logf("%d commands confirmed, %d in the log", len(confirmed), c.check.length())
	})
}

func (c *cluster) churnOnce(clients *clients) {
	clients.lock.Lock()
	defer clients.lock.Unlock()
	if i := c.net.intn(5); c.net.intn(10) < 2 {
		c.unlink(i)
	}
	if i := c.net.intn(5); c.net.intn(10) < 5 {
		if c.peers[i] == nil {
			c.start(i)
		}
		c.link(i)
	}
	if i := c.net.intn(5); c.net.intn(10) < 2 {
		c.crash(i)
	}
}

// clients write without pause, each one command after the other.
type clients struct {
	c       *cluster
	lock    sync.RWMutex // of the cluster's peers, while somebody looks at them
	running sync.WaitGroup
	ended   atomic.Bool

	mu        sync.Mutex // guards confirmed
	confirmed map[int]string
}

func newClients(c *cluster, n int) *clients {
	cl := &clients{c: c, confirmed: make(map[int]string)}
	for id := range n {
		cl.running.Go(func() { cl.write(id) })
	}
	return cl
}

func (cl *clients) stop() map[int]string {
	cl.ended.Store(true)
	cl.running.Wait()
	return cl.confirmed
}

func (cl *clients) write(id int) {
	for n := 0; !cl.ended.Load() && !cl.c.check.hasFailed(); n++ {
		command := fmt.Sprintf("client %d writes %d", id, n)
		index := cl.start(command)
		// Not confirmed in time is not known: the client goes on.
		for range 40 {
			time.Sleep(time.Duration(10+cl.c.net.intn(60)) * time.Millisecond)
			if index > 0 && cl.c.isCommitted(index, []byte(command), 1) {
				cl.mu.Lock()
				cl.confirmed[index] = command
				cl.mu.Unlock()
				break
			}
		}
	}
}

// start tries every peer that is up: a client does not know who is cut off.
func (cl *clients) start(command string) int {
	cl.lock.RLock()
	defer cl.lock.RUnlock()
	index := -1
	for _, rf := range cl.c.peers {
		if rf == nil {
			continue
		}
		if i, _, leads := rf.Start([]byte(command)); leads {
			index = i
		}
	}
	return index
}
