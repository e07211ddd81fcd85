package shardctrler

import (
	"fmt"
	"sync/atomic"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Machine is the config group's state machine on one node: it holds the state
// in memory, stores each record that an entry changed in the batch that also
// carries the applied index, and publishes the state once that batch is
// committed. One goroutine at a time applies; anybody reads what is published.
type Machine struct {
	applied   *State // of the goroutine that applies
	published atomic.Pointer[publication]
	changed   signal
}

// publication is a state that readers may see, with its map. The map is made
// anew only when its revision has changed.
type publication struct {
	state *State
	table *shardmap.Map
}

// NewMachine is a machine that has applied nothing.
func NewMachine() *Machine {
	m := &Machine{applied: new(State)}
	m.publish()
	return m
}

// recordWriter takes what an entry changed.
type recordWriter interface {
	Set(key, value []byte)
	Delete(key []byte)
}

// applyEntry applies one entry's commands and stores what changed. A committed
// command that this program cannot read was written by a newer one: to skip it
// would make this replica's state another one than its peers', so the node has
// to stop.
func (m *Machine) applyEntry(w recordWriter, index raft.Index, stamp int64, encoded [][]byte, results []any) error {
	commands := make([]Command, len(encoded))
	for i, b := range encoded {
		c, err := DecodeCommand(b)
		if err != nil {
			return fmt.Errorf("config group: the command %d of entry %d cannot be read (was it written by a newer version?): %w", i, index, err)
		}
		commands[i] = c
	}
	next, answers, changed := apply(m.applied, index, stamp, commands)
	copy(results, answers)
	for _, key := range changed {
		if value, ok := next.record(key); ok {
			w.Set(key.encode(), value)
		} else {
			w.Delete(key.encode())
		}
	}
	m.applied = next
	return nil
}

// recordReader walks through what was stored, in the order of the keys.
type recordReader interface {
	First() bool
	Next() bool
	Key() []byte
	Value() []byte
	Error() error
}

// restore rebuilds the state from its records and publishes it.
func (m *Machine) restore(r recordReader) error {
	s := new(State)
	for ok := r.First(); ok; ok = r.Next() {
		if err := s.load(r.Key(), r.Value()); err != nil {
			return fmt.Errorf("config group: %w", err)
		}
	}
	if err := r.Error(); err != nil {
		return fmt.Errorf("config group: reading the stored state: %w", err)
	}
	if err := s.check(); err != nil {
		return fmt.Errorf("config group: the stored state: %w", err)
	}
	m.applied = s
	m.publish()
	return nil
}

// publish lets readers see what was applied.
func (m *Machine) publish() {
	before := m.published.Load()
	if before != nil && before.state == m.applied {
		return
	}
	p := &publication{state: m.applied}
	if before != nil && before.state.Revision == m.applied.Revision && before.state.ClusterID == m.applied.ClusterID {
		p.table = before.table
	} else {
		p.table = m.applied.Map()
	}
	m.published.Store(p)
	m.changed.fire()
}

// State is the latest published state. It is never modified.
func (m *Machine) State() *State { return m.published.Load().state }

// Map is the latest published map; nil before Init.
func (m *Machine) Map() *shardmap.Map {
	p := m.published.Load()
	if !p.state.Initialised() {
		return nil
	}
	return p.table
}

// Changed returns a channel that is closed when a later state is published.
func (m *Machine) Changed() <-chan struct{} { return m.changed.wait() }
