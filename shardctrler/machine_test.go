package shardctrler

import (
	"bytes"
	"slices"
	"sort"
	"testing"
)

// memoryRecords is a state store: what a machine wrote, sorted.
type memoryRecords struct {
	values map[string][]byte
	keys   []string
	at     int
}

func newMemoryRecords() *memoryRecords { return &memoryRecords{values: make(map[string][]byte)} }

func (m *memoryRecords) Set(key, value []byte) { m.values[string(key)] = bytes.Clone(value) }
func (m *memoryRecords) Delete(key []byte)     { delete(m.values, string(key)) }
func (m *memoryRecords) First() bool {
	m.keys = m.keys[:0]
	for k := range m.values {
		m.keys = append(m.keys, k)
	}
	sort.Strings(m.keys)
	m.at = 0
	return len(m.keys) > 0
}
func (m *memoryRecords) Next() bool    { m.at++; return m.at < len(m.keys) }
func (m *memoryRecords) Key() []byte   { return []byte(m.keys[m.at]) }
func (m *memoryRecords) Value() []byte { return m.values[m.keys[m.at]] }
func (m *memoryRecords) Error() error  { return nil }

// encodedState is all of a state as bytes: equal states have equal ones.
func encodedState(s *State) []byte {
	var b []byte
	add := func(k recordKey) {
		if v, ok := s.record(k); ok {
			b = append(append(b, k.encode()...), v...)
		}
	}
	add(recordKey{kind: recordMeta})
	for _, n := range s.Nodes {
		add(recordKey{recordNode, uint64(n.ID)})
	}
	for _, g := range s.Groups {
		add(recordKey{recordGroup, uint64(g.ID)})
	}
	for page := range (len(s.Shards) + shardsPerPage - 1) / shardsPerPage {
		add(recordKey{recordShards, uint64(page)})
	}
	for _, c := range s.Configs {
		add(recordKey{recordConfig, uint64(c.Num)})
	}
	for _, o := range s.Operations {
		add(recordKey{recordOperation, uint64(o.ID)})
	}
	for _, m := range s.Moves {
		add(recordKey{recordMove, uint64(m.ID)})
	}
	for _, e := range s.Events {
		add(recordKey{recordEvent, uint64(e.ID)})
	}
	return b
}

func TestUnreadableCommandStops(t *testing.T) {
	m := NewMachine()
	before := m.State()
	for _, bad := range [][]byte{nil, {9}, {1, 99}, {1, tagFinish}, append(EncodeCommand(Finish{Operation: 1}), 0)} {
		if err := m.applyEntry(newMemoryRecords(), 1, 1, [][]byte{bad}, make([]any, 1)); err == nil {
			t.Errorf("%x was applied", bad)
		}
	}
	m.publish()
	if m.State() != before {
		t.Error("an unreadable command changed the state")
	}
}

func TestPublishedStateIsNeverModified(t *testing.T) {
	m := NewMachine()
	records := newMemoryRecords()
	var states []*State
	var encoded [][]byte
	for i, c := range storyOfAGroup(t) {
		if err := m.applyEntry(records, 1+0*1, int64(i), [][]byte{EncodeCommand(c)}, make([]any, 1)); err != nil {
			t.Fatal(err)
		}
		m.publish()
		states = append(states, m.State())
		encoded = append(encoded, encodedState(m.State()))
	}
	for i, s := range states {
		if !slices.Equal(encodedState(s), encoded[i]) {
			t.Errorf("the state after command %d was modified later", i)
		}
	}
}
