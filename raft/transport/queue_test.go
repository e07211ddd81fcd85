package transport

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/flotilla-kv/flotilla/raft"
)

// TestQueueAgainstASlice drives the ring and a plain slice alike.
func TestQueueAgainstASlice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := queue{messagesMax: rapid.IntRange(1, 100).Draw(t, "messagesMax"), bytesMax: rapid.IntRange(1, 20_000).Draw(t, "bytesMax")}
		var model []raft.Message
		bytes := func() (sum int) {
			for i := range model {
				sum += messageBytes(&model[i])
			}
			return sum
		}
		t.Repeat(map[string]func(*rapid.T){
			"push": func(t *rapid.T) {
				m := heavy(rapid.IntRange(1, 1<<20).Draw(t, "n"), rapid.IntRange(0, 3000).Draw(t, "size"))
				dropped := q.push(m)
				model = append(model, m)
				for len(model) > 1 && (len(model) > q.messagesMax || bytes() > q.bytesMax) {
					model = model[1:]
					dropped--
				}
				if dropped != 0 {
					t.Fatalf("%d too many dropped", dropped)
				}
			},
			"take": func(t *rapid.T) {
				bytesMax, messagesMax := rapid.IntRange(1, 10_000).Draw(t, "bytesMax"), rapid.IntRange(1, 50).Draw(t, "messagesMax")
				taken, size := q.take(nil, bytesMax, messagesMax), 0
				for i, m := range taken {
					size += messageBytes(&m)
					if m.Term != model[i].Term {
						t.Fatalf("message %d taken at place %d, want %d", m.Term, i, model[i].Term)
					}
				}
				if len(taken) > messagesMax || len(taken) > 1 && size > bytesMax || len(taken) == 0 && len(model) > 0 {
					t.Fatalf("took %d messages of %d bytes, allowed are %d and %d", len(taken), size, messagesMax, bytesMax)
				}
				model = model[len(taken):]
			},
			"clear": func(t *rapid.T) {
				if got := q.clear(); got != len(model) {
					t.Fatalf("cleared %d, want %d", got, len(model))
				}
				model = nil
			},
			"": func(t *rapid.T) {
				if q.count != len(model) || q.bytes != bytes() {
					t.Fatalf("holds %d messages of %d bytes, want %d of %d", q.count, q.bytes, len(model), bytes())
				}
			},
		})
	})
}
