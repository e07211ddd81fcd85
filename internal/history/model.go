package history

import (
	"fmt"

	"github.com/anishathalye/porcupine"
)

// keyState is one key in the model.
type keyState struct {
	present bool
	value   int64
	// version is that of the last write, 0 if nobody has told it.
	version uint64
	// floor is the highest version told so far: those to come are above it.
	floor uint64
}

// model is a single key under the operations of a history.
func model() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return keyState{} },
		Step: func(state, input, output any) (bool, any) {
			return step(state.(keyState), input.(Op))
		},
		Hash:              func(state any) uint64 { return state.(keyState).hash() },
		DescribeOperation: func(input, _ any) string { return input.(Op).String() },
		DescribeState:     func(state any) string { return state.(keyState).String() },
	}
}

// hash tells states apart: one set of operations leads to many, and the search
// would go through all of them each time.
func (s keyState) hash() uint64 {
	const prime = 0x9E3779B97F4A7C15 // 2^64 by the golden ratio
	h := uint64(s.value) * prime
	h = (h ^ s.version) * prime
	h = (h ^ s.floor) * prime
	if s.present {
		h = ^h
	}
	return h
}

// step applies an operation and tells whether what was heard fits.
func step(s keyState, op Op) (bool, any) {
	open := op.End == Open
	switch op.Kind {
	case Get:
		if op.Present != s.present || s.present && op.Result != s.value {
			return false, s
		}
		if !s.present {
			return true, s
		}
		return s.tell(op.Version)
	case Put:
		return s.write(op.Value, op.Version, open || op.Version == Untold)
	case Delete:
		ok := open || op.Present == s.present
		return ok, keyState{floor: s.floor}
	case Incr:
		next := op.Value
		if s.present {
			next += s.value
		}
		if !open && op.Result != next {
			return false, s
		}
		return s.write(next, 0, true)
	}
	holds := s.present == op.HasOld && (!s.present || s.value == op.Old)
	switch {
	case !open && op.Present != holds:
		return false, s
	case !holds:
		return true, s
	}
	return s.write(op.Value, op.Version, open || op.Version == Untold)
}

// write puts a value under a version, if it was told.
func (s keyState) write(value int64, version uint64, untold bool) (bool, any) {
	next := keyState{present: true, value: value, floor: s.floor}
	if untold {
		return true, next
	}
	if version <= s.floor {
		return false, s
	}
	next.version, next.floor = version, version
	return true, next
}

// tell takes in the version that a read saw.
func (s keyState) tell(version uint64) (bool, any) {
	switch {
	case version == Untold || s.version == version && version != 0:
		return true, s
	case s.version != 0 || version <= s.floor:
		return false, s
	}
	s.version, s.floor = version, version
	return true, s
}

// String is for the page that porcupine draws.
func (s keyState) String() string {
	if !s.present {
		return "absent"
	}
	if s.version == 0 {
		return fmt.Sprint(s.value)
	}
	return fmt.Sprintf("%d at version %d", s.value, s.version)
}

// String is the operation and what was heard.
func (op Op) String() string { return op.Call() + " -> " + op.Answer() }

// Call is the operation.
func (op Op) Call() string {
	switch op.Kind {
	case Get:
		return "get"
	case Put:
		return fmt.Sprintf("put %d", op.Value)
	case Delete:
		return "delete"
	case Incr:
		return fmt.Sprintf("incr %d", op.Value)
	}
	if !op.HasOld {
		return fmt.Sprintf("cas absent %d", op.Value)
	}
	return fmt.Sprintf("cas %d %d", op.Old, op.Value)
}

// Answer is what was heard.
func (op Op) Answer() string {
	if op.End == Open {
		return "unknown"
	}
	switch op.Kind {
	case Get:
		if !op.Present {
			return "absent"
		}
		return fmt.Sprintf("%d%s", op.Result, op.at())
	case Put:
		return "done" + op.at()
	case Delete:
		if !op.Present {
			return "was absent"
		}
		return "deleted"
	case Incr:
		return fmt.Sprint(op.Result)
	}
	if !op.Present {
		return "refused"
	}
	return "done" + op.at()
}

// at is the version that was told.
func (op Op) at() string {
	if op.Version == Untold {
		return ""
	}
	return fmt.Sprintf(" at version %d", op.Version)
}

// operations are the ops as porcupine takes them. One that is open ends after
// all others, which is as good as never: it may then take effect last.
func operations(ops []Op) []porcupine.Operation {
	last := int64(0)
	for _, op := range ops {
		last = max(last, int64(op.Begin))
		if op.End != Open {
			last = max(last, int64(op.End))
		}
	}
	list := make([]porcupine.Operation, len(ops))
	for i, op := range ops {
		list[i] = porcupine.Operation{ClientId: op.Client, Input: op, Call: int64(op.Begin), Return: min(int64(op.End), last+1)}
	}
	return list
}
