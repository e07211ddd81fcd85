package gossip

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/hashicorp/memberlist"
)

// delegate is what memberlist asks and tells. It calls from goroutines of its
// own, some of them while it holds locks, so nothing here asks it back.
type delegate struct{ gossip *Gossip }

// NodeMeta is the own meta data.
func (d *delegate) NodeMeta(limit int) []byte {
	d.gossip.mu.Lock()
	defer d.gossip.mu.Unlock()
	if len(d.gossip.encoded) > limit {
		return nil
	}
	return d.gossip.encoded
}

// NotifyMsg takes a broadcast of another node.
func (d *delegate) NotifyMsg(b []byte) {
	hint, revision, err := decodeMessage(b)
	switch {
	case err != nil:
	case revision != 0:
		d.highWater(revision, b)
	case d.gossip.options.OnHint != nil:
		d.gossip.options.OnHint(hint)
	}
}

// highWater passes a revision on if it is news.
func (d *delegate) highWater(revision uint64, message []byte) {
	if !d.gossip.raise(revision) {
		return
	}
	d.gossip.queue.QueueBroadcast(&broadcast{subject: "revision", message: append([]byte(nil), message...)})
	if d.gossip.options.OnHighWater != nil {
		d.gossip.options.OnHighWater(revision)
	}
}

// GetBroadcasts is what is to be told.
func (d *delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.gossip.queue.GetBroadcasts(overhead, limit)
}

// LocalState is exchanged whole now and then: the high-water mark.
func (d *delegate) LocalState(bool) []byte { return encodeHighWater(d.gossip.HighWater()) }

// MergeRemoteState takes the other's.
func (d *delegate) MergeRemoteState(b []byte, _ bool) {
	if _, revision, err := decodeMessage(b); err == nil && revision != 0 {
		d.highWater(revision, b)
	}
}

// NotifyJoin and the two below tell of changes.
func (d *delegate) NotifyJoin(node *memberlist.Node) {
	d.gossip.see(node)
	d.changed()
}

// NotifyLeave tells that a member left or is taken for dead.
func (d *delegate) NotifyLeave(node *memberlist.Node) {
	d.gossip.lose(node.Name)
	d.changed()
}

// NotifyUpdate tells of new meta data.
func (d *delegate) NotifyUpdate(node *memberlist.Node) {
	d.gossip.see(node)
	d.changed()
}

func (d *delegate) changed() {
	if d.gossip.options.OnChange != nil {
		d.gossip.options.OnChange()
	}
}

// NotifyAlive refuses members of another cluster.
func (d *delegate) NotifyAlive(peer *memberlist.Node) error { return d.check(peer) }

// NotifyMerge refuses to merge with another cluster.
func (d *delegate) NotifyMerge(peers []*memberlist.Node) error {
	for _, peer := range peers {
		if err := d.check(peer); err != nil {
			return err
		}
	}
	return nil
}

func (d *delegate) check(peer *memberlist.Node) error {
	meta, err := decodeMeta(peer.Meta)
	if err != nil {
		return fmt.Errorf("%s: %w meta data", peer.Name, err)
	}
	d.gossip.mu.Lock()
	own := d.gossip.meta.ClusterID
	d.gossip.mu.Unlock()
	if own != "" && meta.ClusterID != "" && own != meta.ClusterID {
		return fmt.Errorf("%s at %s belongs to another cluster (%s)", peer.Name, peer.Address(), meta.ClusterID)
	}
	return nil
}

// NotifyConflict tells of two processes with one name: the same data dir, in
// the same life, at two addresses.
func (d *delegate) NotifyConflict(existing, other *memberlist.Node) {
	d.gossip.logger.Warn("two members have one name", "name", existing.Name, "address", existing.Address(), "other", other.Address())
}

// broadcast is one message; of a subject only the newest is kept.
type broadcast struct {
	subject string
	message []byte
}

// Name makes the queue find what a broadcast replaces by its name alone.
func (b *broadcast) Name() string { return b.subject }

// Invalidates: a newer message of the subject replaces the older.
func (b *broadcast) Invalidates(other memberlist.Broadcast) bool {
	o, ok := other.(*broadcast)
	return ok && o.subject == b.subject
}

// Message is what is sent.
func (b *broadcast) Message() []byte { return b.message }

// Finished is called when it was sent often enough.
func (b *broadcast) Finished() {}

// logWriter takes memberlist's log lines: its errors are warnings to us, since
// nothing depends on gossip, and all else is detail.
type logWriter struct{ logger *slog.Logger }

func (w *logWriter) Write(line []byte) (int, error) {
	text := strings.TrimSpace(string(line))
	level, rest, found := strings.Cut(text, "] ")
	if !found {
		rest = text
	}
	rest = strings.TrimPrefix(rest, "memberlist: ")
	if level == "[ERR" {
		w.logger.Info("gossip: " + rest)
	} else {
		w.logger.Debug("gossip: " + rest)
	}
	return len(line), nil
}
