package raft

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// maxMembers bounds each list of a membership. Groups have three or five
// voters; a larger number is damage, and refused.
const maxMembers = 32

// The first byte of an encoded membership, and of one of a group that was
// recovered.
const (
	membershipVersion          = 1
	membershipVersionRecovered = 2
)

// Joint tells whether decisions need a majority of both Voters and Outgoing.
func (m *Membership) Joint() bool { return len(m.Outgoing) > 0 }

// IsVoter tells whether the replica counts in decisions.
func (m *Membership) IsVoter(id ReplicaID) bool {
	return holds(m.Voters, id) || holds(m.Outgoing, id)
}

// Member returns the replica's entry in whichever list has it.
func (m *Membership) Member(id ReplicaID) (Member, bool) {
	for _, list := range [...][]Member{m.Voters, m.Outgoing, m.Learners} {
		for _, x := range list {
			if x.Replica == id {
				return x, true
			}
		}
	}
	return Member{}, false
}

// All returns every member once, sorted by replica.
func (m *Membership) All() []Member {
	all := make([]Member, 0, len(m.Voters)+len(m.Outgoing)+len(m.Learners))
	for _, list := range [...][]Member{m.Voters, m.Outgoing, m.Learners} {
		for _, x := range list {
			if !holds(all, x.Replica) {
				all = append(all, x)
			}
		}
	}
	sortMembers(all)
	return all
}

// lost tells whether the group was recovered from the replica.
func (m *Membership) lost(id ReplicaID) bool { return id < m.Floor && id != m.Survivor }

// hasQuorum tells whether those for whom yes holds can decide.
func (m *Membership) hasQuorum(yes func(ReplicaID) bool) bool {
	return majority(m.Voters, yes) && (len(m.Outgoing) == 0 || majority(m.Outgoing, yes))
}

// quorumValue is the highest value that a quorum has reached, where at gives
// each voter's.
func (m *Membership) quorumValue(at func(ReplicaID) uint64) uint64 {
	v := majorityValue(m.Voters, at)
	if len(m.Outgoing) > 0 {
		v = min(v, majorityValue(m.Outgoing, at))
	}
	return v
}

func majority(list []Member, yes func(ReplicaID) bool) bool {
	n := 0
	for _, x := range list {
		if yes(x.Replica) {
			n++
		}
	}
	return n > len(list)/2
}

func majorityValue(list []Member, at func(ReplicaID) uint64) uint64 {
	if len(list) == 0 {
		return 0
	}
	var sorted [maxMembers]uint64
	n := 0
	for _, x := range list {
		v, i := at(x.Replica), n
		for ; i > 0 && sorted[i-1] < v; i-- {
			sorted[i] = sorted[i-1]
		}
		sorted[i] = v
		n++
	}
	return sorted[n/2] // descending: n/2+1 voters have this or more
}

func holds(list []Member, id ReplicaID) bool {
	for _, x := range list {
		if x.Replica == id {
			return true
		}
	}
	return false
}

func sortMembers(list []Member) {
	for i := range list {
		for j := i; j > 0 && list[j].Replica < list[j-1].Replica; j-- {
			list[j], list[j-1] = list[j-1], list[j]
		}
	}
}

// sameReplicas tells whether two sorted lists name the same replicas.
func sameReplicas(a, b []Member) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Replica != b[i].Replica {
			return false
		}
	}
	return true
}

// validate refuses what no group can have: lists unsorted or too long, a zero
// id, a replica on two nodes, a learner that votes, no voter at all.
func (m *Membership) validate() error {
	if m.Epoch == 0 {
		if len(m.Voters)+len(m.Outgoing)+len(m.Learners) > 0 {
			return errors.New("members without an epoch")
		}
		return nil
	}
	if len(m.Voters) == 0 {
		return errors.New("no voters")
	}
	for _, list := range [...][]Member{m.Voters, m.Outgoing, m.Learners} {
		if len(list) > maxMembers {
			return fmt.Errorf("%d members in one list, at most %d", len(list), maxMembers)
		}
		for i, x := range list {
			if x.Replica == 0 || x.Node == 0 {
				return fmt.Errorf("replica %d on node %d: ids begin at 1", x.Replica, x.Node)
			}
			if i > 0 && list[i-1].Replica >= x.Replica {
				return fmt.Errorf("replica %d is not in order", x.Replica)
			}
			if first, _ := m.Member(x.Replica); first.Node != x.Node {
				return fmt.Errorf("replica %d is on node %d and on node %d", x.Replica, first.Node, x.Node)
			}
		}
	}
	for _, x := range m.Learners {
		if holds(m.Voters, x.Replica) {
			return fmt.Errorf("replica %d is voter and learner", x.Replica)
		}
	}
	return nil
}

