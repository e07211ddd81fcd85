package rafttest

import (
	"fmt"
	"strings"

	"github.com/flotilla-kv/flotilla/raft"
)

// Describe says a message in one line, for traces and transcripts.
func Describe(m *raft.Message) string {
	return fmt.Sprintf("%d->%d term %d %s", m.From, m.To, m.Term, describeBody(m.Body))
}

func describeBody(body raft.Body) string {
	switch b := body.(type) {
	case *raft.RequestVote:
		return fmt.Sprintf("%s last %d/%d%s", pre(b.PreVote, "RequestVote"), b.LastLogIndex, b.LastLogTerm, when(b.Transfer, " transfer"))
	case *raft.RequestVoteReply:
		return pre(b.PreVote, "RequestVoteReply") + when(b.Granted, " granted") + when(!b.Granted, " refused")
	case *raft.AppendEntries:
		return fmt.Sprintf("AppendEntries behind %d/%d [%s] commit %d%s%s", b.PrevLogIndex, b.PrevLogTerm, DescribeEntries(b.Entries), b.LeaderCommit,
			number(b.ReadRound, " round %d"), when(b.Sleep, " sleep"))
	case *raft.AppendEntriesReply:
		text := fmt.Sprintf("AppendEntriesReply match %d", b.MatchIndex)
		if !b.Success {
			text = fmt.Sprintf("AppendEntriesReply refuses %d, conflict %d/%d", b.RejectedPrev, b.ConflictIndex, b.ConflictTerm)
		}
		return text + number(b.ReadRound, " round %d") + when(b.Asleep, " asleep") + when(b.Suspect, " suspect")
	case *raft.InstallSnapshot:
		return fmt.Sprintf("InstallSnapshot %d/%d epoch %d", b.Snapshot.Index, b.Snapshot.Term, b.Snapshot.Membership.Epoch)
	case *raft.TimeoutNow:
		return "TimeoutNow"
	case *raft.ReadIndexRequest:
		return "ReadIndexRequest" + when(b.ID>>63 != 0, " suspect")
	case *raft.ReadIndexReply:
		return fmt.Sprintf("ReadIndexReply %d", b.Index)
	}
	return fmt.Sprintf("%T", body)
}

// DescribeEntries lists entries as index/term and what they are.
func DescribeEntries(es []raft.Entry) string {
	var parts []string
	for _, e := range es {
		text := fmt.Sprintf("%d/%d", e.Index, e.Term)
		switch e.Kind {
		case raft.EntryNoop:
			text += " noop"
		case raft.EntryMembership:
			m, err := raft.DecodeMembership(e.Data)
			text += " " + DescribeMembership(m)
			if err != nil {
				text += "?"
			}
		case raft.EntryCommand:
			text += fmt.Sprintf(" %q", e.Data)
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, ", ")
}

// DescribeMembership lists the replicas: voters, then outgoing, then learners.
func DescribeMembership(m raft.Membership) string {
	text := fmt.Sprintf("e%d(%s)", m.Epoch, ids(m.Voters))
	if m.Joint() {
		text += fmt.Sprintf(" out(%s)", ids(m.Outgoing))
	}
	if len(m.Learners) > 0 {
		text += fmt.Sprintf(" learn(%s)", ids(m.Learners))
	}
	return text
}

// DescribeStatus is a replica in one line.
func DescribeStatus(s raft.Status) string {
	return fmt.Sprintf("%d %-13s term %d leader %d last %d durable %d commit %d applied %d %s%s%s",
		s.Replica, s.Role, s.Term, s.Leader, s.Last, s.Durable, s.Commit, s.Applied, DescribeMembership(s.Membership),
		when(s.Asleep, " asleep"), when(s.Suspect, " suspect"))
}

func ids(list []raft.Member) string {
	var parts []string
	for _, m := range list {
		parts = append(parts, fmt.Sprint(m.Replica))
	}
	return strings.Join(parts, " ")
}

func pre(is bool, name string) string {
	if is {
		return "pre-" + name
	}
	return name
}

func when(is bool, text string) string {
	if is {
		return text
	}
	return ""
}

func number(n uint64, format string) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(format, n)
}
