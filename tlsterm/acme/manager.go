package acme

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
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
//
// Managers of the same options are handles of one keeper: a reload that makes
// another before it closes the first disturbs no order that is under way, and
// forgets no pause.
type Manager struct {
	*keeper
	closing sync.Once
}

// keeper does the work of Managers.
type keeper struct {
	service   *Service
	identity  string // in Service.keepers
	handles   int    // Managers that are not closed; guarded by Service.mu
	options   Options
	domains   map[string]*domain
	log       *zap.Logger
	storage   *storage
	cache     *certmagic.Cache
	config    *certmagic.Config
	issuer    *issuer
	responder *responder // nil: http-01 is not offered

	started sync.Once
	ctx     context.Context // ends with the last handle
	cancel  context.CancelFunc
	orders  chan struct{} // a place for each that may be under way
	work    sync.WaitGroup

	mu     sync.Mutex
	closed bool
}

// domain is what is known of one of the options' domains.
type domain struct {
	failure atomic.Pointer[string]
	recent  atomic.Pointer[recent]
}

// recent is the answer to a look-up in certmagic's cache, which copies a lot
// for each. It is good for a moment: what renewal and stapling put there must
// be seen.
type recent struct {
	certificate *tls.Certificate
	until       time.Time
}

const recentFor = time.Second

// New checks o, makes the storage folder if there is none, takes HTTPAddress,
// and loads the certificates that the folder has. It orders nothing. The
// Manager must be closed.
func (s *Service) New(o Options) (*Manager, error) {
	o, roots, err := o.normalised()
	if err != nil {
		return nil, err
	}
	identity, err := o.identity(roots)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.keepers[identity]
	if k == nil {
		if k, err = s.newKeeper(o, roots); err != nil {
			return nil, err
		}
		k.identity = identity
		s.keepers[identity] = k
	}
	k.handles++
	return &Manager{keeper: k}, nil
}

// identity is the same for options that ask for the same.
func (o Options) identity(roots []byte) (string, error) {
	id, err := json.Marshal(struct {
		Options Options
		Roots   []byte
	}{o, roots})
	return string(id), err
}

// newKeeper is called with s.mu held.
func (s *Service) newKeeper(o Options, roots []byte) (*keeper, error) {
	storage, err := newStorage(o.Storage)
	if err != nil {
		return nil, err
	}
	k := &keeper{
		service: s,
		options: o,
		domains: make(map[string]*domain, len(o.Domains)),
		log:     s.log,
		storage: storage,
		orders:  make(chan struct{}, maxOrders),
	}
	for _, d := range o.Domains {
		k.domains[d] = new(domain)
	}
	if o.HTTPAddress != "" {
		if k.responder, err = s.respond(o.HTTPAddress, k); err != nil {
			return nil, err
		}
	}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	k.issuer = newIssuer(k, pool(roots))
	// Whatever certmagic complains of, it tries again: none of it is an error
	// that stops anything.
	log := s.log.WithOptions(zap.IncreaseLevel(zapcore.WarnLevel), zap.WrapCore(func(c zapcore.Core) zapcore.Core { return libraryLog{c, k.ctx} }))
	k.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert:   func(certmagic.Certificate) (*certmagic.Config, error) { return k.config, nil },
		RenewCheckInterval: s.renewEvery,
		Logger:             log,
	})
	k.config = certmagic.New(k.cache, certmagic.Config{
		Issuers: []certmagic.Issuer{k.issuer},
		Storage: k.storage,
		Logger:  log,
		OnEvent: k.onEvent,
		// Its HTTP client has a timeout only if a proxy function is given, and
		// without one a silent OCSP responder would end all renewals.
		OCSP: certmagic.OCSPConfig{HTTPProxy: http.ProxyFromEnvironment},
	})
	k.load()
	return k, nil
}

// load puts stored certificates into use. One that cannot be read, or whose
// OCSP responder is slow, is left to Start.
func (k *keeper) load() {
	loaded := make(chan struct{})
	go func() {
		defer close(loaded)
		for _, d := range k.options.Domains {
			if k.ctx.Err() != nil {
				return
			}
			k.config.CacheManagedCertificate(k.ctx, d)
		}
	}()
	select {
	case <-loaded:
	case <-time.After(loadPatience):
	}
}

// Start begins to obtain what is missing and to renew what is due, in the
// background.
func (m *Manager) Start() { m.started.Do(m.keeper.start) }

func (k *keeper) start() {
	k.goWhileOpen(func() {
		// What was loaded may be due already; the cache looks for the first
		// time after a whole interval only.
		if err := k.cache.RenewManagedCertificates(k.ctx); err != nil && k.ctx.Err() == nil {
			k.log.Warn("renewing certificates", zap.Error(err))
		}
	})
	for _, name := range k.options.Domains {
		if k.certificate(name) == nil {
			k.goWhileOpen(func() { k.obtain(name) })
		}
	}
}

// goWhileOpen runs f in a goroutine that is waited for at the end.
func (k *keeper) goWhileOpen(f func()) {
	if k.enter() {
		go func() {
			defer k.work.Done()
			f()
		}()
	}
}