// Encode gives the bytes of a membership entry:
//
//	version 1 B | epoch uvarint | voters | outgoing | learners | floor uvarint | survivor uvarint
//
// in version 1 without the last two, each list being: count uvarint | (replica uvarint | node uvarint)*.
func (m *Membership) Encode() []byte {
	b := make([]byte, 0, 16+8*(len(m.Voters)+len(m.Outgoing)+len(m.Learners)))
	version := byte(membershipVersion)
	if m.Floor > 0 {
		version = membershipVersionRecovered
	}
	b = append(b, version)
	b = binary.AppendUvarint(b, m.Epoch)
	for _, list := range [...][]Member{m.Voters, m.Outgoing, m.Learners} {
		b = binary.AppendUvarint(b, uint64(len(list)))
		for _, x := range list {
			b = binary.AppendUvarint(b, uint64(x.Replica))
			b = binary.AppendUvarint(b, uint64(x.Node))
		}
	}
	if m.Floor > 0 {
		b = binary.AppendUvarint(b, uint64(m.Floor))
		b = binary.AppendUvarint(b, uint64(m.Survivor))
	}
	return b
}

// DecodeMembership reads what Encode wrote. Anything else, a byte too many
// included, is an error.
func DecodeMembership(b []byte) (Membership, error) {
	d := membershipDecoder{rest: b}
	version := d.byte()
	if version != membershipVersion && version != membershipVersionRecovered && !d.bad {
		return Membership{}, fmt.Errorf("raft: membership of version %d, known are %d and %d", version, membershipVersion, membershipVersionRecovered)
	}
	m := Membership{Epoch: d.uvarint()}
	m.Voters, m.Outgoing, m.Learners = d.members(), d.members(), d.members()
	if version == membershipVersionRecovered {
		m.Floor, m.Survivor = ReplicaID(d.uvarint()), ReplicaID(d.uvarint())
		d.bad = d.bad || m.Floor == 0
	}
	if d.bad || len(d.rest) > 0 {
		return Membership{}, fmt.Errorf("raft: membership of %d bytes does not decode", len(b))
	}
	if err := m.validate(); err != nil {
		return Membership{}, fmt.Errorf("raft: membership of epoch %d: %w", m.Epoch, err)
	}
	return m, nil
}

// membershipDecoder reads front to back; once bad it gives zeros.
type membershipDecoder struct {
	rest []byte
	bad  bool
}

func (d *membershipDecoder) byte() byte {
	if len(d.rest) == 0 {
		d.bad = true
		return 0
	}
	b := d.rest[0]
	d.rest = d.rest[1:]
	return b
}

func (d *membershipDecoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.rest)
	if n <= 0 {
		d.bad, d.rest = true, nil
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

func (d *membershipDecoder) members() []Member {
	n := d.uvarint()
	if n > maxMembers {
		d.bad, d.rest = true, nil
	}
	var list []Member
	for i := uint64(0); i < n && !d.bad; i++ {
		list = append(list, Member{Replica: ReplicaID(d.uvarint()), Node: NodeID(d.uvarint())})
	}
	return list
}

// IndexedMembership is a membership and the entry that carries it.
type IndexedMembership struct {
	Index      Index
	Term       Term
	Membership Membership
}

// memberships are those that the log names, ascending, the last one committed
// first. The last of all is in effect (section 6: a server uses the latest
// configuration in its log, committed or not).
type memberships struct {
	stack []IndexedMembership // never empty
}

func (s *memberships) current() *Membership { return &s.stack[len(s.stack)-1].Membership }

// index is where the current membership lies in the log.
func (s *memberships) index() Index { return s.stack[len(s.stack)-1].Index }

// anyVoter tells whether the replica votes in the current membership, or in one
// that a truncation can bring back.
func (s *memberships) anyVoter(id ReplicaID) bool {
	for i := range s.stack {
		if s.stack[i].Membership.IsVoter(id) {
			return true
		}
	}
	return false
}

func (s *memberships) push(m IndexedMembership) { s.stack = append(s.stack, m) }

// truncate falls back to the membership before those behind last.
func (s *memberships) truncate(last Index) (changed bool) {
	n := len(s.stack)
	for n > 1 && s.stack[n-1].Index > last {
		n--
	}
	changed = n < len(s.stack)
	s.stack = s.stack[:n:n]
	return changed
}

// settle forgets what no truncation can bring back.
func (s *memberships) settle(commit Index) {
	for len(s.stack) > 1 && s.stack[1].Index <= commit {
		s.stack = s.stack[1:]
	}
}
