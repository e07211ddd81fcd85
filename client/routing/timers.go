package routing

import "time"

// timers is a binary heap of calls by wake time. A call is in it at most once,
// from Submit to its delivery, so it is no larger than the calls under way.
type timers struct{ heap []*Call }

// set puts c in, or moves it, so that it wakes at the given time.
func (t *timers) set(c *Call, at time.Time) {
	c.wake = at
	if c.place == 0 {
		t.heap = append(t.heap, c)
		c.place = len(t.heap)
	}
	t.down(t.up(c.place - 1))
}

// remove takes c out if it is in.
func (t *timers) remove(c *Call) {
	if c.place == 0 {
		return
	}
	at, last := c.place-1, len(t.heap)-1
	t.swap(at, last)
	t.heap[last] = nil
	t.heap = t.heap[:last]
	c.place = 0
	if at < last {
		t.down(t.up(at))
	}
}

// due returns a call whose wake time has come, nil if there is none. It stays
// in the heap.
func (t *timers) due(now time.Time) *Call {
	if len(t.heap) == 0 || t.heap[0].wake.After(now) {
		return nil
	}
	return t.heap[0]
}

// next is the earliest wake time; zero if there is none.
func (t *timers) next() time.Time {
	if len(t.heap) == 0 {
		return time.Time{}
	}
	return t.heap[0].wake
}

func (t *timers) swap(i, j int) {
	t.heap[i], t.heap[j] = t.heap[j], t.heap[i]
	t.heap[i].place, t.heap[j].place = i+1, j+1
}

func (t *timers) up(i int) int {
	for i > 0 {
		parent := (i - 1) / 2
		if !t.heap[i].wake.Before(t.heap[parent].wake) {
			break
		}
		t.swap(i, parent)
		i = parent
	}
	return i
}

func (t *timers) down(i int) {
	for {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(t.heap); child++ {
			if t.heap[child].wake.Before(t.heap[least].wake) {
				least = child
			}
		}
		if least == i {
			return
		}
		t.swap(i, least)
		i = least
	}
}
