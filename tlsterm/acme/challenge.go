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
type solver struct{ k *keeper }

// Present implements acmez.Solver.
func (s solver) Present(ctx context.Context, c acme.Challenge) error {
	key, all := keyOf(c), &s.k.service.challenges
	all.mu.Lock()
	if all.pending == nil {
		all.pending = map[challengeKey]acme.Challenge{}
	}
	all.pending[key] = c
	all.mu.Unlock()

	file, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return s.k.storage.Store(ctx, key.file(), file)
}

// CleanUp implements acmez.Solver.
func (s solver) CleanUp(ctx context.Context, c acme.Challenge) error {
	key, all := keyOf(c), &s.k.service.challenges
	all.mu.Lock()
	if all.pending[key].Token == c.Token {
		delete(all.pending, key)
	}
	all.mu.Unlock()
	return s.k.storage.Delete(context.WithoutCancel(ctx), key.file())
}

// challenge finds one that is under way for a normalised name, here or
// elsewhere in the fleet.
func (k *keeper) challenge(ctx context.Context, kind, name string) (c acme.Challenge, ok bool) {
	key, all := challengeKey{kind, name}, &k.service.challenges
	all.mu.Lock()
	c, ok = all.pending[key]
	all.mu.Unlock()
	// Only for names that are ours is the file looked for: anybody may ask.
	if ok || k.domains[name] == nil {
		return c, ok
	}
	file, err := k.storage.Load(ctx, key.file())
	if err != nil || json.Unmarshal(file, &c) != nil {
		return c, false
	}
	return c, keyOf(c) == key
}

func (k *keeper) challengeCertificate(ctx context.Context, name string) (*tls.Certificate, error) {
	if ctx == nil { // of a hello that no handshake made
		ctx = k.ctx
	}
	c, ok := acme.Challenge{}, false
	if !k.options.NoTLSALPN {
		c, ok = k.challenge(ctx, acme.ChallengeTypeTLSALPN01, name)
	}
	if !ok {
		return nil, fmt.Errorf("acme: no tls-alpn-01 challenge is under way for %.253q", name)
	}
	return acmez.TLSALPN01ChallengeCert(c)
}

// responder answers http-01 challenges at one address, for as long as a keeper
// names it.
type responder struct {
	address string
	server  *http.Server
	done    chan struct{}

	mu      sync.Mutex
	keepers map[*keeper]bool
}

// respond has challenges of k answered at an address. It is called with s.mu
// held.
func (s *Service) respond(address string, k *keeper) (*responder, error) {
	r := s.responders[address]
	if r == nil {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return nil, fmt.Errorf("acme: http_address %q: %w; another address will do if requests for %s are routed to it", address, err, httpPath)
		}
		r = &responder{address: l.Addr().String(), done: make(chan struct{}), keepers: map[*keeper]bool{}}
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
	r.keepers[k] = true
	r.mu.Unlock()
	return r, nil
}

// release is the end of respond. The last keeper closes the socket. It is
// called with s.mu held.
func (s *Service) release(r *responder, k *keeper) {
	r.mu.Lock()
	delete(r.keepers, k)
	left := len(r.keepers)
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
	keepers := slices.Collect(maps.Keys(r.keepers))
	r.mu.Unlock()
	for _, k := range keepers {
		if c, ok := k.challenge(req.Context(), acme.ChallengeTypeHTTP01, host); ok && c.Token == token {
			w.Header().Set("Content-Type", "application/octet-stream")
			io.WriteString(w, c.KeyAuthorization)
			return
		}
	}
	http.NotFound(w, req)
}
