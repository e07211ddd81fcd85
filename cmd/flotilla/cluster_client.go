package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

// askTimeout bounds a question to the cluster, over all servers given.
const askTimeout = 10 * time.Second

// messageBytesMax lets the map of 65,536 shards through.
const messageBytesMax = 16 << 20

// ask runs question against the servers of --server in turn until one answers;
// an answer that is a refusal ends it.
func ask[T any](ctx context.Context, g *globals, question func(context.Context, flotillav1.ClusterClient) (T, error)) (T, error) {
	var none T
	servers, err := g.servers()
	if err != nil {
		return none, err
	}
	creds, err := g.credentials()
	if err != nil {
		return none, err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var last error
	for i, server := range servers {
		share := askTimeout / time.Duration(len(servers)-i)
		answer, err := askOne(ctx, server, creds, share, question)
		if err == nil {
			return answer, nil
		}
		last = err
		if status.Code(err) != codes.Unavailable && status.Code(err) != codes.DeadlineExceeded {
			return none, errors.New(status.Convert(err).Message())
		}
	}
	return none, describe(servers, g.tls.Given(), last)
}

func askOne[T any](ctx context.Context, server string, creds credentials.TransportCredentials, timeout time.Duration, question func(context.Context, flotillav1.ClusterClient) (T, error)) (T, error) {
	var none T
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := grpc.NewClient("passthrough:///"+server,
		grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(messageBytesMax)))
	if err != nil {
		return none, err
	}
	defer conn.Close()
	return question(ctx, flotillav1.NewClusterClient(conn))
}

// describe turns the last server's failure into one line that says what to do.
func describe(servers []string, withTLS bool, err error) error {
	where := strings.Join(servers, ", ")
	message := status.Convert(err).Message()
	if advice := tlsAdvice(message, withTLS); advice != "" {
		return fmt.Errorf("%s: %s", where, advice)
	}
	if strings.Contains(message, "connection refused") {
		return fmt.Errorf("no node answers at %s: start one (flotilla dev) or name one with --server", where)
	}
	if status.Code(err) == codes.DeadlineExceeded {
		return fmt.Errorf("no answer from %s within %s: is the node up and has the config group a majority?", where, askTimeout)
	}
	return fmt.Errorf("%s: %s", where, message)
}
