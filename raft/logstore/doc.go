// Package logstore is the durable log of all Raft groups of one node.
//
// All groups share one log. One goroutine writes it: whatever is queued while a
// sync is under way goes out together with the next one, as one frame, so the
// number of syncs follows the disk, not the number of groups. A write is
// acknowledged (its done is called) when it is durable, in the order in which
// it was queued; the writes of a group reach the disk in that order.
//
// # Contract
//
//   - Append's done(nil) means: durable, together with all earlier writes.
//   - A replica must be created (durably) before it is written to. The highest
//     ReplicaID of each group is kept for ever; Create refuses one that is not
//     higher, except for the replica that exists now.
//   - Terms, votes and replica records lie in two places, each synced before
//     done is called.
//   - A log that lost its end is noticed (see below) and all its replicas are
//     suspect until ClearSuspect says that a leader has caught them up.
//   - A disk that fails stops the store: OnFatal is called once, every waiting
//     done gets the error, and nothing is acknowledged after that. Nothing is
//     retried.
//
// It refuses a directory that is open elsewhere (disk.ErrInUse), written by a
// newer program (*disk.FormatError), or damaged (*DamagedError), and a log that
// is gone (ErrLogLost) while the node remembers that it had one.
//
// # Segments
//
// The log lies in files that are as large as they will be before they are
// written to, so that a sync moves data and no metadata. Each begins with a
// checkpoint (all that is known but the entries), so that the oldest can go as
// soon as none of its entries counts any more; its file is used again, under a
// header that is synced before anything else is written into it. In
// memory stays where each group's entries lie, run by run, and the most recent
// entries themselves. When the files have become much larger than what counts
// in them, the entries left in the oldest are copied to the end of the log: a
// group that seldom writes does not keep the files of the busy ones.
//
// Open reads all files, in which each frame must be whole and carry the next
// number; the log ends where one does not. It then goes on in another file.
//
// # A cut log is noticed
//
// Damage at the end of a log looks like a crash in the middle of a write. So
// two side files remember, independently and never before the sync that covers
// it, how far the log was: the evidence file the number of the last frame, at
// least every second while writing and at a clean close, and the votes file,
// which is written behind each frame with a term, a vote or a replica record,
// that frame's number. A log that ends below either is cut. All its replicas
// are then marked suspect in the log, terms, votes and replica records are
// taken from the votes file, and the numbers go on above all that was ever
// used. A log whose files do not fit together (one is lost, or the damage lies
// before what was compacted since) is refused with a *DamagedError.
//
// The same holds for a frame that lies at another's place, and for a write that
// the disk lost though it had synced it: nonce and number are in the checksum.
// What was lost in the last second, without a term, a vote or a replica record
// since, is not noticed here; the state that was applied from it may tell (see
// multiraft). A record of entries that is read again after Open is checked by
// itself: its checksum, whose it is and which entries. Another one of the same
// replica and the same entries, of an earlier term, would pass there, until the
// next Open.
//
// If the votes file is damaged too, it is not known what the replicas have
// promised, and they must not run again (Store.Lost): each has to be replaced by
// a new one. That the votes are lost is itself written into both places, so a
// second cut does not undo it. The node goes on without replicas, under its
// identity; their logs are left for whoever wants to look into them. Which
// replicas there were is not known either, for the last may have been created
// behind the cut. So for now none is created any more, not even under a new
// ReplicaID: that takes a linearizable answer of the config group about which
// ids this node had, and somebody who replaces them, which comes with the moves
// of replicas. Until then the way on is a new node.
//
// # Files
//
//	DIR/LOCK, DIR/FORMAT   package disk; kind "logstore"
//	DIR/segments/N.log     the log; N says nothing of the order
//	DIR/evidence           how far the log was synced
//	DIR/votes              second copy of terms, votes and replica records
//
// Numbers are big-endian, uv is an unsigned varint. A segment, from its
// beginning; a file without a whole header, or that no newer segment follows,
// is free:
//
//	0   magic "FLSG"      4
//	4   number            8   ascending
//	12  before            8   number of the segment before, 0: none
//	20  before to         8   the last frame of that segment that counts
//	28  first             8   number of the first frame here
//	36  nonce             8   random
//	44  crc32c of 0..43   4
//	64  frames, one behind the other:
//
//	0   length            4   of the records
//	4   crc32c            4   of nonce, number and records
//	8   number            8   of the frame, one higher than the one before
//	16  records, one behind the other: kind 1, length 4, body
//
// An id is group(8) replica(8); a beginning is index(8) term(8) mark(1)
// [membership if mark is 1]: the log begins behind index, and mark says because
// a snapshot with that membership was installed.
//
//	kind 1   identity (JSON)
//	     2   id: the highest replica of the group that was ever created
//	     3   id flags(1: bit 0 suspect) first membership: the replica exists
//	     4   id: it was removed
//	     5   id term(8) vote(8)
//	     6   id beginning: the entries through index are compacted
//	     7   id beginning: the log is reset
//	     8   crc32c(4) of the rest, id first(8) count(uv), and for each entry
//	         term(uv) kind(1) length(uv) data: entries; they replace what is
//	         there from first on
//	     9   as 8: the same entries as before, at another place
//	     10  nothing: what follows in this frame is a checkpoint
//	     11  id last(8) term(8) beginning: how far the log goes
//	     12  nothing: the votes are lost
//
// The evidence file has two slots of 4096 bytes, written in turn, so that a
// torn write leaves the other one:
//
//	0   magic "FLEV"      4
//	4   counter           8   the higher one counts
//	12  seq               8   the last synced frame
//	20  votes             8   number of the last synced record of the votes file
//	28  crc32c of 0..27   4
//
// The votes file is a header and records, appended and synced; it is written
// anew when it has grown:
//
//	0   magic "FLVO"      4
//	4   number            8   records before this file
//	12  crc32c of 0..11   4
//
//	0   length            4   of what follows the checksum
//	4   crc32c            4   of what follows
//	8   number            8   one higher than the record before
//	16  seq               8   of the frame it copies
//	24  kind              1   1 term and vote, 2 replica created, 3 removed, 4 highest,
//	                          5 the votes are lost (group and replica are 0)
//	25  group             8
//	33  replica           8
//	41  kind 1: term(8) vote(8); kind 2: first membership; others: nothing
package logstore
