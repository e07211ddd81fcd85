package shardkv

import "fmt"

// Limits of what one request may make a replica do. A request past them is
// answered INVALID and has no effect: whether it passes them is known before
// its first operation is carried out, and is the same at every replica.
const (
	// answerBytesMax bounds the results of a request that only reads, so that an
	// answer fits a message.
	answerBytesMax = 32 << 20
	// recordedBytesMax bounds those of a write: what is recorded moves with its
	// shard, in one entry of the target's log.
	recordedBytesMax = 11 << 20
	// workBytesMax bounds the values that one request reads and writes: ten
	// thousand appends to one large value would otherwise hold up a group for
	// minutes.
	workBytesMax = 256 << 20

	// entryBytesMax bounds the values that the requests of one entry read, write
	// and answer, of which each is small on its way: what follows is answered
	// BUSY and has no effect, the same at every replica.
	entryBytesMax = 64 << 20

	clearWork = 64 << 10 // what a range deletion costs all who read later, put as bytes
	intBytes  = 20       // the longest integer that Incr writes
)

// budget adds up from above what a list of operations will read, write and
// answer, before they are carried out.
type budget struct {
	view   *shardView
	sizes  map[string]int // the most a key's value can have after the operations so far
	work   int
	answer int
	// written is what the operations so far may have put, and removes tells
	// whether one may have taken keys away: then a page may be any.
	written int
	removes bool
}

// overspent says why the operations are too much for one write, "" if they are
// not.
func (v *shardView) overspent(ops []op) (string, error) {
	if !needsBudget(ops) {
		return "", nil
	}
	b := budget{view: v, sizes: make(map[string]int), work: v.looked}
	for i := range ops {
		if err := b.add(&ops[i]); err != nil {
			return "", err
		}
		if why := excess(b.work, b.answer, recordedBytesMax); why != "" {
			return why, nil
		}
	}
	return "", nil
}

// excess says what is too much, "" if nothing is.
func excess(work, answer, answerMax int) string {
	switch {
	case answer > answerMax:
		return fmt.Sprintf("the results pass %d bytes: ask for less at once", answerMax)
	case work > workBytesMax:
		return fmt.Sprintf("the request reads and writes more than %d bytes: ask for less at once", workBytesMax)
	}
	return ""
}

// needsBudget: one operation is bounded by itself, and plain writes by the
// size of the request.
func needsBudget(ops []op) bool {
	if len(ops) < 2 {
		return false
	}
	for i := range ops {
		if !ops[i].blind() {
			return true
		}
	}
	return false
}

// blind: the operation does not look at what is there.
func (o *op) blind() bool {
	return o.kind == opPut && o.condition == putAlways && !o.keepTTL && !o.previous
}

// size is the most that a key's value can have by now.
func (b *budget) size(key []byte) (int, error) {
	if n, known := b.sizes[string(key)]; known {
		return n, nil
	}
	r, _, err := b.view.get(key)
	if err != nil {
		return 0, err
	}
	b.sizes[string(key)] = len(r.value)
	return len(r.value), nil
}

func (b *budget) add(o *op) error {
	b.removes = b.removes || o.expireAt != 0
	switch {
	case o.kind == opClear:
		b.work += clearWork
		b.removes = true
		return nil
	case o.kind == opScan:
		b.work += pageLookMax
		if o.span.countOnly {
			return nil
		}
		return b.addPage(o.span)
	case o.blind():
		b.work += len(o.value)
		b.written += len(o.value)
		b.sizes[string(o.key)] = len(o.value)
		return nil
	}
	n, err := b.size(o.key)
	if err != nil {
		return err
	}
	b.work += n + o.growth(n)
	b.written += o.growth(n)
	b.removes = b.removes || o.kind == opDelete || o.kind == opExpire
	if o.answersValue() {
		b.answer += n
	}
	b.sizes[string(o.key)] = max(n, o.growth(n))
	return nil
}

// addPage counts a page of a scan: as it is now, and what was put since, unless
// keys may have gone that stood before it.
func (b *budget) addPage(s span) error {
	if b.removes {
		b.answer += pageBytesMax
		return nil
	}
	page, _, err := b.view.scan(s)
	if err != nil {
		return err
	}
	b.answer += b.written
	for i := range page.pairs {
		b.answer += 64 + len(page.pairs[i].key) + len(page.pairs[i].value)
	}
	return nil
}

// growth is the most that the operation writes over a value of n bytes.
func (o *op) growth(n int) int {
	switch o.kind {
	case opPut:
		return len(o.value)
	case opAppend:
		return min(n+len(o.value), ValueBytesMax)
	case opIncr:
		return intBytes
	case opExpire:
		return n
	}
	return 0
}

// answersValue: the result may carry the value that was there.
func (o *op) answersValue() bool {
	switch o.kind {
	case opGet:
		return !o.noValue
	case opPut:
		return o.previous || o.condition >= putIfVersion
	case opDelete:
		return o.previous || o.version != 0
	}
	return false
}
