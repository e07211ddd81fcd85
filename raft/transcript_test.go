package raft_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/rafttest"
)

// TestTranscripts plays the scripts in testdata and compares what every replica
// says, line by line. With -rewrite it writes down what happens now; the diff
// is then to be read as carefully as code. The commands:
//
//	new n=3               voters 1..n, timeouts of exactly 6 ticks
//	add id=4              an empty replica, with no membership
//	campaign id=1         as if its timeout had run out
//	leader-lost id=1      its leader's node is known to be dead
//	tick id=1 [n=1]       then all that follows is delivered
//	propose id=1 data=x   only proposes
//	members id=1 voters=(1,2) [learners=(3)]
//	transfer id=1 to=2
//	read id=1             asks for a ReadIndex
//	settle                syncs, applies and delivers until nothing moves
//	isolate id=1 | join   cuts a replica off | heals all
//	crash id=1 [keep=0]   keep of the unsynced writes survive
//	cut id=1 n=1          crashes it and cuts its durable log
//	start id=1
//	compact id=1 to=5     flushes its state and compacts its log
//	snapshot from=1 to=2  streams and installs what it has applied
//	sleep id=1
//	status
func TestTranscripts(t *testing.T) {
	datadriven.Walk(t, "testdata/transcripts", func(t *testing.T, path string) {
		var play transcript
		datadriven.RunTest(t, path, play.run)
	})
}

// transcript plays one script.
type transcript struct{ g *group }

func (p *transcript) run(t *testing.T, d *datadriven.TestData) string {
	var out strings.Builder
	if d.Cmd == "new" {
		var n int
		d.ScanArgs(t, "n", &n)
		p.g = idle(t, n)
	}
	p.g.t = t
	p.g.log = func(line string) { fmt.Fprintln(&out, line) }
	p.command(t, d)
	for _, r := range p.g.replicas {
		for _, rs := range r.Reads {
			fmt.Fprintf(&out, "  %d read %d: index %d ok %v\n", r.Member.Replica, rs.ID, rs.Index, rs.OK)
		}
		for _, m := range r.Snapshots {
			fmt.Fprintf(&out, "  %d wants a snapshot for %d\n", r.Member.Replica, m.Replica)
		}
		r.Reads, r.Snapshots = nil, nil
	}
	if out.Len() == 0 {
		return "ok\n"
	}
	return out.String()
}

func (p *transcript) command(t *testing.T, d *datadriven.TestData) {
	g := p.g
	id, n := raft.ReplicaID(p.number(d, "id", 0)), p.number(d, "n", 1)
	switch d.Cmd {
	case "new":
	case "add":
		g.add(members(id)[0], raft.Membership{})
	case "campaign":
		g.core(id).Campaign()
		g.turn()
	case "leader-lost":
		g.core(id).LeaderLost()
	case "tick":
		g.tick(id, n)
	case "propose":
		var data string
		d.ScanArgs(t, "data", &data)
		p.say(g.core(id).Propose([]byte(data)))
	case "members":
		p.say(g.core(id).ProposeMembership(p.list(t, d, "voters"), p.list(t, d, "learners")))
	case "transfer":
		if err := g.core(id).TransferLeadership(raft.ReplicaID(p.number(d, "to", 0))); err != nil {
			g.note("  %v", err)
		}
	case "read":
		if err := g.core(id).ReadIndex(uint64(n)); err != nil {
			g.note("  %v", err)
		}
	case "settle":
		g.settle()
	case "isolate":
		g.isolate(id)
	case "join":
		g.join()
	case "crash":
		g.r(id).Crash(p.number(d, "keep", 0))
	case "cut":
		g.r(id).Crash(0)
		g.r(id).Disk.Cut(n)
		g.r(id).Suspect = true
		g.checker.Cuts++
	case "start":
		g.start(id)
	case "compact":
		g.r(id).Flush()
		g.r(id).Disk.Compact(raft.Index(p.number(d, "to", 0)))
	case "snapshot":
		p.snapshot(raft.ReplicaID(p.number(d, "from", 0)), raft.ReplicaID(p.number(d, "to", 0)))
	case "sleep":
		g.core(id).Sleep(everyNode)
	case "status":
		for _, r := range g.replicas {
			if r.Up() {
				g.note("  %s", rafttest.DescribeStatus(r.Core.Status()))
			} else {
				g.note("  %d down", r.Member.Replica)
			}
		}
	default:
		d.Fatalf(t, "unknown command %s", d.Cmd)
	}
}

func (p *transcript) say(i raft.Index, term raft.Term, err error) {
	if err != nil {
		p.g.note("  %v", err)
		return
	}
	p.g.note("  %d/%d", i, term)
}

func (p *transcript) snapshot(from, to raft.ReplicaID) {
	image, m := p.g.r(from).Stream(to)
	p.g.note("  %s", rafttest.Describe(&m))
	p.g.must(p.g.r(to).Install(m, image, false))
	p.g.core(from).SnapshotDone(to, image.Applied, true)
}

// number reads an argument, or gives what it is without one.
func (p *transcript) number(d *datadriven.TestData, key string, without int) int {
	for _, a := range d.CmdArgs {
		if a.Key == key {
			var v int
			a.Scan(p.g.t, 0, &v)
			return v
		}
	}
	return without
}

func (p *transcript) list(t *testing.T, d *datadriven.TestData, key string) []raft.Member {
	var list []raft.Member
	for _, a := range d.CmdArgs {
		for i := range a.Vals {
			if a.Key == key {
				var v int
				a.Scan(t, i, &v)
				list = append(list, members(raft.ReplicaID(v))...)
			}
		}
	}
	return list
}
