package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
)

// runEtcdMember is one etcd server until ctx ends.
func runEtcdMember(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("etcd-member", flag.ContinueOnError)
	name := flags.String("name", "", "")
	dir := flags.String("dir", "", "")
	client := flags.String("client", "", "")
	peer := flags.String("peer", "", "")
	cluster := flags.String("cluster", "", "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	config := embed.NewConfig()
	config.Name = *name
	config.Dir = *dir
	config.LogLevel = "panic" // its shutdown is an error to it
	config.ListenClientUrls = []url.URL{{Scheme: "http", Host: *client}}
	config.AdvertiseClientUrls = config.ListenClientUrls
	config.ListenPeerUrls = []url.URL{{Scheme: "http", Host: *peer}}
	config.AdvertisePeerUrls = config.ListenPeerUrls
	config.InitialCluster = *cluster
	etcd, err := embed.StartEtcd(config)
	if err != nil {
		return err
	}
	defer etcd.Close()
	select {
	case <-ctx.Done():
		return nil
	case err := <-etcd.Err():
		return err
	}
}

// etcdSystem is three members and a client at their leader.
type etcdSystem struct {
	members []*exec.Cmd
	client  *clientv3.Client
}

func startEtcd(ctx context.Context, _ options, dir string) (system, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s := new(etcdSystem)
	var cluster, endpoints []string
	ports, err := freePorts(6)
	if err != nil {
		return nil, err
	}
	at := func(i int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[i])) }
	for i := range 3 {
		cluster = append(cluster, fmt.Sprintf("m%d=http://%s", i, at(3+i)))
		endpoints = append(endpoints, at(i))
	}
	for i := range 3 {
		cmd := exec.Command(self, "etcd-member", "-name", fmt.Sprintf("m%d", i), "-dir", filepath.Join(dir, strconv.Itoa(i)),
			"-client", at(i), "-peer", at(3+i), "-cluster", strings.Join(cluster, ","))
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			s.stop()
			return nil, err
		}
		s.members = append(s.members, cmd)
	}
	if s.client, err = clientAtLeader(ctx, endpoints); err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// clientAtLeader waits for a leader and talks to it alone: what is fastest for
// etcd.
func clientAtLeader(ctx context.Context, endpoints []string) (*clientv3.Client, error) {
	deadline := time.Now().Add(30 * time.Second)
	for time.Now().Before(deadline) {
		for _, endpoint := range endpoints {
			if client := atLeader(ctx, endpoint); client != nil {
				return client, nil
			}
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
	return nil, fmt.Errorf("no leader within 30 s")
}

func atLeader(ctx context.Context, endpoint string) *clientv3.Client {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: time.Second})
	if err != nil {
		return nil
	}
	statusCtx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	status, err := client.Status(statusCtx, endpoint)
	if err != nil || status.Leader == 0 || status.Leader != status.Header.MemberId {
		client.Close()
		return nil
	}
	return client
}

func (s *etcdSystem) put(ctx context.Context, key string, value []byte) error {
	_, err := s.client.Put(ctx, key, string(value))
	return err
}

func (s *etcdSystem) get(ctx context.Context, key string) error {
	_, err := s.client.Get(ctx, key)
	return err
}

func (s *etcdSystem) stop() {
	if s.client != nil {
		s.client.Close()
	}
	endAll(s.members)
}

// endAll stops the processes this program started.
func endAll(processes []*exec.Cmd) {
	for _, p := range processes {
		p.Process.Signal(os.Interrupt)
	}
	for _, p := range processes {
		done := make(chan struct{})
		go func() { p.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(15 * time.Second):
			p.Process.Kill()
			<-done
		}
	}
}

// freePorts asks the system for n ports and lets them go.
func freePorts(n int) ([]int, error) {
	var ports []int
	var listeners []net.Listener
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
	}()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		listeners = append(listeners, l)
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
