package shardkv

import (
	"context"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/multiraft"
)

// DirectWatch is a watch of a server without goroutines, which its caller turns.
type DirectWatch struct {
	w         *watch
	confirmed bool
	more      bool
	ended     bool
	beaten    time.Time
}

// WatchDirectly is Watch for a server without goroutines. send is called from
// Turn, or while the host runs; the last that it is given may be a refusal.
func (s *Server) WatchDirectly(q *flotillav1.WatchRequest, send func(*flotillav1.WatchResponse) error) *DirectWatch {
	w, refused := s.newWatch(q, send)
	d := &DirectWatch{w: w, more: true, beaten: s.now()}
	switch {
	case refused != nil:
		d.refuse(send, refused)
	case !w.group.machine.Born():
		d.refuse(send, w.unborn())
	default:
		w.reader.history.subscribe(w.poke)
		w.host.ReadIndex(w.group.id, multiraft.ReadOptions{}, func(_ raft.Index, err error) {
			if refused := w.unconfirmed(err); refused != nil {
				d.refuse(send, refused)
			}
			d.confirmed = err == nil
		})
	}
	return d
}

func (d *DirectWatch) refuse(send func(*flotillav1.WatchResponse) error, refused *flotillav1.WatchResponse) {
	_ = send(refused) // it ends in any case
	d.End()
}

// Turn tells what there is to tell, and whether the watch goes on.
func (d *DirectWatch) Turn(now time.Time) bool {
	if d.ended || !d.confirmed {
		return !d.ended
	}
	select {
	case <-d.w.poke:
		d.more = true
	default:
	}
	var err error
	for ended := false; d.more && err == nil && !d.ended; d.ended = ended {
		d.more, ended, err = d.w.step(context.Background())
	}
	if !d.ended && err == nil && now.Sub(d.beaten) >= watchBeat {
		d.beaten = now
		if !d.w.leads() { // nothing pokes it where nothing is written
			d.more = true
		}
		err = d.w.beat()
	}
	if err != nil || d.ended {
		d.End()
	}
	return !d.ended
}

// End ends the watch.
func (d *DirectWatch) End() {
	d.ended = true
	if d.w != nil {
		d.w.reader.history.unsubscribe(d.w.poke)
	}
}
