// Package replicas reads what the replicas of one node hold, each from its own
// state, so that tests can compare nodes.
package replicas

import (
	"context"
	"crypto/sha256"
	"fmt"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

// Shard is a row of flotilla shard list -o json.
type Shard struct {
	Shard uint64 `json:"shard"`
	Group uint64 `json:"group"`
}

// Digest hashes all keys, values and versions as the replicas of one node hold
// them: follower reads, which that node answers from its own state once it has
// applied what its leader had committed.
func Digest(ctx context.Context, kv flotillav1.KVClient, shards []Shard) (digest string, keys int, err error) {
	hash := sha256.New()
	for _, s := range shards {
		var start []byte
		for more := true; more; {
			page, err := page(ctx, kv, s, start)
			if err != nil {
				return "", 0, err
			}
			for _, pair := range page.GetPairs() {
				fmt.Fprintf(hash, "%q %q %d\n", pair.GetKey(), pair.GetValue(), pair.GetVersion())
			}
			keys += len(page.GetPairs())
			start, more = page.GetNext(), len(page.GetNext()) > 0
		}
	}
	return fmt.Sprintf("%x", hash.Sum(nil)), keys, nil
}

// leaderWithin is how long a replica may be without a leader. One that does not
// serve for longer is not there, or not any more.
const leaderWithin = 10 * time.Second

// page reads one page of a shard. Only a replica that has lost its leader for a
// moment is asked again.
func page(ctx context.Context, kv flotillav1.KVClient, s Shard, start []byte) (*flotillav1.Result, error) {
	began := time.Now()
	for {
		response, err := kv.Do(ctx, FollowerScan(s, start))
		switch {
		case err != nil:
			return nil, fmt.Errorf("read shard %d of group %d: %w", s.Shard, s.Group, err)
		case response.Code == flotillav1.Code_OK:
			return response.Results[0], nil
		case response.Code != flotillav1.Code_NOT_LEADER && response.Code != flotillav1.Code_UNAVAILABLE || time.Since(began) > leaderWithin:
			return nil, fmt.Errorf("read shard %d of group %d: %v %s", s.Shard, s.Group, response.Code, response.Message)
		}
	}
}

// FollowerScan asks for the page of a shard that begins at a key.
func FollowerScan(s Shard, start []byte) *flotillav1.Request {
	return &flotillav1.Request{
		Shard: s.Shard, Group: s.Group, Follower: true,
		Ops: []*flotillav1.Op{{Op: &flotillav1.Op_Scan{Scan: &flotillav1.Scan{Start: start}}}},
	}
}
