package rafttest

import (
	"math/rand/v2"

	"github.com/flotilla-kv/flotilla/raft"
)

// network decides what becomes of a message: lost, delayed, repeated. Nothing
// passes a blocked direction.
type network struct {
	rng       *rand.Rand
	drop      int // of 1000
	repeat    int // of 1000
	late      int // of 1000 take up to lateMost more
	lateMost  int64
	delayMost int64
	blocked   map[direction]bool
}

type direction struct{ from, to raft.ReplicaID }

// fates are the delays after which copies of a message arrive.
func (n *network) fates(from, to raft.ReplicaID) []int64 {
	if n.blocked[direction{from, to}] || n.rng.IntN(1000) < n.drop {
		return nil
	}
	copies := 1
	if n.rng.IntN(1000) < n.repeat {
		copies = 2
	}
	delays := make([]int64, copies)
	for i := range delays {
		delays[i] = 1 + n.rng.Int64N(n.delayMost)
		if n.rng.IntN(1000) < n.late {
			delays[i] += n.rng.Int64N(n.lateMost)
		}
	}
	return delays
}

// heal lets everything pass.
func (n *network) heal() { n.blocked = map[direction]bool{} }

// calm ends all faults of the network.
func (n *network) calm() {
	n.heal()
	n.drop, n.repeat, n.late = 0, 0, 0
}

// split blocks all between the two sides, or one direction of it.
func (n *network) split(a, b []raft.ReplicaID, oneWay bool) {
	for _, x := range a {
		for _, y := range b {
			n.blocked[direction{x, y}] = true
			if !oneWay {
				n.blocked[direction{y, x}] = true
			}
		}
	}
}
