package sim

import (
	"fmt"
	"strings"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
)

// trace is a hash over all that happened, and a line for each if somebody
// reads them.
type trace struct {
	hash uint64
	line func(string)
}

func (t *trace) mix(v uint64) {
	h := (t.hash ^ v) * 0x9E3779B97F4A7C15
	t.hash = h ^ h>>29
}

// note adds an event: what befell whom, with two numbers. detail is asked only
// if somebody reads.
func (w *world) note(what string, place int, a, b uint64, detail func() string) {
	t := &w.trace
	t.mix(uint64(w.now))
	for i := range len(what) {
		t.mix(uint64(what[i]))
	}
	t.mix(uint64(place))
	t.mix(a)
	t.mix(b)
	if t.line == nil {
		return
	}
	text := ""
	if detail != nil {
		text = detail()
	}
	t.line(fmt.Sprintf("%10.3f  %-5s  %-12s %6d %6d  %s", float64(w.now)/float64(time.Millisecond), who(place), what, a, b, text))
}

// who names an actor: nodes count from 1, clients are below 0, 0 is the world.
func who(place int) string {
	switch {
	case place > 0:
		return fmt.Sprintf("n%d", place)
	case place < 0:
		return fmt.Sprintf("c%d", -place)
	}
	return "-"
}

// describe is a message in a few words.
func describe(m *raft.Message) string {
	head := fmt.Sprintf("g%d %d>%d t%d ", m.Group, m.From, m.To, m.Term)
	switch b := m.Body.(type) {
	case *raft.RequestVote:
		return head + fmt.Sprintf("RequestVote last %d/%d pre=%t transfer=%t", b.LastLogIndex, b.LastLogTerm, b.PreVote, b.Transfer)
	case *raft.RequestVoteReply:
		return head + fmt.Sprintf("RequestVoteReply granted=%t pre=%t", b.Granted, b.PreVote)
	case *raft.AppendEntries:
		return head + fmt.Sprintf("AppendEntries prev %d/%d +%d commit %d round %d sleep=%t", b.PrevLogIndex, b.PrevLogTerm, len(b.Entries), b.LeaderCommit, b.ReadRound, b.Sleep)
	case *raft.AppendEntriesReply:
		return head + fmt.Sprintf("AppendEntriesReply ok=%t match %d conflict %d/%d round %d", b.Success, b.MatchIndex, b.ConflictIndex, b.ConflictTerm, b.ReadRound)
	}
	return head + strings.TrimPrefix(fmt.Sprintf("%T", m.Body), "*raft.")
}

// weigh is a message as the trace's hash takes it.
func weigh(m *raft.Message) uint64 {
	h := uint64(m.Group)<<40 ^ uint64(m.From)<<32 ^ uint64(m.Term)<<8
	switch b := m.Body.(type) {
	case *raft.AppendEntries:
		h ^= uint64(b.PrevLogIndex)<<20 ^ uint64(len(b.Entries))<<16 ^ uint64(b.LeaderCommit) ^ b.ReadRound<<48
	case *raft.AppendEntriesReply:
		h ^= uint64(b.MatchIndex)<<20 ^ 1<<60
	case *raft.RequestVote:
		h ^= uint64(b.LastLogIndex)<<20 ^ 1<<61
	}
	return h
}
