package shardctrler

import (
	"errors"
	"fmt"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// What commands and calls are refused with. None of them has had an effect.
var (
	ErrInitialised    = errors.New("the cluster has been initialised already")
	ErrNotInitialised = errors.New("there is no cluster yet: run flotilla init at one node")
	ErrHeardOfCluster = errors.New("this node has heard of a cluster and will join that; init is for a node that stands alone")
	ErrOtherCluster   = errors.New("the node belongs to another cluster")
	ErrNodeRemoved    = errors.New("this node was removed from the cluster; it can come back only as a new one, with an empty data dir")
	ErrUnknownNode    = errors.New("no node of this cluster has this data dir's identity")
	ErrTooManyNodes   = fmt.Errorf("the cluster has %d nodes, which is the limit", nodesMax)
	ErrNoConfig       = errors.New("there is no such config")
	ErrNoReplica      = errors.New("this node has no replica of the config group")
	ErrStopped        = errors.New("the controller has stopped")
)

// NameTakenError refuses a Register: the name is that of another node.
type NameTakenError struct {
	Name string
	Node raft.NodeID
}

// Error names the way on.
func (e *NameTakenError) Error() string {
	return fmt.Sprintf("the name %q is that of node %d, whose data dir is another one; if that node is gone, "+
		"run `flotilla node remove %s`, and this one joins as a new node", e.Name, e.Node, e.Name)
}

// InvalidError refuses a command or call that is wrong in itself.
type InvalidError struct{ Why string }

func (e *InvalidError) Error() string { return e.Why }

func invalid(format string, args ...any) error {
	return &InvalidError{Why: fmt.Sprintf(format, args...)}
}

// StaleError refuses an operation that was planned for something that has
// passed since.
type StaleError struct{ Why string }

func (e *StaleError) Error() string { return e.Why }

func stale(format string, args ...any) error {
	return &StaleError{Why: fmt.Sprintf(format, args...)}
}

// ForgottenConfigError answers a query for a config older than those kept.
type ForgottenConfigError struct{ Num, Oldest shardmap.ConfigNum }

func (e *ForgottenConfigError) Error() string {
	return fmt.Sprintf("config %d is no longer kept; the oldest is %d", e.Num, e.Oldest)
}
