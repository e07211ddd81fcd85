package transport

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
)

// This file is the only one that knows what protobuf messages look like inside.

// wireMax bounds terms and indexes: a larger one is no term that elections
// could have reached, and sums of two must not overflow.
const wireMax = math.MaxUint64 / 2

// errMalformed refuses a message from the wire.
var errMalformed = errors.New("malformed message")

// envelope says who talks to whom.
type envelope struct {
	clusterID string
	from, to  raft.NodeID
	boot      uint64
}

func (e envelope) encode() *flotillav1.Envelope {
	return &flotillav1.Envelope{ClusterId: e.clusterID, FromNode: uint64(e.from), ToNode: uint64(e.to), Boot: e.boot}
}

func decodeEnvelope(e *flotillav1.Envelope) envelope {
	// The id's own memory: the envelope is kept, its batch need not be.
	return envelope{clusterID: strings.Clone(e.GetClusterId()), from: raft.NodeID(e.GetFromNode()), to: raft.NodeID(e.GetToNode()), boot: e.GetBoot()}
}

// check refuses an envelope that is not from another node of our cluster to us.
func (e envelope) check(self Identity) error {
	switch {
	case e.from == 0 && e.to == 0 && e.clusterID == "":
		return errors.New("no envelope")
	case e.clusterID != self.ClusterID:
		return fmt.Errorf("cluster %.64q, this node is of %q", e.clusterID, self.ClusterID)
	case e.to != self.Self:
		return fmt.Errorf("for node %d, this is node %d", e.to, self.Self)
	case e.from == self.Self:
		return fmt.Errorf("from node %d, which is this node: two nodes have one id", e.from)
	case e.from == 0 || e.boot == 0:
		return fmt.Errorf("from node %d of boot %d", e.from, e.boot)
	}
	return nil
}

// batchEncoder makes batches in memory that it uses again: what encode returns
// is valid until the next call.
type batchEncoder struct {
	batch   flotillav1.RaftBatch
	appends arena[appendFrame]
	replies arena[replyFrame]
}

// arena hands out values that are all taken back at once.
type arena[T any] struct {
	items []*T
	used  int
}

func (a *arena[T]) next() *T {
	if a.used == len(a.items) {
		a.items = append(a.items, new(T))
	}
	a.used++
	return a.items[a.used-1]
}

// appendFrame and replyFrame are the two messages of the hot path, in one piece
// each.
type appendFrame struct {
	message flotillav1.RaftMessage
	oneof   flotillav1.RaftMessage_AppendEntries
	body    flotillav1.AppendEntries
	entries []*flotillav1.RaftEntry // beyond len(body.Entries) in reserve
}

type replyFrame struct {
	message flotillav1.RaftMessage
	oneof   flotillav1.RaftMessage_AppendEntriesReply
	body    flotillav1.AppendEntriesReply
}

func (e *batchEncoder) encode(first *flotillav1.Envelope, ms []raft.Message) *flotillav1.RaftBatch {
	e.batch.Envelope = first
	e.batch.Messages = e.batch.Messages[:0]
	for i := range ms {
		e.batch.Messages = append(e.batch.Messages, e.message(&ms[i]))
	}
	return &e.batch
}

// release forgets the batch, so that it holds on to no entry's data.
func (e *batchEncoder) release() {
	for _, f := range e.appends.items[:e.appends.used] {
		for _, entry := range f.body.Entries {
			entry.Data = nil
		}
	}
	clear(e.batch.Messages)
	e.batch.Envelope = nil
	e.appends.used, e.replies.used = 0, 0
}

func (e *batchEncoder) message(m *raft.Message) *flotillav1.RaftMessage {
	var out *flotillav1.RaftMessage
	switch body := m.Body.(type) {
	case *raft.AppendEntries:
		out = e.appendEntries(body)
	case *raft.AppendEntriesReply:
		out = e.appendEntriesReply(body)
	default:
		out = encodeRare(m.Body)
	}
	out.Group, out.From, out.To, out.Term = uint64(m.Group), uint64(m.From), uint64(m.To), uint64(m.Term)
	return out
}

