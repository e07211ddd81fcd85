package gossip

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/flotilla-kv/flotilla/raft"
)

func start(t *testing.T, id string, change func(*Options)) *Gossip {
	t.Helper()
	options := Options{
		RandomID: id,
		Listen:   "127.0.0.1:0",
		Meta:     Meta{Boot: uint64(time.Now().UnixNano()), Addr: "127.0.0.1:1" + id, Zone: "z", Release: "1.0"},
	}
	if change != nil {
		change(&options)
	}
	g, err := Start(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stopOnce(g) })
	return g
}

// stopOnce stops a Gossip that a test may have stopped already.
func stopOnce(g *Gossip) {
	select {
	case <-g.stop:
	default:
		g.Stop()
	}
}

func joins(others ...*Gossip) func(*Options) {
	return func(o *Options) {
		for _, other := range others {
			o.Join = append(o.Join, other.Addr())
		}
	}
}

// eventually waits for a condition that nothing but the network decides.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 15 s: %s", what)
		}
		<-tick.C
	}
}

func TestNodesFindEachOther(t *testing.T) {
	a := start(t, "1", nil)
	b := start(t, "2", joins(a))
	c := start(t, "3", joins(b))
	eventually(t, "all see two others", func() bool {
		return len(a.Members()) == 2 && len(b.Members()) == 2 && len(c.Members()) == 2
	})
	if m := a.Members()[0]; m.Addr != "127.0.0.1:12" || m.Zone != "z" || m.Release != "1.0" {
		t.Errorf("a sees %+v", m)
	}
}

// An address that nobody listens at yet is tried until somebody does.
func TestJoinIsRetriedForEver(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	later := listener.Addr().String()
	listener.Close()
	a := start(t, "1", func(o *Options) { o.Join = []string{later} })
	b := start(t, "2", func(o *Options) { o.Listen = later })
	eventually(t, "they meet", func() bool { return len(a.Members()) == 1 && len(b.Members()) == 1 })
}

func TestUpdatedMetaSpreads(t *testing.T) {
	a := start(t, "1", nil)
	b := start(t, "2", joins(a))
	eventually(t, "they meet", func() bool { return len(a.Members()) == 1 })
	if err := b.UpdateMeta(Meta{Node: 7, ClusterID: "c", Addr: "127.0.0.1:12"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a hears of node 7", func() bool {
		members := a.Members()
		return len(members) == 1 && members[0].Node == 7 && members[0].ClusterID == "c" && members[0].Boot != 0
	})
}

func TestAnotherClusterIsRefused(t *testing.T) {
	in := func(cluster string, o ...*Gossip) func(*Options) {
		return func(options *Options) {
			joins(o...)(options)
			options.Meta.ClusterID = cluster
		}
	}
	a := start(t, "1", in("red"))
	fresh := start(t, "2", in("", a))
	eventually(t, "a node without a cluster may join", func() bool { return len(a.Members()) == 1 && len(fresh.Members()) == 1 })
	blue := start(t, "3", in("blue", a))
	if _, err := blue.list.Join([]string{a.Addr()}); err == nil {
		t.Error("a member of blue joined red")
	}
	if n := len(blue.Members()); n != 0 {
		t.Errorf("blue sees %d members of red", n)
	}
	for _, m := range a.Members() {
		if m.ClusterID == "blue" {
			t.Errorf("red sees %+v", m)
		}
	}
}

// A node that comes back is found under its new address, and only there.
func TestNodeComesBackElsewhere(t *testing.T) {
	a := start(t, "1", nil)
	as := func(addr string) func(*Options) {
		return func(o *Options) {
			joins(a)(o)
			o.Meta.Node, o.Meta.Addr = 2, addr
		}
	}
	first := start(t, "2", as("127.0.0.1:1000"))
	eventually(t, "it is found", func() bool { return len(a.Members()) == 1 })
	// Gone without a good-bye, as with kill -9.
	close(first.stop)
	if err := first.list.Shutdown(); err != nil {
		t.Fatal(err)
	}
	first.running.Wait()
	second := start(t, "2", as("127.0.0.1:2000"))
	eventually(t, "it is found elsewhere", func() bool {
		members := a.Members()
		return len(members) == 1 && members[0].Addr == "127.0.0.1:2000" && members[0].GossipAddr == second.Addr()
	})
}

// badNetwork loses packets, so many of a hundred, from and to a process at worst;
// where it loses all it connects nobody.
type badNetwork struct {
	memberlist.NodeAwareTransport
	weather *weather
	at      string // the process
}

