package rafttest

import (
	"fmt"

	"github.com/flotilla-kv/flotilla/raft"
)

// Disk is what of a replica outlives a crash: its log, its term and vote, and
// the state machine as of the last flush. Writes wait, in order, until they are
// synced; a crash loses the last of those that wait.
//
// As a raft.LogReader it shows only what is synced, so a core that reads what
// it was not told to be durable is caught.
type Disk struct {
	Hard    raft.HardState
	Flushed *Machine

	base     raft.Index
	baseTerm raft.Term
	entries  []raft.Entry // from base+1
	chains   []uint64     // of entries; see chain
	// baseChain is the chain at base.
	baseChain uint64

	waiting []raft.Write
	// decided gives the chain at an index that is committed: a log that is
	// reset begins there.
	decided func(raft.Index) uint64
}

// newDisk is empty but for the state machine's first membership.
func newDisk(first raft.Membership, decided func(raft.Index) uint64) *Disk {
	return &Disk{Flushed: &Machine{Membership: first}, decided: decided}
}

// FirstIndex implements raft.LogReader.
func (d *Disk) FirstIndex() raft.Index { return d.base + 1 }

// LastIndex implements raft.LogReader.
func (d *Disk) LastIndex() raft.Index { return d.base + raft.Index(len(d.entries)) }

// Term implements raft.LogReader.
func (d *Disk) Term(i raft.Index) (raft.Term, error) {
	switch {
	case i < d.base:
		return 0, raft.ErrCompacted
	case i == d.base:
		return d.baseTerm, nil
	case i > d.LastIndex():
		return 0, raft.ErrUnavailable
	}
	return d.entries[i-d.base-1].Term, nil
}

// Entries implements raft.LogReader.
func (d *Disk) Entries(lo, hi raft.Index, maxBytes int) ([]raft.Entry, error) {
	switch {
	case lo <= d.base:
		return nil, raft.ErrCompacted
	case hi > d.LastIndex()+1 || lo >= hi:
		return nil, raft.ErrUnavailable
	}
	es := d.entries[lo-d.base-1 : hi-d.base-1]
	n, bytes := 1, 0
	for n < len(es) && bytes+len(es[n].Data) <= maxBytes {
		bytes += len(es[n].Data)
		n++
	}
	return append([]raft.Entry(nil), es[:n]...), nil
}

// chainAt is the chain at i, if the durable log can tell.
func (d *Disk) chainAt(i raft.Index) (uint64, bool) {
	switch {
	case i == d.base:
		return d.baseChain, true
	case i > d.base && i <= d.LastIndex():
		return d.chains[i-d.base-1], true
	}
	return 0, false
}

// Sync makes the oldest n waiting writes durable and returns the last one's
// acknowledgement.
func (d *Disk) Sync(n int) raft.WriteAck {
	var ack raft.WriteAck
	for _, w := range d.waiting[:n] {
		d.store(w)
		ack = raft.WriteAck{Seq: w.Seq}
		if k := len(w.Entries); k > 0 {
			ack.Last, ack.LastTerm = w.Entries[k-1].Index, w.Entries[k-1].Term
		}
	}
	d.waiting = append([]raft.Write(nil), d.waiting[n:]...)
	return ack
}

func (d *Disk) store(w raft.Write) {
	if w.HardState != nil {
		d.Hard = *w.HardState
	}
	if w.Reset != nil {
		d.base, d.baseTerm = w.Reset.Index, w.Reset.Term
		d.entries, d.chains = nil, nil
		d.baseChain = d.decided(w.Reset.Index)
	}
	if len(w.Entries) == 0 {
		return
	}
	first := w.Entries[0].Index
	if first <= d.base || first > d.LastIndex()+1 {
		panic(fmt.Sprintf("write %d begins at %d, the log is (%d, %d]", w.Seq, first, d.base, d.LastIndex()))
	}
	keep := first - d.base - 1
	d.entries, d.chains = d.entries[:keep:keep], d.chains[:keep:keep]
	at := d.baseChain
	if keep > 0 {
		at = d.chains[keep-1]
	}
	for _, e := range w.Entries {
		at = chain(at, &e)
		d.entries, d.chains = append(d.entries, e), append(d.chains, at)
	}
}

// Compact drops the log through i, which must be flushed.
func (d *Disk) Compact(i raft.Index) {
	i = min(i, d.Flushed.Applied, d.LastIndex())
	if i <= d.base {
		return
	}
	n := i - d.base
	d.baseTerm, d.baseChain = d.entries[n-1].Term, d.chains[n-1]
	d.entries, d.chains, d.base = d.entries[n:], d.chains[n:], i
}

// Crash loses all waiting writes but the oldest keep.
func (d *Disk) Crash(keep int) {
	d.Sync(keep)
	d.waiting = nil
}

// Cut loses the last n entries of the durable log: the fault that a replica
// must notice and become suspect for. Term and vote have a second copy.
func (d *Disk) Cut(n int) {
	keep := max(0, len(d.entries)-n)
	d.entries, d.chains = d.entries[:keep:keep], d.chains[:keep:keep]
}

// memberships are the membership entries behind the flushed state.
func (d *Disk) memberships() []raft.IndexedMembership {
	var list []raft.IndexedMembership
	for i := range d.entries {
		e := &d.entries[i]
		if e.Kind != raft.EntryMembership || e.Index <= d.Flushed.Applied {
			continue
		}
		m, err := raft.DecodeMembership(e.Data)
		if err != nil {
			panic(err)
		}
		list = append(list, raft.IndexedMembership{Index: e.Index, Term: e.Term, Membership: m})
	}
	return list
}

// chain is a hash of a log through e: equal chains mean equal logs.
func chain(before uint64, e *raft.Entry) uint64 {
	h := before*0x9E3779B97F4A7C15 + uint64(e.Index)
	h = (h^uint64(e.Term))*0xBF58476D1CE4E5B9 + uint64(e.Kind)
	for _, b := range e.Data {
		h = (h ^ uint64(b)) * 0x100000001B3
	}
	return h ^ h>>29
}
