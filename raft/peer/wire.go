package peer

import "github.com/flotilla-kv/flotilla/raft"

// DeliverArgs are what one peer says to another, in the order in which it was
// said.
type DeliverArgs struct {
	From, To int // numbers of the peers
	Requests []Request
}

// DeliverReply answers. An answer may speak for several requests, of other
// calls too: acknowledgements are cumulative, and one that comes twice changes
// nothing.
type DeliverReply struct {
	Answers []Answer
	// Installed: the state of the InstallSnapshot that the call carried, or a
	// later one, is in place.
	Installed bool
}

// Request is one RPC of the Raft paper: one of the pointers is set. (Not an
// interface: gob would have to be told of its types.)
type Request struct {
	Term            uint64 // the sender's currentTerm; for a pre-vote: the term it would campaign in
	RequestVote     *RequestVote
	AppendEntries   *AppendEntries
	InstallSnapshot *InstallSnapshot
}

// RequestVote asks for a vote, or, with PreVote, whether one would be given.
type RequestVote struct {
	PreVote      bool
	LastLogIndex uint64
	LastLogTerm  uint64
}

// AppendEntries replicates Entries behind PrevLogIndex; without any it is a
// heartbeat. These indexes count all entries, no-ops too.
type AppendEntries struct {
	PrevLogIndex uint64
	PrevLogTerm  uint64
	Entries      []Entry
	LeaderCommit uint64
}

// Entry is one entry of the log; its index follows from its place.
type Entry struct {
	Term    uint64
	Noop    bool // the entry that begins a term; no command
	Command []byte
}

// InstallSnapshot brings the whole state through LastIncludedIndex, in one
// piece.
type InstallSnapshot struct {
	LastIncludedIndex uint64
	LastIncludedTerm  uint64
	CommandIndex      uint64 // how many of these entries are commands
	Data              []byte
}

// Answer answers a Request: one of the pointers is set.
type Answer struct {
	Term          uint64
	RequestVote   *RequestVoteReply
	AppendEntries *AppendEntriesReply
}

// RequestVoteReply answers a RequestVote of the same kind.
type RequestVoteReply struct {
	PreVote bool
	Granted bool
}

// AppendEntriesReply answers AppendEntries and InstallSnapshot; the fields are
// the core's (raft.AppendEntriesReply).
type AppendEntriesReply struct {
	Success       bool
	MatchIndex    uint64
	ConflictTerm  uint64
	ConflictIndex uint64
	RejectedPrev  uint64
}

func (r *Request) isHeartbeat() bool {
	return r.AppendEntries != nil && len(r.AppendEntries.Entries) == 0
}

// bytes is the size of what may be large in a request.
func (r *Request) bytes() (size int) {
	if r.InstallSnapshot != nil {
		size += len(r.InstallSnapshot.Data)
	}
	if r.AppendEntries != nil {
		for i := range r.AppendEntries.Entries {
			size += len(r.AppendEntries.Entries[i].Command)
		}
	}
	return size
}

// requestOf puts a message of the core into the form for the wire; false: it
// is no request.
func requestOf(m *raft.Message) (Request, bool) {
	r := Request{Term: uint64(m.Term)}
	switch b := m.Body.(type) {
	case *raft.RequestVote:
		r.RequestVote = &RequestVote{PreVote: b.PreVote, LastLogIndex: uint64(b.LastLogIndex), LastLogTerm: uint64(b.LastLogTerm)}
	case *raft.AppendEntries:
		a := &AppendEntries{PrevLogIndex: uint64(b.PrevLogIndex), PrevLogTerm: uint64(b.PrevLogTerm), LeaderCommit: uint64(b.LeaderCommit)}
		if len(b.Entries) > 0 {
			a.Entries = make([]Entry, len(b.Entries))
		}
		for i := range b.Entries {
			e := &b.Entries[i]
			a.Entries[i] = Entry{Term: uint64(e.Term), Noop: e.Kind == raft.EntryNoop, Command: e.Data}
		}
		r.AppendEntries = a
	default:
		return Request{}, false
	}
	return r, true
}

// bodyOf is the way back, but for InstallSnapshot, which is more than a message
// to the core. Whether it makes sense is for the core to say.
func bodyOf(r *Request) raft.Body {
	switch {
	case r.RequestVote != nil:
		b := r.RequestVote
		return &raft.RequestVote{PreVote: b.PreVote, LastLogIndex: raft.Index(b.LastLogIndex), LastLogTerm: raft.Term(b.LastLogTerm)}
	case r.AppendEntries != nil:
		b := r.AppendEntries
		a := &raft.AppendEntries{PrevLogIndex: raft.Index(b.PrevLogIndex), PrevLogTerm: raft.Term(b.PrevLogTerm), LeaderCommit: raft.Index(b.LeaderCommit)}
		for i := range b.Entries {
			a.Entries = append(a.Entries, b.Entries[i].entry(a.PrevLogIndex+1+raft.Index(i)))
		}
		return a
	}
	return nil
}

func (e *Entry) entry(index raft.Index) raft.Entry {
	if e.Noop {
		return raft.Entry{Index: index, Term: raft.Term(e.Term), Kind: raft.EntryNoop}
	}
	return raft.Entry{Index: index, Term: raft.Term(e.Term), Kind: raft.EntryCommand, Data: e.Command}
}

// answerOf puts an answer of the core into the form for the wire; false: it is
// none.
func answerOf(m *raft.Message) (Answer, bool) {
	a := Answer{Term: uint64(m.Term)}
	switch b := m.Body.(type) {
	case *raft.RequestVoteReply:
		a.RequestVote = &RequestVoteReply{PreVote: b.PreVote, Granted: b.Granted}
	case *raft.AppendEntriesReply:
		a.AppendEntries = &AppendEntriesReply{
			Success: b.Success, MatchIndex: uint64(b.MatchIndex),
			ConflictTerm: uint64(b.ConflictTerm), ConflictIndex: uint64(b.ConflictIndex), RejectedPrev: uint64(b.RejectedPrev),
		}
	default:
		return Answer{}, false
	}
	return a, true
}

// replyOf is the way back.
func replyOf(a *Answer) raft.Body {
	switch {
	case a.RequestVote != nil:
		return &raft.RequestVoteReply{PreVote: a.RequestVote.PreVote, Granted: a.RequestVote.Granted}
	case a.AppendEntries != nil:
		b := a.AppendEntries
		return &raft.AppendEntriesReply{
			Success: b.Success, MatchIndex: raft.Index(b.MatchIndex),
			ConflictTerm: raft.Term(b.ConflictTerm), ConflictIndex: raft.Index(b.ConflictIndex), RejectedPrev: raft.Index(b.RejectedPrev),
		}
	}
	return nil
}
