package node

import (
	"errors"
	"fmt"
	"net"
)

// listeners are the node's open ports.
type listeners struct {
	grpc, resp, http net.Listener
}

// listen opens the three TCP ports, or none. Gossip opens its own, TCP and UDP.
func listen(o Options) (*listeners, error) {
	l := new(listeners)
	for _, port := range []struct {
		what, addr string
		to         *net.Listener
	}{{"gRPC", o.Listen, &l.grpc}, {"RESP", o.RespListen, &l.resp}, {"HTTP", o.HTTPListen, &l.http}} {
		listener, err := net.Listen("tcp", port.addr)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s port %s: %w", port.what, port.addr, err), l.close())
		}
		*port.to = listener
	}
	return l, nil
}

// close closes what is still open; a server that was handed its listener has
// closed it already.
func (l *listeners) close() error {
	var errs []error
	for _, listener := range []net.Listener{l.grpc, l.resp, l.http} {
		if listener == nil {
			continue
		}
		if err := listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Addresses are where a node can be reached.
type Addresses struct {
	Name                     string
	GRPC, Gossip, RESP, HTTP string
}

// advertised is the address that others use for a listener: its port at the
// advertised host.
func advertised(host string, listener net.Addr) string {
	own, port, err := net.SplitHostPort(listener.String())
	if err != nil {
		return listener.String()
	}
	if host == "" {
		host = own
	}
	return net.JoinHostPort(host, port)
}
