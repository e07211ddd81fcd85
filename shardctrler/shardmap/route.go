package shardmap

import (
	"bytes"
	"fmt"
	"math/bits"

	"github.com/cespare/xxhash/v2"
)

// ShardID numbers the shards from 0 to N-1.
type ShardID uint64

// Generation grows with each change of a shard's owner; for one shard the
// higher generation always wins.
type Generation uint64

// ConfigNum counts the numbered configs: the assignments that were wished for.
type ConfigNum uint64

// Limits and defaults of the number of shards.
const (
	ShardsMin     = 1
	ShardsMax     = 65_536
	ShardsDefault = 1_024
)

// CheckShards refuses a number of shards that is not a power of two within
// the limits.
func CheckShards(n int) error {
	if n < ShardsMin || n > ShardsMax || n&(n-1) != 0 {
		return fmt.Errorf("%d shards: it must be a power of two from %d to %d", n, ShardsMin, ShardsMax)
	}
	return nil
}

// RoutingKey is the part of a key that decides its shard: what stands between
// the first '{' and the next '}' if that is not empty, otherwise the whole
// key. Keys with the same routing key share a shard.
func RoutingKey(key []byte) []byte {
	open := bytes.IndexByte(key, '{')
	if open < 0 {
		return key
	}
	end := bytes.IndexByte(key[open+1:], '}')
	if end <= 0 {
		return key
	}
	return key[open+1 : open+1+end]
}

// Shard is the shard of a key among n shards; n must pass CheckShards.
func Shard(key []byte, n int) ShardID {
	width := bits.TrailingZeros(uint(n))
	if width == 0 {
		return 0
	}
	return ShardID(xxhash.Sum64(RoutingKey(key)) >> (64 - width))
}
