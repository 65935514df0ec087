package acme

import (
	"context"
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const (
	// maxOrders is how many orders of one Manager are under way at a time.
	maxOrders = 4

	// loadPatience bounds the wait for certificates in the storage folder.
	// Reading them is quick unless their OCSP responder must be asked.
	loadPatience = 2 * time.Second

	// stopPatience bounds the wait for a request to an OCSP responder, which
	// certmagic does not abandon.
	stopPatience = time.Second
)

// Manager keeps certificates for some domains. Its methods may be called at
// the same time.
type Manager struct {
	service   *Service
	options   Options
	domains   map[string]bool
	log       *zap.Logger
	storage   *storage
	cache     *certmagic.Cache
	config    *certmagic.Config
	issuer    *issuer
	responder *responder // nil: http-01 is not offered

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	orders chan struct{} // a place for each that may be under way
	work   sync.WaitGroup

	mu       sync.Mutex
	closed   bool
	failures map[string]string // by domain
}

// New checks o, makes the storage folder if there is none, takes HTTPAddress,
// and loads the certificates that the folder has. It orders nothing. The
// Manager must be closed.
func (s *Service) New(o Options) (*Manager, error) {
	o, roots, err := o.normalised()
	if err != nil {
		return nil, err
	}
	storage, err := newStorage(o.Storage)
	if err != nil {
		return nil, err
	}
	m := &Manager{
		service:  s,
		options:  o,
		domains:  make(map[string]bool, len(o.Domains)),
		log:      s.log,
		storage:  storage,
		orders:   make(chan struct{}, maxOrders),
		failures: map[string]string{},
	}
	for _, d := range o.Domains {
		m.domains[d] = true
	}
	if o.HTTPAddress != "" {
		if m.responder, err = s.respond(o.HTTPAddress, m); err != nil {
			return nil, err
		}
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.issuer = newIssuer(m, roots)
	// Whatever certmagic complains of, it tries again: none of it is an error
	// that stops anything.
	log := s.log.WithOptions(zap.IncreaseLevel(zapcore.WarnLevel), zap.WrapCore(atMostWarn))
	m.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert:   func(certmagic.Certificate) (*certmagic.Config, error) { return m.config, nil },
		RenewCheckInterval: s.renewEvery,
		Logger:             log,
	})
	m.config = certmagic.New(m.cache, certmagic.Config{
		Issuers: []certmagic.Issuer{m.issuer},
		Storage: m.storage,
		Logger:  log,
		OnEvent: m.onEvent,
		// Its HTTP client has a timeout only if a proxy function is given, and
		// without one a silent OCSP responder would end all renewals.
		OCSP: certmagic.OCSPConfig{HTTPProxy: http.ProxyFromEnvironment},
	})
	m.load()
	return m, nil
}

// load puts stored certificates into use. One that cannot be read, or whose
// OCSP responder is slow, is left to Start.
func (m *Manager) load() {
	loaded := make(chan struct{})
	go func() {
		defer close(loaded)
		for _, d := range m.options.Domains {
			if m.ctx.Err() != nil {
				return
			}
			m.config.CacheManagedCertificate(m.ctx, d)
		}
	}()
	select {
	case <-loaded:
	case <-time.After(loadPatience):
	}
}

// Start begins to obtain what is missing and to renew what is due, in the
// background.
func (m *Manager) Start() {
	m.goWhileOpen(func() {
		// What was loaded may be due already; the cache looks for the first
		// time after a whole interval only.
		if err := m.cache.RenewManagedCertificates(m.ctx); err != nil && m.ctx.Err() == nil {
			m.log.Warn("renewing certificates", zap.Error(err))
		}
	})
	for _, d := range m.options.Domains {
		if m.certificate(d) == nil {
			m.goWhileOpen(func() { m.obtain(d) })
		}
	}
}

// goWhileOpen runs f in a goroutine that Close waits for.
func (m *Manager) goWhileOpen(f func()) {
	if m.enter() {
		go func() {
			defer m.work.Done()
			f()
		}()
	}
}

// enter has Close wait until work.Done is called, or reports that it is too
// late.
func (m *Manager) enter() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.work.Add(1)
	return true
}

