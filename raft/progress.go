package raft

// ProgressState is how a leader goes about one follower.
type ProgressState uint8

const (
	// Probe: where the logs agree is not known; one AppendEntries at a time.
	Probe ProgressState = iota
	// Replicate: the logs agree up to nextIndex; AppendEntries follow each
	// other without waiting, within the window.
	Replicate
	// Snapshot: what the follower needs next is gone from the log; nothing
	// but heartbeats until the driver has streamed a snapshot.
	Snapshot
)

// String gives the state's name.
func (s ProgressState) String() string {
	switch s {
	case Probe:
		return "probe"
	case Replicate:
		return "replicate"
	default:
		return "snapshot"
	}
}

// progress is what a leader knows of one follower.
type progress struct {
	member Member
	state  ProgressState

	match Index // matchIndex: durable there and equal to ours; never falls, but for a cut log
	next  Index // nextIndex: what is sent next

	probing   bool     // Probe: one AppendEntries is out
	probed    inflight // Probe: its entries; last 0 if it had none or is given up
	probeAge  int      // Probe: heartbeats since
	requested bool     // Snapshot: the driver has been asked
	window    window   // Replicate: what is out

	commitSent Index  // the LeaderCommit last sent
	ackedRound uint64 // the last read round that it confirmed
	heartbeat  bool   // it is due to hear from us, with entries or without
	askRound   bool   // it is to confirm a read round: without entries, for those wait for its disk
	active     bool   // heard in this check-quorum period
	awaited    bool   // the Sleep under way waits for it
	asleep     bool   // it fell asleep with the Sleep under way
	suspect    bool   // its log was cut: counts for nothing until it is whole
}

// probe goes back to asking, from next on.
func (p *progress) probe(next Index) {
	p.state, p.next = Probe, max(next, p.match+1)
	p.probing, p.probed, p.requested = false, inflight{}, false
	p.window.clear()
}

// mayAppend tells whether entries may be sent now.
func (p *progress) mayAppend(o *Options) bool {
	switch p.state {
	case Probe:
		return !p.probing
	case Replicate:
		return len(p.window.out) < o.MaxInflightMessages && p.window.bytes < o.MaxInflightBytes
	default:
		return false
	}
}

// sent notes an AppendEntries with entries through last.
func (p *progress) sent(last Index, bytes int) {
	if p.state == Probe {
		p.probing, p.probed, p.probeAge = true, inflight{last, bytes}, 0
		return
	}
	p.next = last + 1
	p.window.add(last, bytes)
}

// acknowledged takes a success in. The follower is in step when it has
// confirmed all that it was asked about.
func (p *progress) acknowledged(match Index) {
	p.match = max(p.match, match)
	switch p.state {
	case Probe:
		if p.match+1 >= p.next {
			p.replicate()
		}
	case Replicate:
		p.window.free(p.match)
	case Snapshot:
		// What it has may still be behind what the log holds; see
		// maybeEndSnapshot.
	}
	p.next = max(p.next, p.match+1)
}

// beat passes a heartbeat interval. A probe that two have not seen answered is
// taken for lost: its entries are sent again when the follower is heard.
func (p *progress) beat() {
	p.heartbeat = true
	if p.probeAge++; p.state == Probe && p.probeAge >= 2 {
		p.probed = inflight{}
	}
}

// replicate begins the pipeline. The probe's entries may still be on their way,
// or wait for the follower's disk while a heartbeat was answered at once: they
// are not sent twice. If they are lost, the next heartbeat finds out.
func (p *progress) replicate() {
	p.state, p.probing = Replicate, false
	if p.probed.last > p.match {
		p.next = p.probed.last + 1
		p.window.add(p.probed.last, p.probed.bytes)
	}
	p.probed = inflight{}
}

// refused takes a refusal in and tells whether it was fresh. hint is where to
// go on. A refusal of what has been confirmed since, or of what was not asked
// last, comes late.
func (p *progress) refused(rejected, hint Index) bool {
	switch {
	case p.state == Snapshot:
		return false
	case rejected <= p.match || rejected >= p.next:
		return false
	case p.state == Probe && rejected != p.next-1:
		return false
	}
	p.probe(min(max(hint, 1), rejected))
	return true
}

// window is what was sent to a follower and not yet acknowledged, oldest
// first. It is bounded by Options.MaxInflightMessages and MaxInflightBytes.
type window struct {
	out   []inflight
	bytes int
}

type inflight struct {
	last  Index // of the message's entries
	bytes int
}

func (w *window) add(last Index, bytes int) {
	w.out = append(w.out, inflight{last, bytes})
	w.bytes += bytes
}

// free forgets what is acknowledged through match.
func (w *window) free(match Index) {
	n := 0
	for n < len(w.out) && w.out[n].last <= match {
		w.bytes -= w.out[n].bytes
		n++
	}
	w.out = w.out[n:]
	if len(w.out) == 0 {
		w.out = w.out[:0:cap(w.out)]
	}
}

func (w *window) clear() { *w = window{} }
