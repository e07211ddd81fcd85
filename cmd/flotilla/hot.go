package main

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

// addHotFlag has a listing of the shards show, on a flag, those that are asked
// for most.
func addHotFlag(g *globals, list *cobra.Command) {
	hot := list.Flags().Bool("hot", false, "only the shards with requests lately, the busiest first, with their rates and hottest keys")
	all := list.RunE
	list.RunE = func(c *cobra.Command, args []string) error {
		if !*hot {
			return all(c, args)
		}
		s, err := getStatusWith(c.Context(), g, &flotillav1.GetStatusRequest{Loads: true})
		if err != nil {
			return err
		}
		shards := hottest(s.Loads)
		if g.output == "json" {
			return writeJSON(c.OutOrStdout(), shards)
		}
		return printHot(c.OutOrStdout(), shards)
	}
}

type hotShardJSON struct {
	Shard      uint64       `json:"shard"`
	Group      uint64       `json:"group"`
	ReadsPerS  uint64       `json:"reads_per_s"`
	WritesPerS uint64       `json:"writes_per_s"`
	BytesPerS  uint64       `json:"bytes_per_s"`
	Share      float64      `json:"share"` // of its group's requests
	HotKeys    []hotKeyJSON `json:"hot_keys"`
}

// hotKeyJSON is a key with its part of the shard's requests. A key that is no
// text is written in base64, and encoding says so.
type hotKeyJSON struct {
	Key      string  `json:"key"`
	Encoding string  `json:"encoding"`
	Share    float64 `json:"share"`
}

// hottest are the shards of all groups, the busiest first.
func hottest(groups []*flotillav1.GroupLoad) []hotShardJSON {
	shards := make([]hotShardJSON, 0)
	for _, g := range groups {
		sum := uint64(0)
		for _, s := range g.Shards {
			sum += s.ReadsPerS + s.WritesPerS
		}
		for _, s := range g.Shards {
			shards = append(shards, hotShardJSON{Shard: s.Shard, Group: g.Group, ReadsPerS: s.ReadsPerS, WritesPerS: s.WritesPerS, BytesPerS: s.BytesPerS,
				Share: float64(s.ReadsPerS+s.WritesPerS) / float64(max(sum, 1)), HotKeys: each(s.HotKeys, toHotKeyJSON)})
		}
	}
	slices.SortFunc(shards, func(a, b hotShardJSON) int {
		return cmp.Or(cmp.Compare(b.ReadsPerS+b.WritesPerS, a.ReadsPerS+a.WritesPerS), cmp.Compare(a.Shard, b.Shard))
	})
	return shards
}

func toHotKeyJSON(k *flotillav1.HotKey) hotKeyJSON {
	if !utf8.Valid(k.Key) {
		return hotKeyJSON{Key: base64.StdEncoding.EncodeToString(k.Key), Encoding: "base64", Share: k.Share}
	}
	return hotKeyJSON{Key: string(k.Key), Encoding: "utf-8", Share: k.Share}
}

func printHot(out io.Writer, shards []hotShardJSON) error {
	t := newTable(out, "shard", "group", "reads/s", "writes/s", "bytes/s", "of group", "hottest keys")
	for _, s := range shards {
		var keys []string
		for _, k := range s.HotKeys {
			keys = append(keys, fmt.Sprintf("%s %.0f%%", strconv.Quote(k.Key), 100*k.Share))
		}
		t.row(s.Shard, s.Group, s.ReadsPerS, s.WritesPerS, s.BytesPerS, fmt.Sprintf("%.0f%%", 100*s.Share), cmp.Or(strings.Join(keys, " "), "-"))
	}
	return t.flush()
}
