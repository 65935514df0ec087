package acme

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// httpPath is below what http-01 asks for (RFC 8555, section 8.3).
const httpPath = "/.well-known/acme-challenge/"

// challenges are those that this process has ordered and not yet seen the end
// of.
type challenges struct {
	mu      sync.Mutex
	pending map[challengeKey]acme.Challenge
}

type challengeKey struct{ kind, name string }

func keyOf(c acme.Challenge) challengeKey {
	return challengeKey{c.Type, normaliseName(c.Identifier.Value)}
}

// file is where a challenge is kept for the rest of a fleet that shares the
// storage folder: the authority may reach any of them.
func (k challengeKey) file() string {
	return "challenges/" + certmagic.StorageKeys.Safe(k.name) + "." + k.kind + ".json"
}

// solver makes challenges known to those who answer; nothing has to be
// started.
type solver struct{ m *Manager }

// Present implements acmez.Solver.
func (s solver) Present(ctx context.Context, c acme.Challenge) error {
	k, all := keyOf(c), &s.m.service.challenges
	all.mu.Lock()
	if all.pending == nil {
		all.pending = map[challengeKey]acme.Challenge{}
	}
	all.pending[k] = c
	all.mu.Unlock()

	file, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return s.m.storage.Store(ctx, k.file(), file)
}

// CleanUp implements acmez.Solver.
func (s solver) CleanUp(ctx context.Context, c acme.Challenge) error {
	k, all := keyOf(c), &s.m.service.challenges
	all.mu.Lock()
	if all.pending[k].Token == c.Token {
		delete(all.pending, k)
	}
	all.mu.Unlock()
	return s.m.storage.Delete(context.WithoutCancel(ctx), k.file())
}

// challenge finds one that is under way for a normalised name, here or
// elsewhere in the fleet.
func (m *Manager) challenge(ctx context.Context, kind, name string) (c acme.Challenge, ok bool) {
	k, all := challengeKey{kind, name}, &m.service.challenges
	all.mu.Lock()
	c, ok = all.pending[k]
	all.mu.Unlock()
	// Only for names that are ours is the file looked for: anybody may ask.
	if ok || !m.domains[name] {
		return c, ok
	}
	file, err := m.storage.Load(ctx, k.file())
	if err != nil || json.Unmarshal(file, &c) != nil {
		return c, false
	}
	return c, keyOf(c) == k
}

func (m *Manager) challengeCertificate(ctx context.Context, name string) (*tls.Certificate, error) {
	if ctx == nil { // of a hello that no handshake made
		ctx = m.ctx
	}
	c, ok := acme.Challenge{}, false
	if !m.options.NoTLSALPN {
		c, ok = m.challenge(ctx, acme.ChallengeTypeTLSALPN01, name)
	}
	if !ok {
		return nil, fmt.Errorf("acme: no tls-alpn-01 challenge is under way for %.253q", name)
	}
	return acmez.TLSALPN01ChallengeCert(c)
}

// responder answers http-01 challenges at one address, for as long as a
// Manager names it.
type responder struct {
	address string
	server  *http.Server
	done    chan struct{}

	mu       sync.Mutex
	managers map[*Manager]bool
}

// respond has challenges of m answered at an address.
func (s *Service) respond(address string, m *Manager) (*responder, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.responders[address]
	if r == nil {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return nil, fmt.Errorf("acme: http_address %q: %w; another address will do if requests for %s are routed to it", address, err, httpPath)
		}
		r = &responder{address: l.Addr().String(), done: make(chan struct{}), managers: map[*Manager]bool{}}
		log, _ := zap.NewStdLogAt(s.log, zapcore.DebugLevel)
		// Anybody may connect: little time, little memory, one request.
		r.server = &http.Server{
			Handler:        r,
			ReadTimeout:    5 * time.Second,
			WriteTimeout:   5 * time.Second,
			MaxHeaderBytes: 8 << 10,
			ErrorLog:       log,
		}
		r.server.SetKeepAlivesEnabled(false)
		s.responders[address] = r
		go func() {
			defer close(r.done)
			r.server.Serve(l)
		}()
	}
	r.mu.Lock()
	r.managers[m] = true
	r.mu.Unlock()
	return r, nil
}

// release is the end of respond. The last Manager closes the socket.
func (s *Service) release(r *responder, m *Manager) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.mu.Lock()
	delete(r.managers, m)
	left := len(r.managers)
	r.mu.Unlock()
	if left > 0 {
		return
	}
	maps.DeleteFunc(s.responders, func(_ string, other *responder) bool { return other == r })
	r.server.Close()
	<-r.done
}

func (r *responder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	token, ok := strings.CutPrefix(req.URL.Path, httpPath)
	if !ok || token == "" || req.Method != http.MethodGet {
		http.NotFound(w, req)
		return
	}
	host := req.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = normaliseName(host)
	r.mu.Lock()
	managers := slices.Collect(maps.Keys(r.managers))
	r.mu.Unlock()
	for _, m := range managers {
		if c, ok := m.challenge(req.Context(), acme.ChallengeTypeHTTP01, host); ok && c.Token == token {
			w.Header().Set("Content-Type", "application/octet-stream")
			io.WriteString(w, c.KeyAuthorization)
			return
		}
	}
	http.NotFound(w, req)
}
