package demo

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

// Bounds of what can be asked of an HTTP backend.
const (
	DefaultStop = 15 * time.Second
	maxStop     = 10 * time.Minute
	maxMegabyte = 100_000
)

// StartHTTP starts an HTTP server that answers with its name:
//
//	/             its name, and how many requests it has answered
//	/healthz      ok
//	/bytes?mb=N   N million bytes
//	/stop?for=D   goes away for D (15s), then comes back
func StartHTTP(name string) (*Backend, error) {
	b := &Backend{name: name}
	h := routes(b)
	return b.start(overTCP(func(ln net.Listener) io.Closer {
		srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
		go srv.Serve(ln) // returns when closed
		return srv
	}))
}

func routes(b *Backend) http.Handler {
	var answered atomic.Uint64
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "hello from %s, answer %d\n", b.name, answered.Add(1))
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "ok\n")
	})
	mux.HandleFunc("GET /bytes", sendBytes)
	mux.HandleFunc("/stop", func(w http.ResponseWriter, r *http.Request) {
		d := DefaultStop
		if s := r.FormValue("for"); s != "" {
			var err error
			if d, err = time.ParseDuration(s); err != nil || d <= 0 || d > maxStop {
				http.Error(w, fmt.Sprintf("for=%s: write a duration up to %v, such as 15s", s, maxStop), http.StatusBadRequest)
				return
			}
		}
		text := fmt.Sprintf("%s goes away for %v\n", b.name, d)
		w.Header().Set("Content-Length", strconv.Itoa(len(text)))
		w.Header().Set("Connection", "close")
		io.WriteString(w, text)
		if http.NewResponseController(w).Flush() == nil {
			go b.Stop(d) // closes this very connection, whose answer is complete
		}
	})
	return mux
}

func sendBytes(w http.ResponseWriter, r *http.Request) {
	mb, err := strconv.Atoi(r.FormValue("mb"))
	if err != nil || mb < 1 || mb > maxMegabyte {
		http.Error(w, fmt.Sprintf("write /bytes?mb=N with N from 1 to %d", maxMegabyte), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(mb*1_000_000))
	block := make([]byte, 100_000)
	for range mb * 10 {
		if _, err := w.Write(block); err != nil {
			return // the client has left
		}
	}
}
