// Package statestore keeps the data of all state machines of one node.
//
// All replicas share one Pebble store without a write-ahead log: the Raft log
// is that. Each batch carries the applied record (index, term, membership)
// together with the data, so a restart finds some consistent earlier state and
// replays the log from the applied index it reads there. What has reached the
// disk is learnt from DurableApplied, after OnFlushed said that there is news;
// the Raft log may be compacted behind that and no further.
//
// # Contract
//
//   - A batch is visible as a whole when Commit returns, and durable as a whole
//     some time later. What is durable of a replica is always a prefix of its
//     commits.
//   - An Install replaces a replica's whole state at once, and has made it
//     durable when Finish returns.
//   - A View and a Snapshot show one state, whatever happens meanwhile; an
//     Install or Destroy does not disturb them.
//   - Commit refuses a batch without an applied record (ErrNoApplied): its
//     effects would survive a crash that its index does not.
//   - A disk that fails stops the store: OnFatal is called once and nothing is
//     retried.
//
// It refuses a directory that is open elsewhere (disk.ErrInUse), was written by
// a newer program (*disk.FormatError) or is damaged (*DamagedError), and a
// snapshot stream that is cut short or garbled (ErrBadStream).
//
// The data lies behind a small engine interface with two implementations:
// Pebble (Open), and a model on a copy-on-write B-tree (OpenModel) whose flush
// and crash points the caller picks, for simulations and for comparison.
//
// # Write buffers
//
// A batch is not committed to Pebble but to its replica's buffer, a hash table
// in memory: it takes a write for a fraction of what the memtable's skiplist
// takes, and most of what state machines write is soon written over. A buffer
// that is full goes into Pebble as one batch in order, in the background; a large
// one is flushed without a memtable. All go, and Pebble is flushed, once
// Options.MemTableBytes were committed, for until then the Raft log keeps it.
// Reads look into the buffer first; docs/decisions/0007 says more.
//
// # Files
//
//	DIR/LOCK, DIR/FORMAT  package disk; kind "statestore"
//	DIR/pebble/           the Pebble store
//	DIR/install/          snapshots that are coming in; emptied by Open
//
// # Keys
//
// Callers see keys without the prefix; empty keys are not allowed. The bare
// prefix is the applied record. So one span holds all of a replica, and one
// excise replaces or removes it.
//
//	group(8) replica(8)         -> index(8) term(8) flags(1: bit 0 installed) | membership
//	group(8) replica(8) key     -> value
//
// Numbers are big-endian. "installed" says that the state is that of a snapshot
// just installed: nothing was applied on top. An applied index beyond the end
// of the Raft log is in order then (the crash came before the log was reset),
// and proof of a cut log otherwise.
//
// # Snapshot stream
//
// A stream of bytes cut into chunks of at most ChunkBytes; a record may span
// chunks. Keys ascend.
//
//	version               1   1
//	records:
//	  key length          uvarint, not 0
//	  key
//	  value length        uvarint
//	  value
//	end:
//	  0                   1
//	  number of records   8
//	  xxhash64            8   of all bytes of the stream before these 8
package statestore