func (e *batchEncoder) appendEntries(body *raft.AppendEntries) *flotillav1.RaftMessage {
	f := e.appends.next()
	f.message.Body, f.oneof.AppendEntries = &f.oneof, &f.body
	f.body.PrevLogIndex, f.body.PrevLogTerm = uint64(body.PrevLogIndex), uint64(body.PrevLogTerm)
	f.body.LeaderCommit, f.body.ReadRound, f.body.Sleep = uint64(body.LeaderCommit), body.ReadRound, body.Sleep
	f.body.NeededFrom = uint64(body.NeededFrom)
	for len(f.entries) < len(body.Entries) {
		f.entries = append(f.entries, new(flotillav1.RaftEntry))
	}
	f.body.Entries = f.entries[:len(body.Entries)]
	for i := range body.Entries {
		from, to := &body.Entries[i], f.entries[i]
		to.Index, to.Term, to.Kind, to.Data = uint64(from.Index), uint64(from.Term), uint32(from.Kind), from.Data
	}
	return &f.message
}

func (e *batchEncoder) appendEntriesReply(body *raft.AppendEntriesReply) *flotillav1.RaftMessage {
	f := e.replies.next()
	f.message.Body, f.oneof.AppendEntriesReply = &f.oneof, &f.body
	f.body.Success, f.body.MatchIndex = body.Success, uint64(body.MatchIndex)
	f.body.ConflictTerm, f.body.ConflictIndex = uint64(body.ConflictTerm), uint64(body.ConflictIndex)
	f.body.RejectedPrev, f.body.ReadRound = uint64(body.RejectedPrev), body.ReadRound
	f.body.Asleep, f.body.Suspect = body.Asleep, body.Suspect
	return &f.message
}

// encodeRare encodes what is sent too seldom to save its memory.
func encodeRare(body raft.Body) *flotillav1.RaftMessage {
	out := new(flotillav1.RaftMessage)
	switch b := body.(type) {
	case *raft.RequestVote:
		out.Body = &flotillav1.RaftMessage_RequestVote{RequestVote: &flotillav1.RequestVote{
			PreVote: b.PreVote, Transfer: b.Transfer, LastLogIndex: uint64(b.LastLogIndex), LastLogTerm: uint64(b.LastLogTerm)}}
	case *raft.RequestVoteReply:
		out.Body = &flotillav1.RaftMessage_RequestVoteReply{RequestVoteReply: &flotillav1.RequestVoteReply{
			PreVote: b.PreVote, Granted: b.Granted}}
	case *raft.InstallSnapshot:
		out.Body = &flotillav1.RaftMessage_InstallSnapshot{InstallSnapshot: &flotillav1.InstallSnapshot{
			Snapshot: encodeMark(&b.Snapshot)}}
	case *raft.TimeoutNow:
		out.Body = &flotillav1.RaftMessage_TimeoutNow{TimeoutNow: &flotillav1.TimeoutNow{}}
	case *raft.ReadIndexRequest:
		out.Body = &flotillav1.RaftMessage_ReadIndexRequest{ReadIndexRequest: &flotillav1.ReadIndexRequest{Id: b.ID}}
	case *raft.ReadIndexReply:
		out.Body = &flotillav1.RaftMessage_ReadIndexReply{ReadIndexReply: &flotillav1.ReadIndexReply{Id: b.ID, Index: uint64(b.Index)}}
	}
	return out // without a body, for a nil or foreign one: the peer drops it
}

// decodeBatch appends the messages of a batch that are well formed to into, and
// returns how many were not. Entries share the batch's data if it carries those
// of one group only; else each group has its own, for a quiet one keeps its
// entries for long and would keep all that came with them.
func decodeBatch(batch *flotillav1.RaftBatch, into []raft.Message) (ms []raft.Message, invalid int) {
	carriers := 0
	for _, m := range batch.GetMessages() {
		if len(m.GetAppendEntries().GetEntries()) > 0 {
			carriers++
		}
	}
	for _, m := range batch.GetMessages() {
		if carriers > 1 {
			ownData(m.GetAppendEntries().GetEntries())
		}
		decoded, err := decodeMessage(m)
		if err != nil {
			invalid++
			continue
		}
		into = append(into, decoded)
	}
	return into, invalid
}

