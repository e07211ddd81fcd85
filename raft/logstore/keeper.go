package logstore

import (
	"sync"
	"time"

	"github.com/flotilla-kv/flotilla/internal/disk"
)

// evidenceKeeper writes what was synced to the evidence file, at most one
// interval after it was.
type evidenceKeeper struct {
	file  *evidenceFile
	every time.Duration
	stop  *disk.Stop

	mu      sync.Mutex // guards latest
	latest  evidence
	dirty   chan struct{} // latest was changed since it was written; capacity 1
	closing chan struct{}
	done    chan struct{}
}

func newEvidenceKeeper(file *evidenceFile, every time.Duration, latest evidence, stop *disk.Stop) *evidenceKeeper {
	return &evidenceKeeper{
		file: file, every: every, stop: stop, latest: latest,
		dirty: make(chan struct{}, 1), closing: make(chan struct{}), done: make(chan struct{}),
	}
}

// note takes over what has become durable.
func (k *evidenceKeeper) note(e evidence) {
	k.mu.Lock()
	k.latest = e
	k.mu.Unlock()
	select {
	case k.dirty <- struct{}{}:
	default:
	}
}

// loop sleeps while nothing is written to the log.
func (k *evidenceKeeper) loop() {
	defer close(k.done)
	timer := time.NewTimer(k.every)
	defer timer.Stop()
	for {
		select {
		case <-k.dirty:
		case <-k.closing:
			return
		}
		timer.Reset(k.every)
		select {
		case <-timer.C:
		case <-k.closing:
		}
		if err := k.write(); err != nil {
			k.stop.Fail(err)
			return
		}
	}
}

func (k *evidenceKeeper) write() error {
	k.mu.Lock()
	latest := k.latest
	k.mu.Unlock()
	return k.file.write(latest)
}

// close writes the last state down. It is called after the last note.
func (k *evidenceKeeper) close() error {
	close(k.closing)
	<-k.done
	if err := k.stop.Err(); err != nil {
		return err
	}
	if err := k.write(); err != nil {
		k.stop.Fail(err)
		return err
	}
	return k.file.close()
}