// whileOpen has Close wait until done is called, and returns a context that
// ends with ctx or with the Manager: what certmagic's background work calls
// comes with contexts that know nothing of the Manager's end.
func (m *Manager) whileOpen(ctx context.Context) (_ context.Context, done func(), ok bool) {
	if !m.enter() {
		return nil, nil, false
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(m.ctx, cancel)
	return ctx, func() {
		stop()
		cancel()
		m.work.Done()
	}, true
}

// obtain orders a certificate until there is one. The retries are ours and not
// those of certmagic.ManageAsync, which waits a minute even when the authority
// could merely not be reached, as at boot.
func (m *Manager) obtain(domain string) {
	for failures := 1; ; failures++ {
		select {
		case m.orders <- struct{}{}:
		case <-m.ctx.Done():
			return
		}
		err := m.config.ManageSync(m.ctx, []string{domain})
		<-m.orders
		if err == nil || m.ctx.Err() != nil {
			return
		}
		wait := m.service.pause(failures, err)
		m.fail(domain, err)
		m.log.Warn("no certificate yet", zap.String("domain", domain), zap.Duration("retry_in", wait), zap.Error(err))
		select {
		case <-time.After(wait):
		case <-m.ctx.Done():
			return
		}
	}
}

// pause is how long to wait after so many failures in a row. Where the
// authority answered, haste makes it worse: Let's Encrypt takes five failed
// validations of a name in an hour. One that cannot be reached may be asked
// again soon.
func pause(failures int, err error) time.Duration {
	var wait time.Duration
	if problem := (acme.Problem{}); errors.As(err, &problem) {
		steps := [...]time.Duration{time.Minute, 5 * time.Minute, 15 * time.Minute, 30 * time.Minute, time.Hour, 2 * time.Hour, 4 * time.Hour, 8 * time.Hour}
		wait = steps[min(failures, len(steps))-1]
	} else {
		wait = min(5*time.Second<<min(failures-1, 10), 5*time.Minute)
	}
	// Up to a tenth more: a fleet does not come back all at once.
	return wait + rand.N(wait/10)
}

// onEvent hears of orders, the first ones and renewals alike.
func (m *Manager) onEvent(_ context.Context, event string, data map[string]any) error {
	domain, _ := data["identifier"].(string)
	renewal, _ := data["renewal"].(bool)
	switch event {
	case "cert_obtained":
		m.fail(domain, nil)
		m.log.Info("certificate obtained", zap.String("domain", domain), zap.Bool("renewal", renewal))
	case "cert_failed":
		err, _ := data["error"].(error)
		m.fail(domain, err)
	}
	return nil
}

// fail keeps the outcome of an order for Status.
func (m *Manager) fail(domain string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		delete(m.failures, domain)
	} else {
		m.failures[domain] = err.Error()
	}
}

// certificate returns the one in use for a normalised name, nil if there is
// none. After a renewal the cache may have two for a moment.
func (m *Manager) certificate(name string) *tls.Certificate {
	if !m.domains[name] {
		return nil
	}
	var best *certmagic.Certificate
	for _, c := range m.cache.AllMatchingCertificates(name) {
		if best == nil || c.Leaf.NotAfter.After(best.Leaf.NotAfter) {
			best = &c
		}
	}
	if best == nil {
		return nil
	}
	return &best.Certificate
}

// Domains returns the names certificates are kept for, in lower case and
// without a trailing dot.
func (m *Manager) Domains() []string { return m.options.Domains }

// Challenge reports whether a hello for serverName that offers only
// ALPNProtocol is to be answered by this Manager, whatever is routed
// elsewhere.
func (m *Manager) Challenge(serverName string) bool {
	return !m.options.NoTLSALPN && m.domains[normaliseName(serverName)]
}

// Status returns the state of each domain, in the order of the options.
func (m *Manager) Status() []Status {
	list := make([]Status, 0, len(m.options.Domains))
	for _, d := range m.options.Domains {
		s := Status{Subject: d}
		if c := m.certificate(d); c != nil {
			s.NotAfter = c.Leaf.NotAfter
		}
		m.mu.Lock()
		s.Failure = m.failures[d]
		m.mu.Unlock()
		list = append(list, s)
	}
	return list
}

// Close abandons orders that are under way and stops renewing. Certificates
// that were handed out stay good.
func (m *Manager) Close() {
	m.mu.Lock()
	again := m.closed
	m.closed = true
	m.mu.Unlock()
	if again {
		return
	}
	m.cancel()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		m.cache.Stop()
	}()
	m.work.Wait()
	select {
	case <-stopped:
	case <-time.After(stopPatience): // an OCSP responder that is silent
	}
	if m.responder != nil {
		m.service.release(m.responder, m)
	}
	m.issuer.close()
}

// atMostWarn makes warnings of errors.
func atMostWarn(core zapcore.Core) zapcore.Core { return warnCore{core} }

type warnCore struct{ zapcore.Core }

func (c warnCore) With(f []zapcore.Field) zapcore.Core { return warnCore{c.Core.With(f)} }

func (c warnCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	e.Level = min(e.Level, zapcore.WarnLevel)
	return c.Core.Check(e, ce)
}
