package peer

import (
	"bytes"
	"encoding/gob"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// network carries the calls of a few peers, every one of them through gob, and
// does to them what a scenario asks for.
type network struct {
	mu    sync.Mutex // guards all below
	rng   *rand.Rand
	peers []*Raft // nil: down
	lives []int   // how often each was started
	cut   [][]bool
	kind  weather
	calls []int // that each peer was sent
	bytes int   // of arguments and replies
	out   int   // calls that have not returned
}

// weather is what happens to calls on a network that is not cut.
type weather struct {
	lossy      bool // up to 26 ms on the way; a tenth of requests is lost, and a tenth of replies
	reordering bool // two thirds of the replies take 0.2 to 2.2 s
	late       bool // a tenth of the requests takes 1 to 3 s
	hanging    bool // a call that was lost returns after up to 7 s, otherwise soon
}

// storm is everything at once.
var storm = weather{lossy: true, reordering: true, late: true, hanging: true}

func newNetwork(n int, seed uint64) *network {
	net := &network{rng: rand.New(rand.NewPCG(seed, seed)), peers: make([]*Raft, n), lives: make([]int, n), calls: make([]int, n)}
	for range n {
		net.cut = append(net.cut, make([]bool, n))
	}
	return net
}

// wire is the way from one life of a peer to another peer.
type wire struct {
	net      *network
	from, to int
	life     int
}

// ends are a new life's ways to all.
func (net *network) ends(from int) []ClientEnd {
	net.mu.Lock()
	defer net.mu.Unlock()
	net.lives[from]++
	var ends []ClientEnd
	for to := range net.peers {
		ends = append(ends, &wire{net, from, to, net.lives[from]})
	}
	return ends
}

// Call implements ClientEnd.
func (w *wire) Call(method string, args, reply any) bool {
	raw := encode(args)
	before, lost, hang := w.net.depart(w, len(raw))
	defer w.net.returned()
	time.Sleep(before)
	target := w.net.target(w)
	if lost || target == nil {
		time.Sleep(hang)
		return false
	}
	raw = dispatch(target, method, raw)
	after, lost, hang := w.net.back(w, target, len(raw))
	if lost {
		time.Sleep(hang)
		return false
	}
	time.Sleep(after)
	decode(raw, reply)
	return true
}

// dispatch calls the handler as a network does that knows no types but the
// handler's own.
func dispatch(rf *Raft, method string, raw []byte) []byte {
	if method != "Raft.Deliver" {
		panic("no method " + method)
	}
	args, reply := new(DeliverArgs), new(DeliverReply)
	decode(raw, args)
	rf.Deliver(args, reply)
	return encode(reply)
}

// depart draws what happens to a request.
func (net *network) depart(w *wire, size int) (delay time.Duration, lost bool, hang time.Duration) {
	net.mu.Lock()
	defer net.mu.Unlock()
	net.out++
	net.calls[w.to]++
	net.bytes += size
	if net.kind.lossy {
		delay = net.upTo(26 * time.Millisecond)
		lost = net.rng.IntN(10) == 0
	}
	if net.kind.late && net.rng.IntN(10) == 0 {
		delay = time.Second + net.upTo(2*time.Second)
	}
	return delay, lost, net.hang()
}

func (net *network) returned() {
	net.mu.Lock()
	defer net.mu.Unlock()
	net.out--
}

// quiet tells whether no call is out.
func (net *network) quiet() bool {
	net.mu.Lock()
	defer net.mu.Unlock()
	return net.out == 0
}

// back draws what happens to a reply. It is lost too if meanwhile one of the
// two went down, or was cut off.
func (net *network) back(w *wire, target *Raft, size int) (delay time.Duration, lost bool, hang time.Duration) {
	net.mu.Lock()
	defer net.mu.Unlock()
	net.bytes += size
	lost = net.peers[w.to] != target || net.lives[w.from] != w.life || net.cut[w.from][w.to] || net.kind.lossy && net.rng.IntN(10) == 0
	if net.kind.reordering && net.rng.IntN(3) > 0 {
		delay = 200*time.Millisecond + net.upTo(time.Duration(net.rng.IntN(2000)+1)*time.Millisecond)
	}
	return delay, lost, net.hang()
}

// target is whom a request reaches; nil: nobody.
func (net *network) target(w *wire) *Raft {
	net.mu.Lock()
	defer net.mu.Unlock()
	if net.cut[w.from][w.to] || net.lives[w.from] != w.life {
		return nil
	}
	return net.peers[w.to]
}

func (net *network) hang() time.Duration {
	if net.kind.hanging {
		return net.upTo(7 * time.Second)
	}
	return net.upTo(100 * time.Millisecond)
}

func (net *network) upTo(d time.Duration) time.Duration {
	return time.Duration(net.rng.Int64N(int64(d)))
}

func (net *network) place(i int, rf *Raft) {
	net.mu.Lock()
	defer net.mu.Unlock()
	net.peers[i] = rf
}

func (net *network) set(kind weather) {
	net.mu.Lock()
	defer net.mu.Unlock()
	net.kind = kind
}

// partition leaves only the ways within each side; a peer in none is alone.
func (net *network) partition(sides ...[]int) {
	net.mu.Lock()
	defer net.mu.Unlock()
	for i := range net.cut {
		for j := range net.cut[i] {
			net.cut[i][j] = true
		}
	}
	for _, side := range sides {
		for _, i := range side {
			for _, j := range side {
				net.cut[i][j] = false
			}
		}
	}
}

// intn draws from the network's source, for scenarios.
func (net *network) intn(n int) int {
	net.mu.Lock()
	defer net.mu.Unlock()
	return net.rng.IntN(n)
}

// sent tells how many calls went to peer i (to all, if i is negative), and how
// many bytes there were in all.
func (net *network) sent(i int) (calls, bytes int) {
	net.mu.Lock()
	defer net.mu.Unlock()
	for to, n := range net.calls {
		if i < 0 || i == to {
			calls += n
		}
	}
	return calls, net.bytes
}

// encode makes a message that can be read alone, types and all.
func encode(v any) []byte {
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(v); err != nil {
		panic(fmt.Sprintf("%T cannot be encoded: %v", v, err))
	}
	return b.Bytes()
}

func decode(raw []byte, into any) {
	if err := gob.NewDecoder(bytes.NewReader(raw)).Decode(into); err != nil {
		panic(fmt.Sprintf("%T cannot be decoded: %v", into, err))
	}
}
