package statestore

import (
	"bytes"
	"sort"
)

// mergedIter walks what a table holds on top of what Pebble has.
type mergedIter struct {
	base    rawIter
	prefix  []byte // of the whole keys
	items   []tableItem
	release func() // gives the table back; nil: it is another's

	at      int    // the item at or beyond the current key; when going back the one at or before
	back    bool   // the last move was backwards
	onItem  bool   // the current key is items[at]
	valid   bool   // there is a current key
	whole   []byte // scratch: the current key, if it is an item's
	seekKey []byte // scratch
}

// merged is base with items on top; release is called by Close.
func merged(base rawIter, prefix []byte, items []tableItem, release func()) rawIter {
	if len(items) == 0 {
		if release != nil {
			release()
		}
		return base
	}
	return &mergedIter{base: base, prefix: prefix, items: items, release: release}
}

func (m *mergedIter) First() bool {
	m.base.First()
	m.at, m.back = 0, false
	return m.choose()
}

func (m *mergedIter) Last() bool {
	m.base.Last()
	m.at, m.back = len(m.items)-1, true
	return m.choose()
}

func (m *mergedIter) SeekGE(key []byte) bool {
	m.base.SeekGE(key)
	m.at, m.back = m.lowerBound(key), false
	return m.choose()
}

func (m *mergedIter) SeekLT(key []byte) bool {
	m.base.SeekLT(key)
	m.at, m.back = m.lowerBound(key)-1, true
	return m.choose()
}

// lowerBound is the first item that is not below a whole key.
func (m *mergedIter) lowerBound(key []byte) int {
	if len(key) < prefixBytes || string(key[:prefixBytes]) < string(m.prefix) {
		return 0
	}
	if string(key[:prefixBytes]) > string(m.prefix) {
		return len(m.items)
	}
	key = key[prefixBytes:]
	return sort.Search(len(m.items), func(i int) bool { return string(m.items[i].key) >= string(key) })
}

func (m *mergedIter) Next() bool {
	if m.back {
		if !m.valid {
			return m.First() // it had come to the beginning
		}
		m.seekKey = append(append(m.seekKey[:0], m.Key()...), 0)
		return m.SeekGE(m.seekKey)
	}
	if !m.valid {
		return false
	}
	m.step(1)
	return m.choose()
}

func (m *mergedIter) Prev() bool {
	if !m.back {
		if !m.valid {
			return m.Last() // it had come to the end
		}
		m.seekKey = append(m.seekKey[:0], m.Key()...)
		return m.SeekLT(m.seekKey)
	}
	if !m.valid {
		return false
	}
	m.step(-1)
	return m.choose()
}

// step leaves the current key in the direction of the last move.
func (m *mergedIter) step(by int) {
	if !m.onItem {
		m.stepBase()
		return
	}
	if m.base.Valid() && string(m.base.Key()[prefixBytes:]) == string(m.items[m.at].key) {
		m.stepBase()
	}
	m.at += by
}

func (m *mergedIter) stepBase() {
	if m.back {
		m.base.Prev()
	} else {
		m.base.Next()
	}
}

// choose makes the nearer of the two the current key. An item hides the same
// key below it, and one that says "deleted" is passed over with it.
func (m *mergedIter) choose() bool {
	by := 1
	if m.back {
		by = -1
	}
	for {
		inItems := m.at >= 0 && m.at < len(m.items)
		inBase := m.base.Valid()
		if !inBase && m.base.Error() != nil {
			m.valid = false
			return false
		}
		m.valid = inItems || inBase
		if !inItems {
			m.onItem = false
			return m.valid
		}
		item := &m.items[m.at]
		if inBase {
			key := m.base.Key()[prefixBytes:]
			if c := bytes.Compare(item.key, key) * by; c > 0 {
				m.onItem = false
				return true
			}
		}
		m.onItem = true
		if !item.deleted {
			m.whole = append(append(m.whole[:0], m.prefix...), item.key...)
			return true
		}
		m.step(by)
	}
}

func (m *mergedIter) Valid() bool { return m.valid }

func (m *mergedIter) Key() []byte {
	if m.onItem {
		return m.whole
	}
	return m.base.Key()
}

func (m *mergedIter) Value() []byte {
	if m.onItem {
		return m.items[m.at].value
	}
	return m.base.Value()
}

func (m *mergedIter) Error() error { return m.base.Error() }

func (m *mergedIter) Close() error {
	if m.release != nil {
		m.release()
		m.release = nil
	}
	return m.base.Close()
}