// ownData moves the data of entries into memory of their own.
func ownData(entries []*flotillav1.RaftEntry) {
	size := 0
	for _, e := range entries {
		size += len(e.GetData())
	}
	if size == 0 {
		return
	}
	data := make([]byte, 0, size)
	for _, e := range entries {
		if e == nil || len(e.Data) == 0 {
			continue
		}
		from := len(data)
		data = append(data, e.Data...)
		e.Data = data[from:len(data):len(data)]
	}
}

// decodeMessage refuses what no correct peer sends: ids that are 0, a replica
// that talks to itself, terms and indexes out of bounds, a body that is missing
// or unknown, entries with gaps. Whether it fits the replica's state is for the
// core to say.
func decodeMessage(m *flotillav1.RaftMessage) (raft.Message, error) {
	if m.GetGroup() == 0 || m.GetFrom() == 0 || m.GetTo() == 0 || m.GetFrom() == m.GetTo() {
		return raft.Message{}, fmt.Errorf("%w: group %d, from %d to %d", errMalformed, m.GetGroup(), m.GetFrom(), m.GetTo())
	}
	if m.GetTerm() == 0 || m.GetTerm() > wireMax {
		return raft.Message{}, fmt.Errorf("%w: term %d", errMalformed, m.GetTerm())
	}
	body, err := decodeBody(m)
	if err != nil {
		return raft.Message{}, err
	}
	return raft.Message{
		Group: raft.GroupID(m.GetGroup()),
		From:  raft.ReplicaID(m.GetFrom()), To: raft.ReplicaID(m.GetTo()),
		Term: raft.Term(m.GetTerm()),
		Body: body,
	}, nil
}

func decodeBody(m *flotillav1.RaftMessage) (raft.Body, error) {
	switch b := m.GetBody().(type) {
	case *flotillav1.RaftMessage_AppendEntries:
		return decodeAppendEntries(b.AppendEntries)
	case *flotillav1.RaftMessage_AppendEntriesReply:
		return decodeAppendEntriesReply(b.AppendEntriesReply)
	case *flotillav1.RaftMessage_RequestVote:
		v := b.RequestVote
		return &raft.RequestVote{PreVote: v.GetPreVote(), Transfer: v.GetTransfer(),
			LastLogIndex: raft.Index(v.GetLastLogIndex()), LastLogTerm: raft.Term(v.GetLastLogTerm()),
		}, bounded(v.GetLastLogIndex(), v.GetLastLogTerm())
	case *flotillav1.RaftMessage_RequestVoteReply:
		return &raft.RequestVoteReply{PreVote: b.RequestVoteReply.GetPreVote(), Granted: b.RequestVoteReply.GetGranted()}, nil
	case *flotillav1.RaftMessage_InstallSnapshot:
		mark, err := decodeMark(b.InstallSnapshot.GetSnapshot())
		return &raft.InstallSnapshot{Snapshot: mark}, err
	case *flotillav1.RaftMessage_TimeoutNow:
		return &raft.TimeoutNow{}, nil
	case *flotillav1.RaftMessage_ReadIndexRequest:
		return &raft.ReadIndexRequest{ID: b.ReadIndexRequest.GetId()}, nil
	case *flotillav1.RaftMessage_ReadIndexReply:
		r := b.ReadIndexReply
		return &raft.ReadIndexReply{ID: r.GetId(), Index: raft.Index(r.GetIndex())}, bounded(r.GetIndex())
	}
	return nil, fmt.Errorf("%w: no body, or one of a later version", errMalformed)
}