type weather struct {
	loss  atomic.Int32 // everywhere
	worst atomic.Pointer[string]
}

func (n badNetwork) lost(to memberlist.Address) bool {
	if worst := n.weather.worst.Load(); worst != nil && (*worst == n.at || *worst == to.Addr) {
		return true
	}
	return rand.Int32N(100) < n.weather.loss.Load()
}

func (n badNetwork) WriteToAddress(b []byte, to memberlist.Address) (time.Time, error) {
	if n.lost(to) {
		return time.Now(), nil
	}
	return n.NodeAwareTransport.WriteToAddress(b, to)
}

func (n badNetwork) DialAddressTimeout(to memberlist.Address, timeout time.Duration) (net.Conn, error) {
	if n.weather.worst.Load() != nil && n.lost(to) {
		return nil, errors.New("lost")
	}
	return n.NodeAwareTransport.DialAddressTimeout(to, timeout)
}

func under(w *weather, then func(*Options)) func(*Options) {
	return func(o *Options) {
		o.network = func(t memberlist.NodeAwareTransport) memberlist.Transport {
			at := t.(*memberlist.NetTransport).GetAutoBindPort()
			return badNetwork{t, w, fmt.Sprint("127.0.0.1:", at)}
		}
		if then != nil {
			then(o)
		}
	}
}

// Half of all packets are lost: nobody is given up for that. A node that says
// nothing at all for seconds is taken for dead, and is there again when it can
// be heard.
func TestLossAndFalseSuspicion(t *testing.T) {
	t.Parallel()
	var w weather
	a := start(t, "1", under(&w, nil))
	b := start(t, "2", under(&w, joins(a)))
	c := start(t, "3", under(&w, joins(a)))
	see := func(n int, of ...*Gossip) func() bool {
		return func() bool {
			return !slices.ContainsFunc(of, func(g *Gossip) bool { return len(g.Members()) != n })
		}
	}
	eventually(t, "all see two others", see(2, a, b, c))
	w.loss.Store(50)
	for range 30 {
		time.Sleep(100 * time.Millisecond)
		if !see(2, a, b, c)() {
			t.Fatal("a node that half of the packets reach was given up")
		}
	}
	w.loss.Store(0)
	silent := c.Addr()
	w.worst.Store(&silent)
	eventually(t, "c is taken for dead", see(1, a, b))
	w.worst.Store(nil)
	eventually(t, "all see two others again", see(2, a, b, c))
}

// A process that calls itself by another's name, with whatever incarnation, is
// told of once in a while and takes nothing from the one that was there.
func TestAForgedNameTakesNothing(t *testing.T) {
	t.Parallel()
	var said syncBuffer
	a := start(t, "1", func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&said, nil)) })
	b := start(t, "2", joins(a))
	eventually(t, "they meet", func() bool { return len(a.Members()) == 1 })
	true2 := a.Members()[0]
	forged := start(t, "2", func(o *Options) { o.Meta.Boot, o.Meta.Addr = b.meta.Boot, "127.0.0.1:1666" })
	for range 5 {
		_ = forged.UpdateMeta(forged.meta) // which counts its incarnation up
	}
	_, _ = forged.list.Join([]string{a.Addr()})
	eventually(t, "it is told of", func() bool { return strings.Contains(said.String(), "two members have one name") })
	for range 20 {
		time.Sleep(50 * time.Millisecond)
		if m := a.Members(); len(m) != 1 || m[0].GossipAddr != true2.GossipAddr {
			t.Fatalf("a sees %+v, and %+v is there", m, true2)
		}
	}
}

// syncBuffer is a buffer for several goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestHintsAndHighWater(t *testing.T) {
	hints := make(chan Hint, 16)
	revisions := make(chan uint64, 16)
	a := start(t, "1", nil)
	b := start(t, "2", func(o *Options) {
		joins(a)(o)
		o.OnHint = func(h Hint) { hints <- h }
		o.OnHighWater = func(r uint64) { revisions <- r }
	})
	eventually(t, "they meet", func() bool { return len(a.Members()) == 1 && len(b.Members()) == 1 })
	want := Hint{Group: 3, Leader: 1, Term: 9}
	a.BroadcastHint(want)
	a.SetHighWater(41)
	a.SetHighWater(40) // older than what was told: not told
	for got := 0; got < 2; {
		select {
		case h := <-hints:
			if h != want {
				t.Errorf("hint %+v, want %+v", h, want)
			}
			got++
		case r := <-revisions:
			if r != 41 {
				t.Errorf("revision %d, want 41", r)
			}
			got++
		case <-time.After(15 * time.Second):
			t.Fatal("hint or revision did not arrive")
		}
	}
	if b.HighWater() != 41 {
		t.Errorf("high water %d, want 41", b.HighWater())
	}
}

