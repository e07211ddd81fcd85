package history

import (
	"io"
	"maps"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// Verdict is what a check found.
type Verdict string

// The verdicts.
const (
	Linearizable    Verdict = "linearizable"
	NotLinearizable Verdict = "not linearizable"
	Undecided       Verdict = "undecided" // the time for the search ran out
)

// Finding is a check's verdict and what it rests on.
type Finding struct {
	Verdict Verdict
	// Key and Ops are set if the verdict is NotLinearizable: the offending key
	// with the fewest operations, and those of them, in the order they began, up
	// to the first answer that has no explanation.
	Key string
	Ops []Op
}

// Check looks for an order of the operations of each key that explains all
// answers, for no longer than the timeout in all.
func Check(h *History, timeout time.Duration) Finding {
	end := time.Now().Add(timeout)
	finding := Finding{Verdict: Linearizable}
	keys := byKey(h.Ops)
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		ops := keys[key]
		switch check(ops, time.Until(end)) {
		case porcupine.Illegal:
			if finding.Verdict != NotLinearizable || len(ops) < len(finding.Ops) {
				finding = Finding{Verdict: NotLinearizable, Key: key, Ops: ops}
			}
		case porcupine.Unknown:
			if finding.Verdict == Linearizable {
				finding.Verdict = Undecided
			}
		}
	}
	if finding.Verdict == NotLinearizable {
		finding.Ops = shorten(finding.Ops, timeout)
	}
	return finding
}

// check decides one key. A time of zero or less is no time, which porcupine
// would take for no limit.
func check(ops []Op, timeout time.Duration) porcupine.CheckResult {
	if timeout <= 0 {
		return porcupine.Unknown
	}
	return porcupine.CheckOperationsTimeout(model(), operations(ops), timeout)
}

func byKey(ops []Op) map[string][]Op {
	keys := make(map[string][]Op)
	for _, op := range ops {
		keys[op.Key] = append(keys[op.Key], op)
	}
	for _, ops := range keys {
		slices.SortFunc(ops, func(a, b Op) int { return int(a.Begin - b.Begin) })
	}
	return keys
}

// shorten cuts a history that is not linearizable after the first answer at
// which it was not: a history cut at any moment is linearizable if the whole
// is, so the moment is found by bisection.
func shorten(ops []Op, timeout time.Duration) []Op {
	var moments []time.Duration
	for _, op := range ops {
		if op.End != Open {
			moments = append(moments, op.End)
		}
	}
	slices.Sort(moments)
	at, _ := slices.BinarySearchFunc(moments, true, func(moment time.Duration, _ bool) int {
		if check(cut(ops, moment), timeout) == porcupine.Illegal {
			return 1
		}
		return -1
	})
	if at == len(moments) {
		return ops
	}
	return cut(ops, moments[at])
}

// cut is the history as it stood at a moment: what had begun, and open what
// had not ended. A read that is open tells nothing and is left out.
func cut(ops []Op, moment time.Duration) []Op {
	var kept []Op
	for _, op := range ops {
		if op.Begin > moment {
			continue
		}
		if op.End > moment {
			if op.Kind == Get {
				continue
			}
			op.End = Open
		}
		kept = append(kept, op)
	}
	return kept
}

// Draw writes porcupine's page of a finding that is not linearizable.
func (f Finding) Draw(w io.Writer, timeout time.Duration) error {
	m := model()
	_, info := porcupine.CheckOperationsVerbose(m, operations(f.Ops), timeout)
	return porcupine.Visualize(m, info, w)
}