// enter has the end wait until work.Done is called, or reports that it is too
// late.
func (k *keeper) enter() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return false
	}
	k.work.Add(1)
	return true
}

// whileOpen has the end wait until done is called, and returns a context that
// ends with ctx or with the keeper: what certmagic's background work calls
// comes with contexts that know nothing of the keeper's end.
func (k *keeper) whileOpen(ctx context.Context) (_ context.Context, done func(), ok bool) {
	if !k.enter() {
		return nil, nil, false
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(k.ctx, cancel)
	return ctx, func() {
		stop()
		cancel()
		k.work.Done()
	}, true
}

// obtain orders a certificate until there is one. The retries are ours and not
// those of certmagic.ManageAsync, which waits a minute even when the authority
// could merely not be reached, as at boot.
func (k *keeper) obtain(name string) {
	for failures := 1; ; failures++ {
		select {
		case k.orders <- struct{}{}:
		case <-k.ctx.Done():
			return
		}
		err := k.config.ManageSync(k.ctx, []string{name})
		<-k.orders
		if err == nil || k.ctx.Err() != nil {
			return
		}
		wait := k.service.pause(failures, err)
		k.fail(name, err)
		k.log.Warn("no certificate yet", zap.String("domain", name), zap.Duration("retry_in", wait), zap.Error(err))
		select {
		case <-time.After(wait):
		case <-k.ctx.Done():
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
func (k *keeper) onEvent(_ context.Context, event string, data map[string]any) error {
	name, _ := data["identifier"].(string)
	renewal, _ := data["renewal"].(bool)
	switch event {
	case "cert_obtained":
		k.fail(name, nil)
		k.log.Info("certificate obtained", zap.String("domain", name), zap.Bool("renewal", renewal))
	case "cert_failed":
		err, _ := data["error"].(error)
		k.fail(name, err)
	}
	return nil
}

// fail keeps the outcome of an order for Status.
func (k *keeper) fail(name string, err error) {
	d := k.domains[name]
	switch {
	case d == nil:
	case err == nil:
		d.failure.Store(nil)
	default:
		d.failure.Store(new(err.Error()))
	}
}

// certificate returns the one in use for a normalised name, nil if there is
// none. After a renewal the cache may have two for a moment.
func (k *keeper) certificate(name string) *tls.Certificate {
	d := k.domains[name]
	if d == nil {
		return nil
	}
	now := time.Now()
	if r := d.recent.Load(); r != nil && now.Before(r.until) {
		return r.certificate
	}
	var best *certmagic.Certificate
	for _, c := range k.cache.AllMatchingCertificates(name) {
		if best == nil || c.Leaf.NotAfter.After(best.Leaf.NotAfter) {
			best = &c
		}
	}
	if best == nil {
		return nil
	}
	d.recent.Store(&recent{&best.Certificate, now.Add(recentFor)})
	return &best.Certificate
}

// Domains returns the names certificates are kept for, in lower case and
// without a trailing dot.
func (m *Manager) Domains() []string { return m.options.Domains }

// Challenge reports whether a hello for serverName that offers only
// ALPNProtocol is to be answered by this Manager, whatever is routed
// elsewhere.
func (m *Manager) Challenge(serverName string) bool {
	return !m.options.NoTLSALPN && m.domains[normaliseName(serverName)] != nil
}

// Status returns the state of each domain, in the order of the options.
func (m *Manager) Status() []Status {
	list := make([]Status, 0, len(m.options.Domains))
	for _, name := range m.options.Domains {
		s := Status{Subject: name}
		if c := m.certificate(name); c != nil {
			s.NotAfter = c.Leaf.NotAfter
		}
		if f := m.domains[name].failure.Load(); f != nil {
			s.Failure = *f
		}
		list = append(list, s)
	}
	return list
}

// Close abandons orders that are under way and stops renewing, unless another
// Manager of the same options lives. Certificates that were handed out stay
// good.
func (m *Manager) Close() { m.closing.Do(m.keeper.release) }

func (k *keeper) release() {
	s := k.service
	s.mu.Lock()
	k.handles--
	last := k.handles == 0
	if last {
		delete(s.keepers, k.identity)
		if k.responder != nil {
			s.release(k.responder, k)
		}
	}
	s.mu.Unlock()
	if !last {
		return
	}
	k.mu.Lock()
	k.closed = true
	k.mu.Unlock()
	k.cancel()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		k.cache.Stop()
		k.work.Wait()
	}()
	select {
	case <-stopped:
	case <-time.After(stopPatience): // an OCSP responder that is silent
	}
}

// libraryLog is what certmagic says: warnings at most, and nothing any more
// once the end has been called for and orders fail because of it.
type libraryLog struct {
	zapcore.Core
	ctx context.Context
}

func (l libraryLog) With(f []zapcore.Field) zapcore.Core { return libraryLog{l.Core.With(f), l.ctx} }

func (l libraryLog) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if l.ctx.Err() != nil {
		return ce
	}
	e.Level = min(e.Level, zapcore.WarnLevel)
	return l.Core.Check(e, ce)
}