func decodeAppendEntries(b *flotillav1.AppendEntries) (raft.Body, error) {
	if err := bounded(b.GetPrevLogIndex(), b.GetPrevLogTerm(), b.GetLeaderCommit(), b.GetNeededFrom()); err != nil {
		return nil, err
	}
	out := &raft.AppendEntries{
		PrevLogIndex: raft.Index(b.GetPrevLogIndex()),
		PrevLogTerm:  raft.Term(b.GetPrevLogTerm()),
		LeaderCommit: raft.Index(b.GetLeaderCommit()),
		ReadRound:    b.GetReadRound(),
		Sleep:        b.GetSleep(),
		NeededFrom:   raft.Index(b.GetNeededFrom()),
	}
	if len(b.GetEntries()) == 0 {
		return out, nil
	}
	out.Entries = make([]raft.Entry, len(b.GetEntries()))
	for i, e := range b.GetEntries() {
		if e.GetIndex() != b.GetPrevLogIndex()+1+uint64(i) || e.GetTerm() > wireMax || e.GetKind() > uint32(raft.EntryMembership) {
			return nil, fmt.Errorf("%w: entry %d of term %d and kind %d at place %d behind %d",
				errMalformed, e.GetIndex(), e.GetTerm(), e.GetKind(), i, b.GetPrevLogIndex())
		}
		out.Entries[i] = raft.Entry{Index: raft.Index(e.GetIndex()), Term: raft.Term(e.GetTerm()), Kind: raft.EntryKind(e.GetKind()), Data: e.GetData()}
	}
	return out, nil
}

func decodeAppendEntriesReply(b *flotillav1.AppendEntriesReply) (raft.Body, error) {
	return &raft.AppendEntriesReply{
		Success:       b.GetSuccess(),
		MatchIndex:    raft.Index(b.GetMatchIndex()),
		ConflictTerm:  raft.Term(b.GetConflictTerm()),
		ConflictIndex: raft.Index(b.GetConflictIndex()),
		RejectedPrev:  raft.Index(b.GetRejectedPrev()),
		ReadRound:     b.GetReadRound(),
		Asleep:        b.GetAsleep(),
		Suspect:       b.GetSuspect(),
	}, bounded(b.GetMatchIndex(), b.GetConflictTerm(), b.GetConflictIndex(), b.GetRejectedPrev())
}

func bounded(numbers ...uint64) error {
	for _, n := range numbers {
		if n > wireMax {
			return fmt.Errorf("%w: term or index %d", errMalformed, n)
		}
	}
	return nil
}

func encodeMark(m *raft.SnapshotMark) *flotillav1.SnapshotMark {
	return &flotillav1.SnapshotMark{Index: uint64(m.Index), Term: uint64(m.Term), Membership: m.Membership.Encode()}
}

func decodeMark(m *flotillav1.SnapshotMark) (raft.SnapshotMark, error) {
	if m.GetIndex() == 0 || m.GetTerm() == 0 {
		return raft.SnapshotMark{}, fmt.Errorf("%w: snapshot at %d of term %d", errMalformed, m.GetIndex(), m.GetTerm())
	}
	if err := bounded(m.GetIndex(), m.GetTerm()); err != nil {
		return raft.SnapshotMark{}, err
	}
	membership, err := raft.DecodeMembership(m.GetMembership())
	if err != nil {
		return raft.SnapshotMark{}, fmt.Errorf("%w: %w", errMalformed, err)
	}
	return raft.SnapshotMark{Index: raft.Index(m.GetIndex()), Term: raft.Term(m.GetTerm()), Membership: membership}, nil
}

func encodePing(first *flotillav1.Envelope, p ping) *flotillav1.LivenessPing {
	out := &flotillav1.LivenessPing{
		Envelope: first,
		Seq:      p.seq, ClockMs: p.clock,
		EchoBoot: p.echoBoot, EchoSeq: p.echoSeq, EchoDelayUs: p.echoDelay.Microseconds(),
		RttUs: -1,
	}
	if p.rtt >= 0 {
		out.RttUs = p.rtt.Microseconds()
	}
	return out
}

