package load

import (
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Result is what a run measured. The field names are those of the JSON that
// others read.
type Result struct {
	Ops     int64   `json:"ops"` // that succeeded
	Failed  int64   `json:"failed"`
	Seconds float64 `json:"seconds"` // from the first request to the last answer
	OpsPerS float64 `json:"ops_per_s"`
	P50us   int64   `json:"p50_us"` // -1: no request succeeded
	P99us   int64   `json:"p99_us"`
	MaxUs   int64   `json:"max_us"`
}

// Histograms count microseconds up to latencyMax with three digits, which takes
// some 140 KiB: so a few are shared by all clients.
const (
	latencyMax = time.Minute
	digits     = 3
	partsMax   = 16
)

// Meter collects the latencies of a run while it goes on.
type Meter struct{ parts []*meterPart }

// NewMeter makes a meter for so many clients.
func NewMeter(clients int) *Meter {
	m := new(Meter)
	for range min(clients, partsMax) {
		m.parts = append(m.parts, &meterPart{total: newHistogram(), recent: newHistogram()})
	}
	return m
}

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, latencyMax.Microseconds(), digits)
}

func (m *Meter) part(client int) *meterPart { return m.parts[client%len(m.parts)] }

// meterPart is the share of some of the clients.
type meterPart struct {
	mu     sync.Mutex // guards what follows
	total  *hdrhistogram.Histogram
	recent *hdrhistogram.Histogram // since Recent was asked
	failed int64
	missed int64 // failed since Recent was asked
	err    error // the last
}

func (p *meterPart) record(took time.Duration, err error) {
	us := min(max(took.Microseconds(), 1), latencyMax.Microseconds())
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.failed++
		p.missed++
		p.err = err
		return
	}
	// The value is within the range, so neither can fail.
	_ = p.total.RecordValue(us)
	_ = p.recent.RecordValue(us)
}

// Recent is what happened since it was last called; seconds is how long ago
// that is.
func (m *Meter) Recent(seconds float64) Result {
	sum, failed := newHistogram(), int64(0)
	for _, p := range m.parts {
		p.mu.Lock()
		sum.Merge(p.recent)
		p.recent.Reset()
		failed += p.missed
		p.missed = 0
		p.mu.Unlock()
	}
	return resultOf(sum, failed, seconds)
}

func (m *Meter) result(took time.Duration) Result {
	sum, failed := newHistogram(), int64(0)
	for _, p := range m.parts {
		p.mu.Lock()
		sum.Merge(p.total)
		failed += p.failed
		p.mu.Unlock()
	}
	return resultOf(sum, failed, took.Seconds())
}

func (m *Meter) lastError() error {
	for _, p := range m.parts {
		p.mu.Lock()
		err := p.err
		p.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

func resultOf(h *hdrhistogram.Histogram, failed int64, seconds float64) Result {
	r := Result{Ops: h.TotalCount(), Failed: failed, Seconds: seconds, P50us: -1, P99us: -1, MaxUs: -1}
	if seconds > 0 {
		r.OpsPerS = float64(r.Ops) / seconds
	}
	if r.Ops > 0 {
		r.P50us, r.P99us, r.MaxUs = h.ValueAtQuantile(50), h.ValueAtQuantile(99), h.Max()
	}
	return r
}
