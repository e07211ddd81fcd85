package sim

import (
	"container/heap"
	"iter"
	"slices"
	"time"
)

// event is something that happens at a time. Events of one time happen in the
// order in which they were planned.
type event struct {
	at  time.Duration
	seq uint64
	do  func()
}

type eventQueue struct {
	heap eventHeap
	seq  uint64
}

func (q *eventQueue) push(at time.Duration, do func()) {
	q.seq++
	heap.Push(&q.heap, event{at: at, seq: q.seq, do: do})
}

func (q *eventQueue) pop() (event, bool) {
	if len(q.heap) == 0 {
		return event{}, false
	}
	return heap.Pop(&q.heap).(event), true
}

type eventHeap []event

func (h eventHeap) Len() int { return len(h) }
func (h eventHeap) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].seq < h[j].seq
}
func (h eventHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *eventHeap) Push(x any)   { *h = append(*h, x.(event)) }
func (h *eventHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = event{}
	*h = old[:len(old)-1]
	return last
}

// task is a function that waits in its middle: a snapshot on its way. It runs
// as a coroutine, so never at the same time as anything else.
type task struct {
	yield func(time.Duration) bool
	next  func() (time.Duration, bool)
	stop  func()
}

// begin runs f as a task. After each of its steps settle is called.
func (w *world) begin(f func(), settle func()) {
	t := &task{}
	t.next, t.stop = iter.Pull(func(yield func(time.Duration) bool) {
		t.yield = yield
		f()
	})
	w.tasks = append(w.tasks, t)
	var step func()
	step = func() {
		before := w.running
		w.running = t
		wait, more := t.next()
		w.running = before
		if more {
			w.after(wait, step)
		} else {
			w.tasks = slices.DeleteFunc(w.tasks, func(other *task) bool { return other == t })
		}
		settle()
	}
	w.after(0, step)
}

// wait lets the task that is running wait; false: the world has ended.
func (w *world) wait(d time.Duration) bool { return w.running.yield(d) }
