package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/flotilla-kv/flotilla/client"
)

// flotillaSystem is three nodes and one client of theirs.
type flotillaSystem struct {
	nodes  []*exec.Cmd
	client *client.Client
}

func startFlotilla(ctx context.Context, o options, dir string) (system, error) {
	s := new(flotillaSystem)
	ports, err := freePorts(12)
	if err != nil {
		return nil, err
	}
	at := func(i int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[i])) }
	var servers []string
	for i := range 3 {
		var join []string
		for j := range 3 {
			if j != i {
				join = append(join, at(4*j+1))
			}
		}
		cmd := exec.Command(o.binary, "start", "--name", fmt.Sprintf("n%d", i), "--data-dir", filepath.Join(dir, strconv.Itoa(i)),
			"--listen", at(4*i), "--gossip-listen", at(4*i+1), "--resp-listen", at(4*i+2), "--http-listen", at(4*i+3),
			"--join", strings.Join(join, ","), "--log-level", "error")
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			s.stop()
			return nil, err
		}
		s.nodes = append(s.nodes, cmd)
		servers = append(servers, at(4*i))
	}
	if err := s.bringUp(ctx, o, servers); err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// bringUp makes the cluster and waits until it takes writes.
func (s *flotillaSystem) bringUp(ctx context.Context, o options, servers []string) error {
	deadline := time.Now().Add(30 * time.Second)
	for {
		out, err := exec.CommandContext(ctx, o.binary, "init", "--server", servers[0]).CombinedOutput()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("init: %w: %s", err, out)
		}
		time.Sleep(200 * time.Millisecond)
	}
	var err error
	if s.client, err = client.New(client.Options{Servers: servers}); err != nil {
		return err
	}
	for time.Now().Before(deadline) {
		if err = s.put(ctx, "warm-up", []byte("x")); err == nil {
			return nil
		}
	}
	return err
}

func (s *flotillaSystem) put(ctx context.Context, key string, value []byte) error {
	_, err := s.client.Put(ctx, key, value)
	return err
}

func (s *flotillaSystem) get(ctx context.Context, key string) error {
	if _, err := s.client.Get(ctx, key); !errors.Is(err, client.ErrNotFound) {
		return err
	}
	return nil
}

func (s *flotillaSystem) stop() {
	if s.client != nil {
		s.client.Close()
	}
	endAll(s.nodes)
}
