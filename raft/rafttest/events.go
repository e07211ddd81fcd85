package rafttest

// timeline holds what is to happen, in order of virtual time and, at one
// moment, in the order in which it was planned.
type timeline struct {
	now    int64 // virtual milliseconds
	number uint64
	heap   []event
}

type event struct {
	at     int64
	number uint64
	do     func()
}

func (e *event) before(o *event) bool {
	return e.at < o.at || e.at == o.at && e.number < o.number
}

// after plans do for delay milliseconds from now.
func (t *timeline) after(delay int64, do func()) {
	t.number++
	t.heap = append(t.heap, event{t.now + delay, t.number, do})
	for i := len(t.heap) - 1; i > 0; {
		up := (i - 1) / 2
		if !t.heap[i].before(&t.heap[up]) {
			break
		}
		t.heap[i], t.heap[up] = t.heap[up], t.heap[i]
		i = up
	}
}

// next takes the earliest event out.
func (t *timeline) next() (event, bool) {
	if len(t.heap) == 0 {
		return event{}, false
	}
	first := t.heap[0]
	end := len(t.heap) - 1
	t.heap[0] = t.heap[end]
	t.heap[end] = event{}
	t.heap = t.heap[:end]
	for i := 0; ; {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < end; child++ {
			if t.heap[child].before(&t.heap[least]) {
				least = child
			}
		}
		if least == i {
			break
		}
		t.heap[i], t.heap[least] = t.heap[least], t.heap[i]
		i = least
	}
	return first, true
}
