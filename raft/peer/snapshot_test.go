package peer

import "testing"

// stateLimit is what the state of a peer may grow to while its state machine
// takes a snapshot every ten commands of a few bytes.
const stateLimit = 2000

func TestSnapshotBasic(t *testing.T) { snapshots(t, away{}, weather{}, 30) }

func TestSnapshotInstallDisconnected(t *testing.T) { snapshots(t, away{unlinked: true}, weather{}, 30) }

func TestSnapshotInstallDisconnectedUnreliable(t *testing.T) {
	snapshots(t, away{unlinked: true}, weather{lossy: true}, 30)
}

func TestSnapshotInstallCrash(t *testing.T) { snapshots(t, away{crashed: true}, weather{}, 30) }

func TestSnapshotInstallCrashUnreliable(t *testing.T) {
	snapshots(t, away{crashed: true}, weather{lossy: true}, 30)
}

func TestSnapshotInstallInAStorm(t *testing.T) { snapshots(t, away{crashed: true}, storm, 12) }

// away is why a peer misses what the others' snapshots swallow.
type away struct{ unlinked, crashed bool }

// snapshots lets a peer miss more than the log keeps, again and again: it must
// be brought back by a snapshot, and no state may grow.
func snapshots(t *testing.T, why away, kind weather, rounds int) {
	scenarioWith(t, 3, 10, func(c *cluster) {
		c.net.set(kind)
		c.agree(3)
		leader := c.leader()
		for round := range short(6, rounds) {
			victim, sender := c.others(leader)[0], leader
			if round%3 == 1 {
				sender, victim = c.others(leader)[0], leader
			}
			if why.unlinked {
				c.unlink(victim)
				c.agree(2)
			}
			if why.crashed {
				c.crash(victim)
				c.agree(2)
			}
			for range 5 + c.net.intn(10) {
				c.peers[sender].Start(c.command())
			}
			if why == (away{}) {
				c.agree(3)
			} else {
				c.agree(2)
			}
			c.checkStates()

			if why.unlinked {
				c.link(victim)
			}
			if why.crashed {
				c.start(victim)
			}
			if why != (away{}) {
				c.agree(3)
			}
			leader = c.leader()
		}
		c.caughtUp()
	})
}

func (c *cluster) checkStates() {
	c.t.Helper()
	if size := c.stateMax(); size >= stateLimit {
		c.fatal("the state of a peer has %d bytes although snapshots are taken", size)
	}
}

// All crash and come back, with snapshots.
func TestSnapshotAllCrash(t *testing.T) {
	scenarioWith(t, 3, 10, func(c *cluster) {
		c.agree(3)
		for range short(2, 5) {
			for range 5 + c.net.intn(10) {
				c.agree(3)
			}
			before := c.agree(3)
			c.restart(0, 1, 2)
			if after := c.agree(3); after < before+1 {
				c.fatal("before all crashed there were %d commands, behind it the next is %d", before, after)
			}
		}
	})
}

// A peer that has come back from a snapshot alone has the log's position from
// it: a second restart of all, without a new snapshot, changes nothing.
func TestSnapshotAndSecondRestart(t *testing.T) {
	scenarioWith(t, 3, 10, func(c *cluster) {
		for range 15 {
			c.agree(3)
		}
		c.restart(0, 1, 2)
		c.agree(3)
		c.restart(0, 1, 2)
		c.agree(3)
		c.caughtUp()
	})
}

// Every command is swallowed by a snapshot at once, and every return of a peer
// needs one, while leaders change.
func TestSnapshotOfEveryCommand(t *testing.T) {
	scenarioWith(t, 3, 1, func(c *cluster) {
		c.net.set(weather{lossy: true})
		for range short(5, 20) {
			victim := c.net.intn(3)
			c.crash(victim)
			for range 3 {
				c.agree(2)
			}
			c.start(victim)
			c.agree(3)
			c.unlink(c.leader())
			c.agree(2)
			c.link(0, 1, 2)
		}
		c.agree(3)
		c.caughtUp()
		if size := c.stateMax(); size > headerBytes+100 {
			c.fatal("with every command in a snapshot the state has %d bytes", size)
		}
	})
}
