package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Bounds of the HTTP door.
const (
	httpHeaderTimeout = 5 * time.Second
	httpHeaderBytes   = 16 << 10
	httpStopTimeout   = 2 * time.Second
)

// httpDoor serves /metrics, /healthz, /readyz, / and, on a flag, /debug/pprof.
type httpDoor struct {
	server *http.Server
	done   chan struct{} // closed when the server's goroutine has ended
}

// readiness is what the HTTP door asks the node.
type readiness interface {
	// WaitingFor lists what the node still waits for; empty: it serves.
	WaitingFor() []string
	// Console writes the page for people.
	Console(w http.ResponseWriter, r *http.Request)
}

func serveHTTP(listener net.Listener, registry *prometheus.Registry, ready readiness, withPprof bool, logger *slog.Logger) *httpDoor {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { answerReady(w, ready) })
	mux.HandleFunc("GET /{$}", ready.Console)
	if withPprof {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	door := &httpDoor{
		server: &http.Server{
			Handler:           mux,
			ReadHeaderTimeout: httpHeaderTimeout,
			MaxHeaderBytes:    httpHeaderBytes,
			ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
		},
		done: make(chan struct{}),
	}
	go func() {
		defer close(door.done)
		if err := door.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			logger.Error("the HTTP door has closed", "error", err)
		}
	}()
	return door
}

func answerReady(w http.ResponseWriter, ready readiness) {
	waiting := ready.WaitingFor()
	if len(waiting) == 0 {
		fmt.Fprintln(w, "ready")
		return
	}
	w.WriteHeader(http.StatusServiceUnavailable)
	fmt.Fprintf(w, "waiting for %s\n", strings.Join(waiting, "\nwaiting for "))
}

// stop ends the door: what is under way gets a moment, then it is cut off.
func (d *httpDoor) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), httpStopTimeout)
	defer cancel()
	if err := d.server.Shutdown(ctx); err != nil {
		d.server.Close()
	}
	<-d.done
}
