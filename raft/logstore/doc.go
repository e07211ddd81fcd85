// Package logstore is the durable log of all Raft groups of one node.
//
// All groups share one Pebble store with one write-ahead log. Whatever is
// queued while a sync is under way goes out together with the next one, so the
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
// # A cut log is noticed
//
// Damage at the end of a write-ahead log looks like a crash in the middle of a
// write: Pebble opens with fewer records and says nothing. So every durable
// batch carries the next number of a node-wide sequence, and two side files
// remember, independently and never before the sync that covers it, how far
// the log was: the evidence file the number itself, at least every second
// while writing and at a clean close, and the votes file, which is written
// behind each batch with a term, a vote or a replica record, that batch's
// number. A log that opens below either is cut. All its replicas are then
// marked suspect in the log, terms, votes and replica records are taken from
// the votes file, and the sequence goes on above all that was ever used.
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
//	DIR/pebble/            the Pebble store
//	DIR/evidence           how far the log was synced
//	DIR/votes              second copy of terms, votes and replica records
//
// Pebble's keys begin with one letter; numbers are big-endian and 8 bytes:
//
//	'i'                          -> identity (JSON)
//	's'                          -> seq(8): number of the last batch
//	'l'                          -> (empty) the votes are lost
//	'h' group(8)                 -> replica(8): the highest ever created
//	'r' group(8) replica(8)      -> flags(1: bit 0 suspect) | first membership
//	'v' group(8) replica(8)      -> term(8) vote(8)
//	'b' group(8) replica(8)      -> index(8) term(8) mark(1) [membership if mark is 1]
//	                                the log begins behind index; mark: because a
//	                                snapshot with that membership was installed
//	'm' group(8) replica(8) index(8) -> term(8) | membership: copy of the
//	                                membership entries, to find them without scanning
//	'e' group(8) replica(8) index(8) -> term(8) kind(1) data: the entry
//
// The evidence file has two slots of 4096 bytes, written in turn, so that a
// torn write leaves the other one:
//
//	0   magic "FLEV"      4
//	4   counter           8   the higher one counts
//	12  seq               8   the last synced batch
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
//	16  seq               8   of the batch it copies
//	24  kind              1   1 term and vote, 2 replica created, 3 removed, 4 highest,
//	                          5 the votes are lost (group and replica are 0)
//	25  group             8
//	33  replica           8
//	41  kind 1: term(8) vote(8); kind 2: first membership; others: nothing
package logstore
