package peer

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"strings"
	"sync"
	"testing"
)

// checker holds what comes out of every applyCh against one copy of the log:
// whoever is first to apply a command decides what it is.
type checker struct {
	t      *testing.T
	replay string

	mu      sync.Mutex // guards all below
	log     []string   // command i is at i-1
	hashes  []uint64   // of the log through command i, at i-1
	applied []int      // through which command each peer has applied, in its present life
	leaders map[int]int
	events  []string
	failed  bool
}

func newChecker(t *testing.T, n int, replay string) *checker {
	return &checker{t: t, replay: replay, applied: make([]int, n), leaders: make(map[int]int)}
}

// eventsMax is how many of the last events a failure shows.
const eventsMax = 40

func (k *checker) note(format string, args ...any) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.noteLocked(format, args...)
}

func (k *checker) noteLocked(format string, args ...any) {
	if len(k.events) >= eventsMax {
		k.events = k.events[1:]
	}
	k.events = append(k.events, fmt.Sprintf(format, args...))
}

// fail reports the first violation, with what led to it. It does not end the
// test's goroutine: peers call it too.
func (k *checker) fail(format string, args ...any) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.failLocked(format, args...)
}

func (k *checker) failLocked(format string, args ...any) {
	if k.failed {
		return
	}
	k.failed = true
	k.t.Errorf("%s\nreplay: %s\nlast events:\n  %s", fmt.Sprintf(format, args...), k.replay, strings.Join(k.events, "\n  "))
}

func (k *checker) hasFailed() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.failed
}

// born begins a life of a peer.
func (k *checker) born(peer int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.applied[peer] = 0
	k.noteLocked("%d starts", peer)
}

// took checks a message and tells whether it was a command.
func (k *checker) took(peer int, m *ApplyMsg) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case m.CommandValid == m.SnapshotValid:
		k.failLocked("peer %d: a message that is not either a command or a snapshot: %+v", peer, *m)
	case m.SnapshotValid:
		k.tookSnapshot(peer, m)
	default:
		k.tookCommand(peer, m)
	}
	return m.CommandValid
}

func (k *checker) tookCommand(peer int, m *ApplyMsg) {
	if m.CommandIndex != k.applied[peer]+1 {
		k.failLocked("peer %d: command %d comes behind %d", peer, m.CommandIndex, k.applied[peer])
		return
	}
	command := string(m.Command)
	switch n := m.CommandIndex; {
	case n <= len(k.log):
		if k.log[n-1] != command {
			k.failLocked("peer %d: command %d is %.40q, another peer had %.40q", peer, n, command, k.log[n-1])
		}
	case n == len(k.log)+1:
		k.log = append(k.log, command)
		k.hashes = append(k.hashes, chain(k.hashes, command))
		k.noteLocked("%d is the first to apply command %d: %.20q", peer, n, command)
	}
	k.applied[peer] = m.CommandIndex
}

func (k *checker) tookSnapshot(peer int, m *ApplyMsg) {
	index, hash, ok := readState(m.Snapshot)
	switch {
	case !ok || index != m.SnapshotIndex || index > len(k.hashes) || hash != k.hashes[index-1]:
		k.failLocked("peer %d: a snapshot at %d with the state at %d, hash %x, which nobody had", peer, m.SnapshotIndex, index, hash)
	case m.SnapshotTerm <= 0:
		k.failLocked("peer %d: a snapshot at %d of term %d", peer, m.SnapshotIndex, m.SnapshotTerm)
	case index <= k.applied[peer]:
		k.failLocked("peer %d: a snapshot at %d comes behind command %d", peer, index, k.applied[peer])
	default:
		k.noteLocked("%d takes the snapshot at %d, behind %d", peer, index, k.applied[peer])
		k.applied[peer] = index
	}
}

// leads notes who was seen to lead a term: Election Safety allows one.
func (k *checker) leads(peer, term int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if other, ok := k.leaders[term]; ok && other != peer {
		k.failLocked("term %d is led by peers %d and %d", term, other, peer)
		return
	}
	k.leaders[term] = peer
}

// committed tells how many peers have applied command n, and what it is.
func (k *checker) committed(n int) (peers int, command string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, through := range k.applied {
		if through >= n {
			peers++
		}
	}
	if peers > 0 {
		command = k.log[n-1]
	}
	return peers, command
}

// length is how many commands somebody has applied.
func (k *checker) length() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.log)
}

// state is the state machine's after command n: as good as all commands.
func (k *checker) state(n int) []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	b := binary.BigEndian.AppendUint64(nil, uint64(n))
	return binary.BigEndian.AppendUint64(b, k.hashes[n-1])
}

func readState(b []byte) (index int, hash uint64, ok bool) {
	if len(b) != 16 {
		return 0, 0, false
	}
	index = int(binary.BigEndian.Uint64(b))
	return index, binary.BigEndian.Uint64(b[8:]), index > 0
}

func chain(hashes []uint64, command string) uint64 {
	h := fnv.New64a()
	if n := len(hashes); n > 0 {
		h.Write(binary.BigEndian.AppendUint64(nil, hashes[n-1]))
	}
	h.Write([]byte(command))
	return h.Sum64()
}
