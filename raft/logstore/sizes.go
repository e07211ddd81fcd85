package logstore

import "github.com/flotilla-kv/flotilla/raft"

// entryOverheadBytes is what an entry takes beside its data: key, header and
// the record's own lengths.
const entryOverheadBytes = 48

// sizeRunBytes is how many bytes of a log are counted as one: a cut inside a
// run is shared out evenly among its entries.
const sizeRunBytes = 64 << 10

// sizeLedger knows how many bytes of a log are kept, to about one run.
type sizeLedger struct {
	runs  []sizeRun // ascending, without gaps
	total int64
}

type sizeRun struct {
	first, last raft.Index
	bytes       int64
}

func (l *sizeLedger) add(index raft.Index, bytes int64) { l.addRun(index, index, bytes) }

// addRun adds entries that follow.
func (l *sizeLedger) addRun(first, last raft.Index, bytes int64) {
	l.total += bytes
	if n := len(l.runs); n > 0 && l.runs[n-1].bytes < sizeRunBytes {
		l.runs[n-1].last = last
		l.runs[n-1].bytes += bytes
		return
	}
	l.runs = append(l.runs, sizeRun{first: first, last: last, bytes: bytes})
}

// dropThrough forgets the entries up to and including index.
func (l *sizeLedger) dropThrough(index raft.Index) {
	for len(l.runs) > 0 && l.runs[0].first <= index {
		run := &l.runs[0]
		if run.last <= index {
			l.total -= run.bytes
			l.runs = l.runs[1:]
			continue
		}
		gone := run.bytes * int64(index-run.first+1) / int64(run.last-run.first+1)
		run.first, run.bytes = index+1, run.bytes-gone
		l.total -= gone
	}
	if len(l.runs) == 0 {
		l.runs = nil
	}
}

// dropFrom forgets the entries from index on.
func (l *sizeLedger) dropFrom(index raft.Index) {
	for n := len(l.runs); n > 0 && l.runs[n-1].last >= index; n = len(l.runs) {
		run := &l.runs[n-1]
		if run.first >= index {
			l.total -= run.bytes
			l.runs = l.runs[:n-1]
			continue
		}
		gone := run.bytes * int64(run.last-index+1) / int64(run.last-run.first+1)
		run.last, run.bytes = index-1, run.bytes-gone
		l.total -= gone
	}
}
