// Package shardctrler is the controller: the config group (group 1), which
// decides who is in the cluster, which groups there are, on which nodes, and
// which group is to serve which shard; and each node's part in it.
//
// # The idea
//
// The config group's state machine is pure: [State] and a [Command] give the
// next State and an answer. What should be done is decided by a pure planner:
// [Plan] of the state and of what is observed gives operations with reasons.
// The node that leads the config group runs the reconciler, which commits
// those operations, sends them to the leaders of the groups they concern, and
// reports how they ended.
//
//	state ──Plan──▶ operations ──Commit──▶ log (ids) ──Execute──▶ group leaders
//	  ▲                                                              │
//	  └────────────── Finish, Observe ◀── answers, node reports ─────┘
//
// A wish and an observation are never mixed up. A config is what is wished;
// the shard table says who serves a shard. A group's members are the replicas
// that nodes are to run; who votes is decided by the group's own log, and
// heard of by Observe.
//
// # The contract
//
//   - An operation is in the config group's log, with an id that grows, before
//     anything is sent. It names the membership epoch or the generation it was
//     planned for. What no longer fits is refused when it is committed, and
//     again by the group. So any part may be repeated, and a leader of the
//     config group may be lost between any two of them.
//   - A group has at most one operation pending.
//   - A shard has at most one move that has not ended. Moves are numbered like
//     operations; who serves the shard is recorded when the target's leader says
//     so, and a few moves of each group are under way at once, the oldest first.
//   - Every decision is an event with its reason.
//   - A map has the revision of the last entry that changed it. A higher
//     revision wins over a lower, and for one shard the higher generation wins
//     whatever the revisions say.
//   - A NodeID belongs to the random id that it was given to, for ever.
//   - The config group grows by itself from 1 to 3 and from 3 to 5 voters,
//     learners first and then in one joint step; it never shrinks by itself.
//
// It refuses: a second Init, and an Init at a node that has joined or heard of
// a cluster; a known name with another data dir ([NameTakenError]); a data dir
// of another cluster; a new replica that would vote before it has the log.
//
// # Wiring a node
//
//	ctrl := shardctrler.New(shardctrler.Options{
//		Registration: ...,        // RandomID must be durable in the log store by now
//		Home: node, Shards: kv, Peers: gossip, Dial: conns.Get,
//		Alive: transport.Alive, Ready: node.Ready,
//		LastMap: identity.LastNodes, SaveMap: node.saveLastNodes,
//	})
//	flotillav1.RegisterClusterServer(grpcServer, ctrl)
//	if there is an identity in the log store {
//		host := multiraft.Open(...); start the recorded replicas
//		ctrl.Attach(identity, shardctrler.OverMultiraft(host))
//	}
//	ctrl.Start()
//	...
//	ctrl.BeginStop() // before host.Drain hands over the leaderships
//	ctrl.Close()     // before the host is closed
//
// The node implements [Home]: Found and Adopt write the identity, open the
// host, and return OverMultiraft(host); Found also starts replica 1 of group 1
// with First = {epoch 1, voter 1@1}. Every replica of raft.ConfigGroup gets
// NewStateMachine: ctrl.NewStateMachine. The node calls ctrl.PeersChanged from
// gossip's OnChange, and ctrl.LeaderChanged from multiraft's OnLeader and for
// gossip's hints: nothing depends on them, all is faster with them.
//
// The node then follows ctrl.Maps(): on each change it starts those of
// map.Assigned(self) that do not run, gives addresses to the transport, and
// asks ctrl.ReplicaState about a replica it runs that the map does not assign
// to it any more; if that says removed, it may delete it.
//
// # Commands and records
//
// u is a uvarint, i a signed varint, t a u length and so many bytes, n* a u
// count and so many n, b a byte. Everything begins with a version byte: commands
// with 2, records with 3.
//
// Commands, tag in the second byte:
//
//	1 Init      cluster t, shards u, replicas u, groups u, replace after u, registration
//	2 Register  cluster t, node u, registration
//	3 Commit    operation*, applied u, scene t
//	4 Finish    operation u, done b, detail t
//	5 Observe   group u, epoch u, member*
//	6 Prefer    group u, node u
//	7 OrderMove shard u, group u
//	8 CancelMove  move u
//	9 ReportMove  move u, state b, pause i, bytes i
//	10 AddGroups    (node u*, preferred u)*, config u
//	11 RemoveGroup  group u
//	12 DrainNode    node u, back b
//	13 RemoveNode   node u
//	14 RecoverGroup group u, node u, replica u
//
//	registration  random id t, name t, zone t, addr t, gossip t, resp t, http t, version t
//	member        replica u, node u, flags b (1 learner, 2 first, 4 gone)
//	operation     id u, at i (unix ms), decision u, reason t, tag b, and by tag
//	  1 CreateGroups      (node u*, preferred u)*, owner's place u*
//	  2 SetNodeState      node u, state b
//	  3 Birth             group u, generation u
//	  4 TransferLeader    group u, epoch u, node u
//	  5 ChangeMembership  group u, epoch u, member*, added u
//	  6 StartMove         shard u, from u, to u, generation u
//	  7 DestroyGroup      group u
//	  8 SetPreferred      group u, node u
//	  9 Reassign          config u, (shard u, group u)*, group u, weight u
//	  10 NoteEffect       config u, has u, others u
//	  11 Recover          group u, node u, replica u, epoch u, floor u
//
// Records: the key is the kind (1 byte) and an id (8 bytes, big-endian). The
// applied index beside them is the host's.
//
//	'm' 0          cluster t, replicas u, groups u, replace after u, time i, revision u, last node u, group u, operation u, event u
//	'n' node       id u, registration, state b, drain b, since i
//	'g' group      id u, member*, epoch u, preferred u, last replica u, initial b, born b, leaving b
//	's' page       (group u, generation u)*, 256 shards a page
//	'c' config     num u, created i, reason t, (group u, node u*)*, owner u*, pinned shard u*
//	'o' operation  as above
//	'v' move       id u, shard u, from u, to u, generation u, state b, reason t, started i, ended i, begun b, cancel b, pause i, bytes i
//	'e' event      id u, time i, kind t, subject t, reason t
package shardctrler
