//go:build chaos

package node

import "github.com/flotilla-kv/flotilla/internal/chaos"

// lookAround is where a node finds its surroundings: disturbed as a test wants
// them.
func lookAround() (surroundings, error) {
	n, err := chaos.Open()
	if err != nil {
		return surroundings{}, err
	}
	return surroundings{fs: n.FS(), clock: n.Clock, dial: n.Dial, leaseReads: n.LeaseReads()}, nil
}
