package node

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/flotilla-kv/flotilla/raft/multiraft"
	"github.com/flotilla-kv/flotilla/shardkv"
)

// metrics are the node's series. None is per group: a node may host thousands.
type metrics struct {
	registry *prometheus.Registry

	syncSeconds  prometheus.Histogram
	syncRequests prometheus.Counter
	syncBytes    prometheus.Counter
	commit       prometheus.Histogram
	apply        prometheus.Histogram
	turn         prometheus.Histogram
	pause        prometheus.Histogram
}

// latencyBuckets reach from 50 us to 13 s, each twice the one before.
func latencyBuckets() []float64 { return prometheus.ExponentialBuckets(50e-6, 2, 19) }

func newMetrics(n *Node) *metrics {
	m := &metrics{registry: prometheus.NewRegistry()}
	histogram := func(name, help string) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "flotilla", Name: name, Help: help, Buckets: latencyBuckets()})
		m.registry.MustRegister(h)
		return h
	}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: "flotilla", Name: name, Help: help})
		m.registry.MustRegister(c)
		return c
	}
	m.syncSeconds = histogram("log_sync_seconds", "Time of one log sync, which serves all groups.")
	m.syncRequests = counter("log_sync_requests_total", "Write requests that log syncs made durable.")
	m.syncBytes = counter("log_sync_bytes_total", "Bytes that log syncs made durable.")
	m.commit = histogram("commit_seconds", "From the proposal of an entry to its results.")
	m.apply = histogram("apply_seconds", "One batch of committed entries into the state store.")
	m.turn = histogram("worker_turn_seconds", "One turn of a worker.")
	m.pause = histogram("shard_move_pause_seconds", "For how long a shard that came to a group led here was served by nobody.")
	m.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		&statsCollector{node: n, series: statsSeries()},
	)
	return m
}

// Synced hears of each synced batch of the log; see logstore.Metrics.
func (m *metrics) Synced(requests, bytes int, took time.Duration) {
	m.syncSeconds.Observe(took.Seconds())
	m.syncRequests.Add(float64(requests))
	m.syncBytes.Add(float64(bytes))
}

func (m *metrics) observers() multiraft.Observers {
	return multiraft.Observers{
		Commit: func(d time.Duration) { m.commit.Observe(d.Seconds()) },
		Apply:  func(d time.Duration) { m.apply.Observe(d.Seconds()) },
		Turn:   func(d time.Duration) { m.turn.Observe(d.Seconds()) },
	}
}

// nodeStats are the counters of the host, and of the server of keys.
type nodeStats struct {
	multiraft.Stats
	keys shardkv.Stats
}

// series is one number of those counters.
type series struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(nodeStats) float64
}

func statsSeries() []series {
	var all []series
	add := func(kind prometheus.ValueType, name, help string, value func(nodeStats) float64) {
		all = append(all, series{prometheus.NewDesc("flotilla_"+name, help, nil, nil), kind, value})
	}
	count := func(name, help string, value func(nodeStats) uint64) {
		add(prometheus.CounterValue, name, help, func(s nodeStats) float64 { return float64(value(s)) })
	}
	gauge := func(name, help string, value func(nodeStats) float64) {
		add(prometheus.GaugeValue, name, help, value)
	}
	count("worker_turns_total", "Turns of all workers.", func(s nodeStats) uint64 { return s.Turns })
	count("log_appends_total", "Writes handed to the log, each of one turn.", func(s nodeStats) uint64 { return s.Appends })
	count("entries_proposed_total", "Entries proposed by leaders here.", func(s nodeStats) uint64 { return s.EntriesProposed })
	count("commands_proposed_total", "Commands in those entries.", func(s nodeStats) uint64 { return s.CommandsProposed })
	count("entries_applied_total", "Entries applied by replicas here.", func(s nodeStats) uint64 { return s.EntriesApplied })
	count("proposals_busy_total", "Proposals and reads refused for load.", func(s nodeStats) uint64 { return s.Busy })
	count("leader_changes_total", "Changes of leaders, as seen by the replicas here.", func(s nodeStats) uint64 { return s.LeaderChanges })
	count("raft_messages_dropped_total", "Raft messages dropped for want of room or address.", func(s nodeStats) uint64 { return s.MessagesDropped })
	count("raft_messages_refused_total", "Raft messages that a core refused.", func(s nodeStats) uint64 { return s.MessagesRefused })
	count("raft_messages_unknown_group_total", "Raft messages for a group that is not here.", func(s nodeStats) uint64 { return s.UnknownGroup })
	count("snapshots_sent_total", "Snapshots streamed to followers.", func(s nodeStats) uint64 { return s.SnapshotsSent })
	count("snapshots_failed_total", "Snapshots that did not arrive.", func(s nodeStats) uint64 { return s.SnapshotsFailed })
	count("snapshots_installed_total", "Snapshots installed here.", func(s nodeStats) uint64 { return s.SnapshotsInstalled })
	count("state_flushes_total", "Flushes of the state store that the host began.", func(s nodeStats) uint64 { return s.Flushes })
	gauge("groups", "Replicas on this node.", func(s nodeStats) float64 { return float64(s.Groups) })
	gauge("groups_awake", "Replicas that tick.", func(s nodeStats) float64 { return float64(s.Awake) })
	gauge("groups_led", "Groups led by this node.", func(s nodeStats) float64 { return float64(s.Leaders) })
	gauge("in_flight_bytes", "Bytes of proposals not yet answered.", func(s nodeStats) float64 { return float64(s.InFlightBytes) })
	gauge("reads_waiting", "Reads not yet answered.", func(s nodeStats) float64 { return float64(s.ReadsWaiting) })
	count("watch_events_total", "Changes told to watches.", func(s nodeStats) uint64 { return s.keys.WatchEvents })
	count("watch_compacted_total", "Shards of watches that were to begin anew, because what came before is not kept.", func(s nodeStats) uint64 { return s.keys.WatchesCompacted })
	count("shards_moved_total", "Shards taken in by groups that are led here.", func(s nodeStats) uint64 { return s.keys.ShardsMoved })
	gauge("watches", "Watch streams.", func(s nodeStats) float64 { return float64(s.keys.Watches) })
	gauge("requests_parked", "Requests that wait for a shard that moves.", func(s nodeStats) float64 { return float64(s.keys.Parked) })
	gauge("apply_lag_entries", "Entries committed and not yet applied.", func(s nodeStats) float64 { return float64(s.ApplyLag) })
	return all
}

// statsCollector asks the host for its counters once a scrape.
type statsCollector struct {
	node   *Node
	series []series
}

// Describe lists the series; see prometheus.Collector.
func (c *statsCollector) Describe(to chan<- *prometheus.Desc) {
	for _, s := range c.series {
		to <- s.desc
	}
}

// Collect gives their values, none before the node has a host.
func (c *statsCollector) Collect(to chan<- prometheus.Metric) {
	host := c.node.host.Load()
	if host == nil {
		return
	}
	stats := nodeStats{host.Stats(), c.node.kv.Stats()}
	for _, s := range c.series {
		to <- prometheus.MustNewConstMetric(s.desc, s.kind, s.value(stats))
	}
}
