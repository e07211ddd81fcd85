package shardkv

import "math/bits"

// sum is a sum of digests modulo 2^128, and of how many they are.
type sum struct{ high, low, count uint64 }

func (s *sum) add(kind byte, name []byte, stored ...[]byte) {
	high, low := digestOf(kind, name, stored...)
	var carry uint64
	s.low, carry = bits.Add64(s.low, low, 0)
	s.high, _ = bits.Add64(s.high, high, carry)
	s.count++
}

func (s *sum) sub(kind byte, name []byte, stored ...[]byte) {
	high, low := digestOf(kind, name, stored...)
	var borrow uint64
	s.low, borrow = bits.Sub64(s.low, low, 0)
	s.high, _ = bits.Sub64(s.high, high, borrow)
	s.count--
}

// plus is the sum of both.
func (s sum) plus(o sum) sum {
	low, carry := bits.Add64(s.low, o.low, 0)
	high, _ := bits.Add64(s.high, o.high, carry)
	return sum{high: high, low: low, count: s.count + o.count}
}

// copyDigest tells copies of a shard apart: see ShardDigest. Keys and answers
// have sums of their own, since all keys can go at once.
type copyDigest struct{ keys, answers sum }

func (d copyDigest) plus(o copyDigest) copyDigest {
	return copyDigest{keys: d.keys.plus(o.keys), answers: d.answers.plus(o.answers)}
}

func (s sum) encode(e *encoder) {
	e.fixed(s.high)
	e.fixed(s.low)
	e.uint(s.count)
}

func decodeSum(d *decoder) sum { return sum{high: d.fixed(), low: d.fixed(), count: d.uint()} }
