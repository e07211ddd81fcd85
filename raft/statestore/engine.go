package statestore

// engine is an ordered key-value store whose commits are atomic at once and
// durable later. Keys are whole: prefix and caller's key. Bounds are
// half-open; nil is no bound.
type engine interface {
	// get returns a copy.
	get(key []byte) (value []byte, ok bool, err error)
	newIter(lo, hi []byte) (rawIter, error)
	// newDurableIter shows what a crash now would leave.
	newDurableIter(lo, hi []byte) (rawIter, error)
	// newBatch begins a batch of the replica whose keys begin with prefix.
	newBatch(prefix []byte) rawBatch
	// newView shows lo..hi as they are now. It is for one goroutine and not
	// for long.
	newView(lo, hi []byte) (rawView, error)
	// newSnapshot is a view that may live for long.
	newSnapshot(lo, hi []byte) (rawView, error)
	newInstall(lo, hi []byte) rawInstall
	// excise removes lo..hi, durably.
	excise(lo, hi []byte) error

	flush() error
	asyncFlush() error
	close() error
}

// rawIter walks keys in order. Key and Value live until the next move.
type rawIter interface {
	First() bool
	Last() bool
	Next() bool
	Prev() bool
	SeekGE(key []byte) bool
	SeekLT(key []byte) bool
	Valid() bool
	Key() []byte
	Value() []byte
	Error() error
	Close() error
}

// rawBatch gathers changes of a replica; reads see them on top of the store as
// it is. Single keys are without the replica's prefix, bounds are whole.
type rawBatch interface {
	// set sets the value of key to head and tail, joined.
	set(key, head, tail []byte)
	delete(key []byte)
	deleteRange(lo, hi []byte)
	// changes counts what is to be written; a key twice may count once.
	changes() int
	bytes() int
	get(key []byte) (value []byte, ok bool, err error)
	newIter(lo, hi []byte) (rawIter, error)
	commit() error
	close()
}

// rawView is one state of a span.
type rawView interface {
	get(key []byte) (value []byte, ok bool, err error)
	newIter(lo, hi []byte) (rawIter, error)
	close() error
}

// rawInstall takes a new content of a span, in ascending order, into storage
// that is not visible yet.
type rawInstall interface {
	add(key, value []byte) error
	// finish replaces the span by what was added, durably.
	finish() error
	// abort drops what was added. It may follow a failed finish.
	abort() error
}
