package peer_test

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/flotilla-kv/flotilla/raft/peer"
)

// network joins three peers of one process; who is not there yet is not reached.
type network struct {
	mu    sync.Mutex // guards peers
	peers [3]*peer.Raft
}

func (n *network) join(me int, rf *peer.Raft) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.peers[me] = rf
}

// start has whoever leads take a command in; false: nobody leads.
func (n *network) start(command string) bool {
	return slices.ContainsFunc(n.peers[:], func(rf *peer.Raft) bool {
		_, _, isLeader := rf.Start([]byte(command))
		return isLeader
	})
}

// way is a peer's way to another.
type way struct {
	net *network
	to  int
}

func (w way) Call(_ string, args, reply any) bool {
	w.net.mu.Lock()
	rf := w.net.peers[w.to]
	w.net.mu.Unlock()
	if rf == nil {
		return false
	}
	rf.Deliver(args.(*peer.DeliverArgs), reply.(*peer.DeliverReply))
	return true
}

// forgetful is a persister for a process that never restarts.
type forgetful struct{}

func (forgetful) Save(_, _ []byte)      {}
func (forgetful) ReadRaftState() []byte { return nil }
func (forgetful) ReadSnapshot() []byte  { return nil }
func (forgetful) RaftStateSize() int    { return 0 }

// A replicated log of three peers: whoever leads takes the commands, and all
// apply the same.
func Example() {
	var net network
	var logs [3]chan peer.ApplyMsg
	ends := []peer.ClientEnd{way{&net, 0}, way{&net, 1}, way{&net, 2}}
	for me := range logs {
		logs[me] = make(chan peer.ApplyMsg)
		rf := peer.Make(ends, me, forgetful{}, logs[me])
		defer rf.Kill()
		net.join(me, rf)
	}
	// await reads a peer's log until the word comes.
	await := func(me int, word string, patience time.Duration) bool {
		for timeout := time.After(patience); ; {
			select {
			case m := <-logs[me]:
				if string(m.Command) == word {
					fmt.Printf("peer %d applies %s\n", me, word)
					return true
				}
			case <-timeout:
				return false
			}
		}
	}
	for _, word := range []string{"one", "log"} {
		// Nobody may lead yet, or a leader be deposed before it has told anyone.
		for !net.start(word) || !await(0, word, 2*time.Second) {
			time.Sleep(10 * time.Millisecond)
		}
		await(1, word, time.Minute)
		await(2, word, time.Minute)
	}
	// Output:
	// peer 0 applies one
	// peer 1 applies one
	// peer 2 applies one
	// peer 0 applies log
	// peer 1 applies log
	// peer 2 applies log
}
