package statestore

// Iter walks keys of a replica in order. It starts nowhere: First, Last or a
// Seek comes first. Key and Value live until the next move. It is for one
// goroutine at a time.
type Iter struct {
	replica *Replica
	raw     rawIter
	seek    []byte // scratch for whole keys
}

func newIter(r *Replica, lo, hi []byte, open func(lo, hi []byte) (rawIter, error)) *Iter {
	raw, err := open(r.bounds(lo, hi))
	if err != nil {
		raw = brokenIter{err}
	}
	return &Iter{replica: r, raw: raw}
}

// First moves to the first key; false if there is none.
func (i *Iter) First() bool { return i.raw.First() }

// Last moves to the last key.
func (i *Iter) Last() bool { return i.raw.Last() }

// Next moves on by one.
func (i *Iter) Next() bool { return i.raw.Next() }

// Prev moves back by one.
func (i *Iter) Prev() bool { return i.raw.Prev() }

// SeekGE moves to the first key that is not below key.
func (i *Iter) SeekGE(key []byte) bool { return i.raw.SeekGE(i.whole(key)) }

// SeekLT moves to the last key below key.
func (i *Iter) SeekLT(key []byte) bool { return i.raw.SeekLT(i.whole(key)) }

func (i *Iter) whole(key []byte) []byte {
	i.seek = append(append(i.seek[:0], i.replica.prefix...), key...)
	return i.seek
}

// Valid says whether the iterator stands on a key.
func (i *Iter) Valid() bool { return i.raw.Valid() }

// Key is the key it stands on.
func (i *Iter) Key() []byte { return i.raw.Key()[prefixBytes:] }

// Value is the value it stands on.
func (i *Iter) Value() []byte { return i.raw.Value() }

// Error says why the iterator stopped; nil if it came to the end.
func (i *Iter) Error() error { return i.raw.Error() }

// Close gives the iterator back and returns its Error.
func (i *Iter) Close() error { return i.raw.Close() }

// brokenIter stands for an iterator that could not be made.
type brokenIter struct{ err error }

func (b brokenIter) First() bool        { return false }
func (b brokenIter) Last() bool         { return false }
func (b brokenIter) Next() bool         { return false }
func (b brokenIter) Prev() bool         { return false }
func (b brokenIter) SeekGE([]byte) bool { return false }
func (b brokenIter) SeekLT([]byte) bool { return false }
func (b brokenIter) Valid() bool        { return false }
func (b brokenIter) Key() []byte        { return nil }
func (b brokenIter) Value() []byte      { return nil }
func (b brokenIter) Error() error       { return b.err }
func (b brokenIter) Close() error       { return b.err }
