package sim

import (
	"slices"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/logstore"
	"github.com/flotilla-kv/flotilla/raft/multiraft"
	"github.com/flotilla-kv/flotilla/shardctrler"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// What the loops of package node and of the Controller do with goroutines and
// gRPC is done here with turns and messages of the world: to register, to pass
// the map on, to start and remove replicas, and to turn the reconciler.

const (
	controlEvery = 100 * time.Millisecond
	reportEvery  = time.Second
	askTimeout   = time.Second
	clusterID    = "simulated"
)

// control is a node's part of the config group.
type control struct {
	machine *shardctrler.Machine // of the replica of the config group here; nil: none
	current *shardmap.Map        // nil: none known yet
	asked   time.Duration        // until when an answer about registration is waited for
	reign   *reign               // while this node leads the config group
	hints   map[raft.GroupID]raft.NodeID
}

// reign is one term of leadership of the config group.
type reign struct {
	term     raft.Term
	machine  *shardctrler.Machine
	drive    *shardctrler.Drive
	barred   bool // the barrier has not come back
	deciding int  // commands that are being decided
	asked    time.Duration
	reports  []*flotillav1.NodeReport // the last of each node
	results  []shardctrler.SendResult
}

// found makes the cluster: the first node founds it, the others come a little
// later.
func (w *world) found() {
	for range w.profile.nodes {
		n := w.newNode()
		if n.place == 1 {
			n.foundCluster()
			continue
		}
		w.after(w.upTo(300*time.Millisecond), n.start)
	}
	for i := range w.profile.clients {
		w.newClient(i)
	}
	w.every(func() time.Duration { return 100 * time.Millisecond }, w.phaseTurn)
}

// foundCluster is what init does at the first node.
func (n *node) foundCluster() {
	store, err := n.log.Open()
	if err != nil {
		n.w.fail("Assertion", "the first log does not open: %v", err)
		return
	}
	key := raft.ReplicaKey{Group: raft.ConfigGroup, Replica: 1}
	first := raft.Membership{Epoch: 1, Voters: []raft.Member{{Replica: 1, Node: 1}}}
	if err = store.Create(key, first); err == nil {
		err = store.SetIdentity(logstore.Identity{ClusterID: clusterID, Node: 1})
	}
	if err != nil {
		n.w.fail("Assertion", "the first node cannot be made: %v", err)
	}
	store.Close()
	n.start()
	n.initialise()
}

// initialise proposes Init until there is a cluster.
func (n *node) initialise() {
	p := &n.w.profile
	command := shardctrler.Init{ClusterID: clusterID, Shards: uint64(p.shards), Replicas: uint64(p.replicas), Groups: uint64(p.groups),
		ReplaceAfter: uint64(p.replace.Milliseconds()), First: n.registration()}
	n.host.ProposeUrgent(raft.ConfigGroup, shardctrler.EncodeCommand(command), func(multiraft.Result) {})
	n.forLife(100*time.Millisecond, func() {
		if n.control.machine == nil || !n.control.machine.State().Initialised() {
			n.initialise()
		}
	})
}

func (n *node) registration() shardctrler.Registration {
	return shardctrler.Registration{RandomID: n.random, Name: n.name, Addr: n.addr}
}

// send has do happen at another node, if the message gets there and the node
// runs by then. What it carries must not be changed.
func (n *node) send(o *node, do func()) {
	if n == o {
		n.forLife(0, func() { do(); n.settle() })
		return
	}
	for _, d := range n.w.network.fates(party(n.place), party(o.place)) {
		n.w.after(d, func() {
			if o.up() {
				o.forLife(0, func() { do(); o.settle() })
			}
		})
	}
}

// controlTurn is one look at everything.
func (n *node) controlTurn() {
	if n.host == nil {
		n.register()
		return
	}
	n.learnMap()
	n.follow()
	n.govern()
	n.settle()
}

// register asks some node for an identity.
func (n *node) register() {
	w := n.w
	if w.now < n.control.asked {
		return
	}
	o := w.anyUp()
	if o == n || o.id == 0 {
		return
	}
	n.control.asked = w.now + askTimeout/3
	life := n.process
	n.send(o, func() {
		o.registerHere(n.registration(), func(id raft.NodeID) {
			o.send(n, func() {
				if n.process == life && n.host == nil {
					n.adopt(id)
				}
			})
		})
	})
}

// registerHere passes a registration to the config group, if it is led here.
func (n *node) registerHere(r shardctrler.Registration, answer func(raft.NodeID)) {
	if n.host == nil || !n.governs() {
		return
	}
	n.host.ProposeUrgent(raft.ConfigGroup, shardctrler.EncodeCommand(shardctrler.Register{Registration: r}), func(res multiraft.Result) {
		if registered, ok := res.Value.(shardctrler.Registered); ok && res.Err == nil {
			answer(registered.Node)
		}
	})
}

// adopt records the identity that was given.
func (n *node) adopt(id raft.NodeID) {
	if err := n.store.SetIdentity(logstore.Identity{ClusterID: clusterID, Node: id}); err != nil {
		n.w.fail("Assertion", "node %d cannot record its identity: %v", n.place, err)
		return
	}
	n.id = id
	n.w.note("registered", n.place, uint64(id), 0, nil)
	n.openHost()
}

// learnMap takes the map from the replica of the config group here, if that is
// up to date, or asks somebody for it.
func (n *node) learnMap() {
	if m := n.control.machine; m != nil && m.State().Initialised() {
		if s, ok := n.host.Status(raft.ConfigGroup); ok && s.Leader.Node != 0 && s.Applied >= s.Commit && !s.Suspect {
			n.offer(m.Map())
			return
		}
	}
	o := n.w.anyUp()
	if o == n {
		return
	}
	life := n.process
	n.send(o, func() {
		m := o.control.current
		o.send(n, func() {
			if n.process == life {
				n.offer(m)
			}
		})
	})
}

func (n *node) offer(m *shardmap.Map) {
	if m != nil {
		n.control.current = shardmap.Merge(n.control.current, m)
	}
}

// follow runs the replicas that the map assigns to this node and removes those
// that were removed.
func (n *node) follow() {
	m := n.control.current
	removed := n.removed
	n.removed = nil
	for _, key := range removed {
		n.remove(key)
	}
	if m == nil {
		return
	}
	assigned := make(map[raft.ReplicaKey]bool)
	for _, a := range m.Assigned(n.id) {
		assigned[a.Key] = true
		if s, running := n.host.Status(a.Key.Group); running && s.Key == a.Key {
			continue
		}
		g, _ := m.Group(a.Key.Group)
		n.startReplica(a.Key, a.First, g.Preferred)
	}
	for _, s := range n.host.Statuses() {
		if !assigned[s.Key] {
			n.askRemoved(s.Key)
		}
	}
}

// askRemoved asks the config group, linearizably, whether a replica that the
// map does not name was removed.
func (n *node) askRemoved(key raft.ReplicaKey) {
	o := n.w.anyUp()
	life := n.process
	n.send(o, func() {
		if o.host == nil || o.control.machine == nil {
			return
		}
		machine := o.control.machine
		o.host.ReadIndex(raft.ConfigGroup, multiraft.ReadOptions{Follower: true}, func(_ raft.Index, err error) {
			if removed, _ := machine.State().Removed(key); err == nil && removed {
				o.send(n, func() {
					if n.process == life {
						n.remove(key)
					}
				})
			}
		})
	})
}

func (n *node) remove(key raft.ReplicaKey) {
	if err := n.host.Remove(key); err == nil {
		n.kv.RemoveGroup(key)
		n.w.note("removed", n.place, uint64(key.Group), uint64(key.Replica), nil)
	}
}

// leaderChanged hears from the host who leads a group.
func (n *node) leaderChanged(c multiraft.LeaderChange) {
	w := n.w
	if !n.up() {
		return
	}
	w.raft.leaderChanged(n, c)
	if c.Role == raft.Leader && w.phase == phaseFaulty && w.chance(w.profile.mortal) {
		life := n.process
		w.after(w.upTo(w.profile.sync+2*w.profile.delay), func() {
			if n.process == life {
				n.crash()
				n.planRestart()
			}
		})
	}
	if n.control.hints == nil {
		n.control.hints = make(map[raft.GroupID]raft.NodeID)
	}
	n.control.hints[c.Group] = c.Leader.Node
	w.note("leader", n.place, uint64(c.Group), uint64(c.Term), func() string { return "node " + who(int(c.Leader.Node)) + " " + c.Role.String() })
}

// governs tells whether this node leads the config group.
func (n *node) governs() bool {
	if !n.up() || n.host == nil {
		return false
	}
	leader, _, known := n.host.Leader(raft.ConfigGroup)
	return known && leader.Node == n.id && n.control.machine != nil
}

// govern turns the reconciler, as the Controller's loop does.
func (n *node) govern() {
	if !n.governs() {
		n.control.reign = nil
		return
	}
	_, term, _ := n.host.Leader(raft.ConfigGroup)
	r := n.control.reign
	if r == nil || r.term != term || r.machine != n.control.machine {
		r = &reign{term: term, machine: n.control.machine, drive: shardctrler.NewDrive(), barred: true}
		n.control.reign = r
		n.host.ReadIndex(raft.ConfigGroup, multiraft.ReadOptions{Follower: true}, func(_ raft.Index, err error) {
			r.barred = false
			if err != nil && n.up() {
				n.control.reign = nil
			}
		})
		return
	}
	state := r.machine.State()
	status, ok := shardctrler.OverMultiraft(n.host).Status(raft.ConfigGroup)
	if r.barred || r.deciding > 0 || !ok || !state.Initialised() {
		return
	}
	n.askReports(r)
	out := r.drive.Turn(shardctrler.DriveInput{
		Now: n.clock(), State: state, Self: n.id, Config: status, Alive: n.Alive,
		Reports: r.reports, Results: r.results, Hints: n.takeHints(state),
	})
	r.results = nil
	for _, s := range out.Sends {
		n.carry(r, s)
	}
	for _, c := range out.Commands {
		r.deciding++
		n.host.ProposeUrgent(raft.ConfigGroup, shardctrler.EncodeCommand(c), func(multiraft.Result) { r.deciding-- })
	}
}

func (n *node) takeHints(s *shardctrler.State) (hints []shardctrler.LeaderHint) {
	groups := make([]raft.GroupID, 0, len(n.control.hints))
	for g := range n.control.hints {
		groups = append(groups, g)
	}
	slices.Sort(groups)
	for _, g := range groups {
		if node := n.control.hints[g]; node != 0 {
			hints = append(hints, shardctrler.LeaderHint{Group: g, Node: node})
		}
	}
	clear(n.control.hints)
	return hints
}

// carry has one attempt made at the node where it belongs.
func (n *node) carry(r *reign, s shardctrler.Send) {
	w := n.w
	answered := false
	end := func(answer *flotillav1.ExecuteResponse, err error) {
		if !answered {
			answered = true
			r.results = append(r.results, s.Result(answer, err))
		}
	}
	w.note("carry", n.place, s.Request.OperationId, uint64(s.To), nil)
	w.after(2*askTimeout, func() { end(nil, errCutOff) })
	o := w.find(s.To)
	if o == nil {
		return
	}
	n.send(o, func() {
		if o.host == nil {
			return
		}
		shardctrler.CarryOut(shardctrler.OverMultiraft(o.host), o.kv, s.Request, func(answer *flotillav1.ExecuteResponse, err error) {
			if o.up() {
				o.send(n, func() { end(answer, err) })
			}
		})
	})
}

// askReports asks every node, now and then, what it leads.
func (n *node) askReports(r *reign) {
	w := n.w
	if w.now-r.asked < reportEvery && r.asked != 0 {
		return
	}
	r.asked = w.now
	for _, o := range w.nodes {
		if o.id == 0 || o.wiped {
			continue
		}
		n.send(o, func() {
			if o.host == nil {
				return
			}
			report := shardctrler.Report(o.id, shardctrler.OverMultiraft(o.host), o.kv, new(flotillav1.GetNodeReportRequest))
			report.Ready = true
			o.send(n, func() { r.reports = newestReports(r.reports, report) })
		})
	}
}

func newestReports(all []*flotillav1.NodeReport, come *flotillav1.NodeReport) []*flotillav1.NodeReport {
	all = slices.DeleteFunc(slices.Clone(all), func(r *flotillav1.NodeReport) bool { return r.NodeId == come.NodeId })
	return append(all, come)
}
