package shardkv

import "math/bits"

// sum is a sum of digests modulo 2^128, and of how many they are and of how
// many bytes.
type sum struct{ high, low, count, bytes uint64 }

func (s *sum) add(kind byte, name []byte, stored ...[]byte) {
	high, low := digestOf(kind, name, stored...)
	var carry uint64
	s.low, carry = bits.Add64(s.low, low, 0)
	s.high, _ = bits.Add64(s.high, high, carry)
	s.count++
	s.bytes += bytesOf(name, stored)
}

func (s *sum) sub(kind byte, name []byte, stored ...[]byte) {
	high, low := digestOf(kind, name, stored...)
	var borrow uint64
	s.low, borrow = bits.Sub64(s.low, low, 0)
	s.high, _ = bits.Sub64(s.high, high, borrow)
	s.count--
	s.bytes -= bytesOf(name, stored)
}

func bytesOf(name []byte, stored [][]byte) uint64 {
	n := len(name)
	for _, part := range stored {
		n += len(part)
	}
	return uint64(n)
}

// plus is the sum of both.
func (s sum) plus(o sum) sum {
	low, carry := bits.Add64(s.low, o.low, 0)
	high, _ := bits.Add64(s.high, o.high, carry)
	return sum{high: high, low: low, count: s.count + o.count, bytes: s.bytes + o.bytes}
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
	e.uint(s.bytes)
}

func decodeSum(d *decoder) sum {
	return sum{high: d.fixed(), low: d.fixed(), count: d.uint(), bytes: d.uint()}
}

// bytes of the names and records that were added up.
func (d copyDigest) bytes() uint64 { return d.keys.bytes + d.answers.bytes }
