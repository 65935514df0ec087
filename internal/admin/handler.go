package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/pprof"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"
)

// handler answers the requests.
type handler struct {
	source  Source
	log     *zap.Logger
	started time.Time
	mux     *http.ServeMux
	origin  *http.CrossOriginProtection
}

// index is what / answers: the end points in the order of the table below.
const index = `edgeproxy admin API

GET  /healthz         200 while the process lives
GET  /readyz          200 while new sessions are taken, else 503 and why not
GET  /metrics         for Prometheus
GET  /v1/status       version, state, event loops
GET  /v1/listeners    addresses really bound, counters
GET  /v1/upstreams    servers, their state, last error and load
POST /v1/reload       load the configuration anew, answer when that is done
GET  /debug/pprof/    profiles of the process
`

func newHandler(s Source, l *zap.Logger, started time.Time) *handler {
	h := &handler{source: s, log: l, started: started, mux: http.NewServeMux(), origin: http.NewCrossOriginProtection()}
	errorLog, _ := zap.NewStdLogAt(l, zap.WarnLevel)
	metrics := promhttp.HandlerFor(newGatherer(s), promhttp.HandlerOpts{
		ErrorLog:            errorLog,
		ErrorHandling:       promhttp.ContinueOnError, // a broken runtime metric must not hide ours
		MaxRequestsInFlight: 3,
	})
	h.mux.HandleFunc("GET /{$}", text(index))
	h.mux.HandleFunc("GET /healthz", text("ok\n"))
	h.mux.HandleFunc("GET /readyz", h.ready)
	h.mux.Handle("GET /metrics", metrics)
	h.mux.HandleFunc("GET /v1/status", h.status)
	h.mux.HandleFunc("GET /v1/listeners", h.listeners)
	h.mux.HandleFunc("GET /v1/upstreams", h.upstreams)
	h.mux.HandleFunc("POST /v1/reload", h.reload)
	h.mux.HandleFunc("GET /debug/pprof/", profile(pprof.Index))
	h.mux.HandleFunc("GET /debug/pprof/cmdline", profile(pprof.Cmdline))
	h.mux.HandleFunc("GET /debug/pprof/profile", profile(pprof.Profile))
	h.mux.HandleFunc("GET /debug/pprof/symbol", profile(pprof.Symbol))
	h.mux.HandleFunc("GET /debug/pprof/trace", profile(pprof.Trace))
	return h
}

// ServeHTTP does for all end points what is the same for all: bounds, errors
// as JSON, and a panic that ends no more than its request.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	out := &response{ResponseWriter: w}
	defer func() {
		switch v := recover(); v {
		case nil:
		case http.ErrAbortHandler:
			panic(v)
		default:
			h.log.Error("a request has failed; please report this bug", zap.String("method", r.Method), zap.String("path", r.URL.Path),
				zap.Any("panic", v), zap.ByteString("stack", debug.Stack()))
			if out.started {
				panic(http.ErrAbortHandler) // the client must see that the rest is missing
			}
			fail(out, http.StatusInternalServerError, "internal error; the log has more")
		}
	}()
	extend(out, writeTimeout)
	r.Body = http.MaxBytesReader(out, r.Body, maxBody)
	if err := h.origin.Check(r); err != nil {
		fail(out, http.StatusForbidden, "a web page of another origin may not do this")
		return
	}
	next, pattern := h.mux.Handler(r)
	if pattern != "" {
		h.mux.ServeHTTP(out, r)
		return
	}
	// The mux knows whether it is the path or the method, but says so in plain
	// text.
	v := &verdict{header: out.Header()}
	next.ServeHTTP(v, r)
	switch v.status {
	case http.StatusMethodNotAllowed:
		fail(out, v.status, fmt.Sprintf("%s does not take %s; use %s", r.URL.Path, r.Method, out.Header().Get("Allow")))
	default:
		fail(out, http.StatusNotFound, fmt.Sprintf("there is no %s; / lists what there is", r.URL.Path))
	}
}

func (h *handler) ready(w http.ResponseWriter, _ *http.Request) {
	if why := h.source.State().unready(); why != "" {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, "not ready:", why)
		return
	}
	text("ready\n")(w, nil)
}

// reload lets the source work as long as it takes, even if the client has gone:
// half a reload is none.
func (h *handler) reload(w http.ResponseWriter, r *http.Request) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			fail(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the body has more than %d bytes; none is needed", maxBody))
		} else {
			fail(w, http.StatusBadRequest, "reading the body: "+err.Error())
		}
		return
	}
	extend(w, 10*time.Minute)
	message, err := h.source.Reload(context.WithoutCancel(r.Context()))
	extend(w, writeTimeout)
	if err != nil {
		respond(w, http.StatusUnprocessableEntity, map[string]any{"ok": false, "error": err.Error()})
		return
	}
	respond(w, http.StatusOK, map[string]any{"ok": true, "message": message})
}

// profile gives a profile the time it is asked to take.
func profile(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		seconds, err := strconv.Atoi(r.FormValue("seconds"))
		if err != nil || seconds <= 0 {
			seconds = 30 // what pprof takes as default
		}
		extend(w, time.Duration(min(seconds, 3600))*time.Second+writeTimeout)
		next(w, r)
	}
}

// extend moves the deadlines of the connection. The one for reading counts as
// well: net/http goes on reading to see whether the client is still there.
func extend(w http.ResponseWriter, d time.Duration) {
	c, at := http.NewResponseController(w), time.Now().Add(d)
	// Both fail only on connections that are gone, and in tests without one.
	_ = c.SetWriteDeadline(at)
	if d > writeTimeout {
		_ = c.SetReadDeadline(at)
	}
}

func text(s string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		io.WriteString(w, s)
	}
}

func respond(w http.ResponseWriter, status int, v any) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // diagnostics have < and >, and this is no HTML
	if err := enc.Encode(v); err != nil {
		panic(err) // there are only plain values
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	w.Write(b.Bytes())
}

func fail(w http.ResponseWriter, status int, message string) {
	respond(w, status, map[string]any{"ok": false, "error": message})
}

// response knows whether the answer has begun.
type response struct {
	http.ResponseWriter
	started bool
}

func (r *response) WriteHeader(status int) {
	r.started = true
	r.ResponseWriter.WriteHeader(status)
}

func (r *response) Write(b []byte) (int, error) {
	r.started = true
	return r.ResponseWriter.Write(b)
}

func (r *response) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// verdict takes the status and the header of an answer, and not its body.
type verdict struct {
	header http.Header
	status int
}

func (v *verdict) Header() http.Header         { return v.header }
func (v *verdict) WriteHeader(status int)      { v.status = status }
func (v *verdict) Write(b []byte) (int, error) { return len(b), nil }
