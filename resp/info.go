package resp

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"runtime/metrics"
	"strings"
	"sync/atomic"
	"time"
)

// stats are a server's counters. They only grow, but for CONFIG RESETSTAT.
type stats struct {
	started        time.Time
	connections    atomic.Int64
	rejected       atomic.Int64
	commands       atomic.Int64
	protocolErrors atomic.Int64
}

func (s *stats) begin() { s.started = time.Now() }

func (s *stats) reset() {
	for _, n := range []*atomic.Int64{&s.connections, &s.rejected, &s.commands, &s.protocolErrors} {
		n.Store(0)
	}
}

// Stats are a server's counters since it began or since CONFIG RESETSTAT.
type Stats struct {
	Clients        int   // connected now
	Connections    int64 // accepted
	Rejected       int64 // refused for want of a place
	Commands       int64 // received
	ProtocolErrors int64 // connections ended for them
}

// Stats reads the counters.
func (s *Server) Stats() Stats {
	s.conns.mu.Lock()
	clients := len(s.conns.byID)
	s.conns.mu.Unlock()
	return Stats{
		Clients:        clients,
		Connections:    s.stats.connections.Load(),
		Rejected:       s.stats.rejected.Load(),
		Commands:       s.stats.commands.Load(),
		ProtocolErrors: s.stats.protocolErrors.Load(),
	}
}

// infoSection is one section of INFO: its lines are "name:value".
type infoSection struct {
	name  string
	lines func(*Server) []string
}

func infoSections() []infoSection {
	return []infoSection{
		{"Server", serverLines},
		{"Clients", clientLines},
		{"Memory", memoryLines},
		{"Persistence", persistenceLines},
		{"Stats", statsLines},
		{"Replication", replicationLines},
		{"Cluster", clusterLines},
		{"Keyspace", keyspaceLines},
	}
}

func runInfo(j *job) {
	var b strings.Builder
	for _, section := range infoSections() {
		if !asksFor(j.args[1:], section.name) {
			continue
		}
		if b.Len() > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString("# " + section.name + "\r\n")
		for _, line := range section.lines(j.c.server) {
			b.WriteString(line + "\r\n")
		}
	}
	j.reply(reply{kind: kindVerbatim, text: b.String()})
}

// asksFor says whether INFO's arguments name a section; none name all.
func asksFor(args [][]byte, section string) bool {
	for _, a := range args {
		if isWord(a, strings.ToLower(section)) || isWord(a, "all") || isWord(a, "default") || isWord(a, "everything") {
			return true
		}
	}
	return len(args) == 0
}

func serverLines(s *Server) []string {
	up := time.Since(s.stats.started)
	info := s.backend.Info()
	port := 0
	if tcp, ok := s.Addr().(*net.TCPAddr); ok {
		port = tcp.Port
	}
	return []string{
		"redis_version:" + redisVersion,
		"flotilla_version:" + s.version,
		"redis_mode:standalone",
		"os:" + runtime.GOOS + " " + runtime.GOARCH,
		fmt.Sprintf("arch_bits:%d", 32<<(^uint(0)>>63)),
		fmt.Sprintf("process_id:%d", os.Getpid()),
		"run_id:" + runID(info.ClusterID, info.NodeID),
		fmt.Sprintf("tcp_port:%d", port),
		fmt.Sprintf("server_time_usec:%d", time.Now().UnixMicro()),
		fmt.Sprintf("uptime_in_seconds:%d", int64(up.Seconds())),
		fmt.Sprintf("uptime_in_days:%d", int64(up.Hours()/24)),
		"flotilla_cluster_id:" + info.ClusterID,
		fmt.Sprintf("flotilla_node_id:%d", info.NodeID),
		"flotilla_node_name:" + info.NodeName,
	}
}

// runID has the form that Redis gives it, 40 hex digits.
func runID(cluster string, node uint64) string {
	digits := strings.ReplaceAll(cluster, "-", "")
	return fmt.Sprintf("%024.24s%016x", digits, node)
}

func clientLines(s *Server) []string {
	return []string{
		fmt.Sprintf("connected_clients:%d", s.Stats().Clients),
		"cluster_connections:0",
		fmt.Sprintf("maxclients:%d", s.maxClients),
		"blocked_clients:0",
		"tracking_clients:0",
	}
}

func memoryLines(*Server) []string {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/total:bytes"}}
	metrics.Read(sample)
	return []string{
		fmt.Sprintf("used_memory:%d", sample[0].Value.Uint64()),
		fmt.Sprintf("used_memory_rss:%d", sample[1].Value.Uint64()),
		"maxmemory:0",
		"maxmemory_policy:noeviction",
		"mem_allocator:go",
	}
}

func persistenceLines(*Server) []string {
	return []string{
		"loading:0",
		"async_loading:0",
		"rdb_bgsave_in_progress:0",
		"rdb_last_bgsave_status:ok",
		"aof_enabled:1",
		"aof_rewrite_in_progress:0",
		"aof_last_write_status:ok",
	}
}

func statsLines(s *Server) []string {
	n := s.Stats()
	return []string{
		fmt.Sprintf("total_connections_received:%d", n.Connections),
		fmt.Sprintf("total_commands_processed:%d", n.Commands),
		fmt.Sprintf("rejected_connections:%d", n.Rejected),
		"evicted_keys:0",
		"pubsub_channels:0",
		"pubsub_patterns:0",
		fmt.Sprintf("flotilla_protocol_errors:%d", n.ProtocolErrors),
	}
}

func replicationLines(*Server) []string {
	return []string{"role:master", "connected_slaves:0", "master_failover_state:no-failover"}
}

func clusterLines(*Server) []string { return []string{"cluster_enabled:0"} }

func keyspaceLines(s *Server) []string {
	keys := s.backend.Info().Keys
	if keys <= 0 {
		return nil
	}
	return []string{fmt.Sprintf("db0:keys=%d,expires=0,avg_ttl=0", keys)}
}
