package peer

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestInitialElection(t *testing.T) {
	scenario(t, 3, func(c *cluster) {
		leader := c.leader()
		term, _ := c.peers[leader].GetState()
		if term < 1 {
			c.fatal("peer %d leads term %d", leader, term)
		}
		// Without a failure nothing changes.
		if c.until(3*electionTimeout, func() bool {
			now, leads := c.peers[leader].GetState()
			return now != term || !leads
		}) {
			c.fatal("leader %d of term %d did not last in peace", leader, term)
		}
		for i := range c.peers {
			if now, _ := c.peers[i].GetState(); now != term {
				c.fatal("peer %d is in term %d, the leader's is %d", i, now, term)
			}
		}
	})
}

func TestReElection(t *testing.T) {
	scenario(t, 3, func(c *cluster) {
		first := c.leader()
		c.unlink(first)
		second := c.leader()

		// The old leader's return disturbs nobody.
		c.link(first)
		if c.leader() != second {
			c.fatal("the return of peer %d took the leadership from %d", first, second)
		}

		// No quorum, no leader.
		lone := c.others(second)[0]
		c.unlink(second, lone)
		c.noLeader()

		c.link(lone)
		c.leader()
		c.link(second)
		c.leader()
	})
}

func TestManyElections(t *testing.T) {
	scenario(t, 7, func(c *cluster) {
		c.leader()
		for range short(4, 12) {
			away := c.others(-1)[:3]
			c.unlink(away...)
			c.leader()
			c.link(away...)
			c.leader()
			c.ok()
		}
	})
}

// Leaders are cut off again and again on the worst network that there is.
func TestElectionsInAStorm(t *testing.T) {
	scenario(t, 5, func(c *cluster) {
		c.net.set(storm)
		for range short(4, 15) {
			leader := c.leader()
			c.unlink(leader)
			c.leader()
			c.link(leader)
		}
	})
}

// A leader that reaches nobody stops taking itself for one.
func TestLoneLeaderSteps(t *testing.T) {
	scenario(t, 3, func(c *cluster) {
		leader := c.leader()
		c.unlink(leader)
		if !c.until(electionLimit, func() bool { _, leads := c.peers[leader].GetState(); return !leads }) {
			c.fatal("peer %d still leads, alone, after %v", leader, electionLimit)
		}
	})
}

func TestOnePeerAlone(t *testing.T) {
	scenarioWith(t, 1, 3, func(c *cluster) {
		for n := 1; n <= 10; n++ {
			if index := c.agree(1); index != n {
				c.fatal("command %d is at index %d", n, index)
			}
		}
		c.crash(0)
		c.start(0)
		c.caughtUp()
		if index := c.agree(1); index != 11 {
			c.fatal("after a restart command 11 is at index %d", index)
		}
	})
}

// Kill is final, and may be said twice.
func TestKill(t *testing.T) {
	scenario(t, 3, func(c *cluster) {
		leader := c.leader()
		rf := c.peers[leader]
		c.crash(leader)
		rf.Kill()
		if index, _, leads := rf.Start([]byte("late")); leads || index != -1 {
			c.fatal("a dead peer leads: index %d", index)
		}
		if _, leads := rf.GetState(); leads {
			c.fatal("a dead peer leads")
		}
		rf.Snapshot(1, nil)
		var reply DeliverReply
		rf.Deliver(&DeliverArgs{From: (leader + 1) % 3, To: leader, Requests: []Request{{Term: 9, RequestVote: &RequestVote{}}}}, &reply)
		if len(reply.Answers) > 0 {
			c.fatal("a dead peer answers: %+v", reply)
		}
	})
}

// One that nobody reads from answers all the same, and can be killed.
func TestNobodyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		applyCh := make(chan ApplyMsg)
		rf := Make(make([]ClientEnd, 1), 0, &disk{}, applyCh)
		time.Sleep(2 * electionTimeout)
		for n := 1; n <= 100; n++ {
			if index, _, leads := rf.Start([]byte("x")); !leads || index != n {
				t.Fatalf("command %d is at index %d, leader %t", n, index, leads)
			}
		}
		synctest.Wait()
		rf.Kill()
		select {
		case m := <-applyCh:
			t.Fatalf("after Kill: %+v", m)
		default:
		}
	})
}
