package transport

import "github.com/flotilla-kv/flotilla/raft"

// queue holds the messages that wait for one peer, in order, within two limits.
// When it is full the oldest go: Raft repairs what is lost, and what is newest
// supersedes what is old.
type queue struct {
	messagesMax, bytesMax int

	ring  []raft.Message // a power of two long
	head  int            // of the oldest
	count int
	bytes int
}

// push appends m and returns how many old messages it displaced.
func (q *queue) push(m raft.Message) (dropped int) {
	size := messageBytes(&m)
	for q.count > 0 && (q.count >= q.messagesMax || q.bytes+size > q.bytesMax) {
		q.pop()
		dropped++
	}
	if q.count == len(q.ring) {
		q.grow()
	}
	q.ring[(q.head+q.count)&(len(q.ring)-1)] = m
	q.count++
	q.bytes += size
	return dropped
}

func (q *queue) pop() raft.Message {
	m := q.ring[q.head]
	q.ring[q.head] = raft.Message{}
	q.head = (q.head + 1) & (len(q.ring) - 1)
	q.count--
	q.bytes -= messageBytes(&m)
	return m
}

// take moves the oldest messages behind into: at least one if there is one, and
// as many as fit.
func (q *queue) take(into []raft.Message, bytesMax, messagesMax int) []raft.Message {
	bytes := 0
	for q.count > 0 && len(into) < messagesMax {
		size := messageBytes(&q.ring[q.head])
		if bytes > 0 && bytes+size > bytesMax {
			break
		}
		bytes += size
		into = append(into, q.pop())
	}
	return into
}

// clear drops everything, gives the memory back and returns how many there
// were.
func (q *queue) clear() (dropped int) {
	dropped = q.count
	q.ring, q.head, q.count, q.bytes = nil, 0, 0, 0
	return dropped
}

// ringMin is the first size of the ring.
const ringMin = 64

func (q *queue) grow() {
	ring := make([]raft.Message, max(ringMin, 2*len(q.ring)))
	for i := range q.count {
		ring[i] = q.ring[(q.head+i)&(len(q.ring)-1)]
	}
	q.ring, q.head = ring, 0
}

// What a message, an entry and a member take on the wire at the most, beside
// the data: each number is a tag and a varint.
const (
	messageOverheadBytes = 128
	entryOverheadBytes   = 40
	memberOverheadBytes  = 24
)

// messageBytes bounds the encoded size of m.
func messageBytes(m *raft.Message) int {
	size := messageOverheadBytes
	switch body := m.Body.(type) {
	case *raft.AppendEntries:
		for i := range body.Entries {
			size += entryOverheadBytes + len(body.Entries[i].Data)
		}
	case *raft.InstallSnapshot:
		in := &body.Snapshot.Membership
		size += memberOverheadBytes * (len(in.Voters) + len(in.Outgoing) + len(in.Learners))
	}
	return size
}