func TestKey(t *testing.T) {
	with := func(key string, o ...*Gossip) func(*Options) {
		return func(options *Options) {
			joins(o...)(options)
			options.Key = []byte(key)
		}
	}
	a := start(t, "1", with("0123456789abcdef"))
	friend := start(t, "2", with("0123456789abcdef", a))
	eventually(t, "the same key meets", func() bool { return len(friend.Members()) == 1 })
	for _, key := range []string{"fedcba9876543210", ""} {
		stranger := start(t, "3", with(key, a))
		if _, err := stranger.list.Join([]string{a.Addr()}); err == nil {
			t.Errorf("key %q joined", key)
		}
		if n := len(a.Members()); n != 1 {
			t.Errorf("a sees %d members, want its friend", n)
		}
	}
	if _, err := Start(Options{RandomID: "x", Listen: "127.0.0.1:0", Key: []byte("short")}); err == nil {
		t.Error("a key of 5 bytes was taken")
	}
}

func TestNoiseIsIgnored(t *testing.T) {
	a := start(t, "1", nil)
	b := start(t, "2", joins(a))
	eventually(t, "they meet", func() bool { return len(a.Members()) == 1 })
	conn, err := net.Dial("udp", a.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for size := 1; size <= 1024; size *= 2 {
		if _, err := conn.Write(bytes.Repeat([]byte{byte(size), 0xff, 8}, size)); err != nil {
			t.Fatal(err)
		}
	}
	a.SetHighWater(5)
	eventually(t, "gossip goes on", func() bool { return b.HighWater() == 5 })
}

func TestPortInUse(t *testing.T) {
	a := start(t, "1", nil)
	if _, err := Start(Options{RandomID: "2", Listen: a.Addr()}); err == nil || !strings.Contains(err.Error(), a.Addr()) {
		t.Errorf("a taken port: %v", err)
	}
}

func TestLatestLives(t *testing.T) {
	life := func(node raft.NodeID, addr string, boot uint64) Member {
		return Member{Meta: Meta{Node: node, Addr: addr, Boot: boot}}
	}
	got := latestLives([]Member{
		life(1, "a", 5), life(1, "b", 7), life(2, "c", 1), life(0, "d", 1), life(0, "d", 2), life(0, "e", 1), life(1, "c2", 6),
	})
	var text []string
	for _, m := range got {
		text = append(text, fmt.Sprintf("%d@%s/%d", m.Node, m.Addr, m.Boot))
	}
	if want := "1@b/7 2@c/1 0@d/2 0@e/1"; strings.Join(text, " ") != want {
		t.Errorf("got %v, want %s", text, want)
	}
}

func TestMetaFitsAndRoundTrips(t *testing.T) {
	long := strings.Repeat("x", 300)
	m := Meta{Boot: 1 << 60, Node: 1 << 61, ClusterID: long[:clusterMax], Addr: long[:addrMax], RespPort: 65535, HTTPPort: 1, Zone: long, Release: long}
	b, err := m.encode()
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > metaBytesMax {
		t.Errorf("%d bytes, want at most %d", len(b), metaBytesMax)
	}
	m.Zone, m.Release = long[:zoneMax], long[:releaseMax]
	if got, err := decodeMeta(b); err != nil || got != m {
		t.Errorf("got %+v (%v), want %+v", got, err, m)
	}
	if _, err := (Meta{ClusterID: long}).encode(); err == nil {
		t.Error("an overlong cluster id was taken")
	}
	if _, err := (Meta{Addr: long}).encode(); err == nil {
		t.Error("an overlong address was taken")
	}
}

func FuzzDecode(f *testing.F) {
	b, err := Meta{Node: 1, ClusterID: "c", Addr: "127.0.0.1:1"}.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(encodeHint(Hint{1, 2, 3}))
	f.Add(encodeHighWater(4))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := decodeMeta(b); err == nil {
			if again, err := m.encode(); err != nil || len(again) > metaBytesMax {
				t.Errorf("%+v was decoded and does not encode: %v", m, err)
			}
		}
		decodeMessage(b)
	})
}