// decodePing reads a ping of a stream that began with boot. Numbers out of
// bounds only spoil what they measure.
func decodePing(boot uint64, p *flotillav1.LivenessPing) ping {
	out := ping{
		boot: boot, seq: p.GetSeq(), clock: p.GetClockMs(),
		echoBoot: p.GetEchoBoot(), echoSeq: p.GetEchoSeq(), echoDelay: -1, rtt: -1,
	}
	if us := p.GetEchoDelayUs(); us >= 0 && us < math.MaxInt64/int64(time.Microsecond) {
		out.echoDelay = time.Duration(us) * time.Microsecond
	}
	if us := p.GetRttUs(); us >= 0 && us < math.MaxInt64/int64(time.Microsecond) {
		out.rtt = time.Duration(us) * time.Microsecond
	}
	return out
}

func (h *SnapshotHeader) encode() *flotillav1.SnapshotHeader {
	return &flotillav1.SnapshotHeader{
		Group:         uint64(h.Group),
		FromReplica:   uint64(h.From),
		ToReplica:     uint64(h.To),
		Term:          uint64(h.Term),
		Mark:          encodeMark(&h.Mark),
		BytesEstimate: uint64(max(0, h.BytesEstimate)),
	}
}

func decodeHeader(h *flotillav1.SnapshotHeader) (SnapshotHeader, error) {
	if h.GetGroup() == 0 || h.GetFromReplica() == 0 || h.GetToReplica() == 0 || h.GetFromReplica() == h.GetToReplica() || h.GetTerm() == 0 {
		return SnapshotHeader{}, fmt.Errorf("%w: snapshot of group %d from replica %d to %d in term %d",
			errMalformed, h.GetGroup(), h.GetFromReplica(), h.GetToReplica(), h.GetTerm())
	}
	if err := bounded(h.GetTerm(), h.GetBytesEstimate()); err != nil {
		return SnapshotHeader{}, err
	}
	mark, err := decodeMark(h.GetMark())
	if err != nil {
		return SnapshotHeader{}, err
	}
	return SnapshotHeader{
		Group: raft.GroupID(h.GetGroup()),
		From:  raft.ReplicaID(h.GetFromReplica()), To: raft.ReplicaID(h.GetToReplica()),
		Term:          raft.Term(h.GetTerm()),
		Mark:          mark,
		BytesEstimate: int64(h.GetBytesEstimate()),
	}, nil
}

// chunk is a piece of a snapshot on its way.
type chunk struct {
	number uint64
	data   []byte
	last   bool
	cancel bool
}

func (c chunk) encode() *flotillav1.SnapshotChunk {
	return &flotillav1.SnapshotChunk{Number: c.number, Data: c.data, Checksum: xxhash.Sum64(c.data), Last: c.last, Cancel: c.cancel}
}

func decodeChunk(c *flotillav1.SnapshotChunk) (chunk, error) {
	out := chunk{number: c.GetNumber(), data: c.GetData(), last: c.GetLast(), cancel: c.GetCancel()}
	switch {
	case out.cancel:
		return out, nil
	case len(out.data) > SnapshotChunkBytesMax:
		return out, fmt.Errorf("chunk %d has %d bytes, %d are allowed", out.number, len(out.data), SnapshotChunkBytesMax)
	case c.GetChecksum() != xxhash.Sum64(out.data):
		return out, fmt.Errorf("chunk %d: checksum %016x, its %d bytes have %016x", out.number, c.GetChecksum(), len(out.data), xxhash.Sum64(out.data))
	}
	return out, nil
}

// Why a receiver ends a transfer (SnapshotReply.refusal).
const (
	refusalNone uint32 = iota
	refusalBusy
	refusalDamaged
	refusalNotWanted
	refusalUnknown // the transfer is not known, or was given up
)

// snapshotReply is what the receiver of a snapshot says.
type snapshotReply struct {
	next      uint64 // the chunk wanted next
	installed bool
	refusal   uint32
	message   string
}

func (r snapshotReply) encode() *flotillav1.SnapshotReply {
	return &flotillav1.SnapshotReply{Next: r.next, Installed: r.installed, Refusal: r.refusal, Message: r.message}
}

func decodeSnapshotReply(r *flotillav1.SnapshotReply) snapshotReply {
	return snapshotReply{next: r.GetNext(), installed: r.GetInstalled(), refusal: r.GetRefusal(), message: r.GetMessage()}
}
