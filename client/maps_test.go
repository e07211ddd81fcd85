package client

import (
	"errors"
	"testing"
	"time"
)

func TestAMapThatIsBehindIsAskedForElsewhere(t *testing.T) {
	f := newFakeCluster(t, 3)
	w := newMapWatch(Options{Servers: f.addrs(), Logger: f.client(Options{}).options.Logger})
	if err := w.get(t.Context(), f.nodes[0].addr); err != nil {
		t.Fatal(err)
	}
	w.setWatched(f.nodes[0].addr)
	for _, addr := range w.others() {
		if addr == f.nodes[0].addr {
			t.Fatal("the node that is watched would be asked again")
		}
	}
	w.Refresh(0)
	if w.isWanted() {
		t.Fatal("a map newer than asked for is here already")
	}
	w.Refresh(1)
	if !w.isWanted() {
		t.Fatal("nobody would ask")
	}
	if w.isWanted() {
		t.Fatal("it would be asked for twice")
	}
}

func TestTheWatchAndTheRefreshBringNewMaps(t *testing.T) {
	f := newFakeCluster(t, 2)
	c := f.client(Options{})
	if _, err := c.WaitMap(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	f.change(func() { f.publish() })
	eventually(t, "the watch brings it", func() bool { return c.Map().Revision == 2 })
	f.change(func() { f.revision++ }) // and no watch hears of it
	c.maps.Refresh(2)
	eventually(t, "the refresh brings it", func() bool { return c.Map().Revision == 3 })
}

func TestAnotherClustersMapIsRefused(t *testing.T) {
	f := newFakeCluster(t, 1)
	w := newMapWatch(Options{Servers: f.addrs(), Logger: f.client(Options{}).options.Logger})
	if err := w.get(t.Context(), f.nodes[0].addr); err != nil {
		t.Fatal(err)
	}
	other := f.wireMap()
	other.ClusterId, other.Revision = "other", 99
	if err := w.take(other); !errors.Is(err, errOtherCluster) {
		t.Fatalf("got %v", err)
	}
	bad := f.wireMap()
	bad.Revision, bad.Shards = 99, bad.Shards[:3]
	if err := w.take(bad); err == nil || w.Current().Revision != 1 {
		t.Fatalf("three shards: %v", err)
	}
}
