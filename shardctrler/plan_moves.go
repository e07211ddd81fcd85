package shardctrler

import (
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// moves starts the moves of shards that are not where the config wants them.
func (p *planner) moves() {
	s := p.state
	if len(s.Configs) == 0 {
		return
	}
	config := s.config()
	moving := s.movingShards()
	under := len(moving)
	if under > movesMax/2 {
		return // many at once are one decision
	}
	for i, at := range s.Shards {
		if under >= movesMax {
			return
		}
		shard, to := shardmap.ShardID(i), config.Owners[i]
		if at.Group == 0 || at.Group == to {
			continue
		}
		if _, is := moving[shard]; is {
			continue
		}
		if g, ok := s.group(to); !ok || !g.Born {
			continue
		}
		p.add(StartMove{Shard: shard, From: at.Group, To: to, Generation: at.Generation}, "config %d: %s", config.Num, config.Reason)
		under++
	}
}
