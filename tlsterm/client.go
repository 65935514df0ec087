package tlsterm

import (
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// clientSessions is how many sessions an upstream keeps for resumption: one
	// a server is used.
	clientSessions = 256
	// maxClientConfigs bounds the configurations kept by server name.
	maxClientConfigs = 1024
	// clientCheck is how often the client certificate's files are looked at,
	// while there are handshakes.
	clientCheck = 500 * time.Millisecond
)

// ClientContext is one upstream's `tls` block in force: how sessions to its
// servers are encrypted. Its session cache is its own, so that no session is
// resumed that was verified by the rules of another upstream.
//
// A server that selects none of the protocols offered by ALPN is accepted, as
// by other proxies: there are servers that speak h2 without saying so. One that
// selects a protocol that was not offered is refused.
type ClientContext struct {
	name     string
	opts     ClientOptions
	cas      [sha256.Size]byte // of ca_file; zero: the system's
	events   CertificateEvents
	template *tls.Config
	configs  sync.Map // server name → *tls.Config
	stored   atomic.Int64

	cert     atomic.Pointer[tls.Certificate] // nil: none
	sessions atomic.Pointer[tls.ClientSessionCache]

	// A renewed pair is noticed by the next handshake: unlike a server's there
	// is nothing to be told, and nothing to watch, while there is none.
	checkAt  atomic.Int64 // nanoseconds since the epoch
	mu       sync.Mutex   // guards what follows
	seen     loaded
	readAt   time.Time
	inUse    [sha256.Size]byte
	reported string
}

// PrepareClient reads all files of o. The name is the upstream's, for events
// and errors. There is nothing to be closed.
func PrepareClient(name string, o *ClientOptions, events CertificateEvents) (*ClientContext, error) {
	if events == nil {
		events = noEvents{}
	}
	cc := &ClientContext{name: name, opts: *o, events: events}
	var errs []error
	failed := func(err error) { errs = append(errs, fmt.Errorf("upstream %q: tls: %w", name, err)) }
	t := &tls.Config{
		MinVersion:         minVersion(o.MinVersion),
		MaxVersion:         o.MaxVersion,
		CipherSuites:       cipherSuites(o.CipherSuites, minVersion(o.MinVersion)),
		CurvePreferences:   slices.Clone(o.Groups),
		NextProtos:         slices.Clone(o.ALPN),
		InsecureSkipVerify: o.Insecure,
		ClientSessionCache: sharedSessions{cc},
	}
	if o.CAFile != "" {
		cas, err := loadAuthorities(o.CAFile)
		if err != nil {
			failed(fmt.Errorf("ca_file: %w", err))
		}
		t.RootCAs, cc.cas = poolOf(cas)
	}
	switch {
	case o.CertFile != "":
		now := time.Now()
		l := loadPair(o.CertFile, o.KeyFile, now)
		if l.err != nil {
			failed(l.err)
			break
		}
		cc.seen, cc.readAt, cc.inUse = l, now, l.sum
		cc.checkAt.Store(now.Add(clientCheck).UnixNano())
		cc.cert.Store(l.pair.current.Load())
		t.GetClientCertificate = cc.certificate
	case o.KeyFile != "":
		failed(errors.New("key_file without cert_file; name the client certificate, too"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	cc.forgetSessions()
	cc.template = t
	return cc, nil
}

// Same reports whether o is the same policy as cc, files included; a renewed
// client certificate makes no difference. A reload goes on with cc then, and
// with its sessions.
func (cc *ClientContext) Same(o *ClientContext) bool {
	return cc.cas == o.cas && reflect.DeepEqual(cc.opts, o.opts)
}

// Config is the configuration for a server, whose host is used where no
// server_name was configured: a name to be sent as SNI and verified, or an IP
// address, which is only verified. It is the same for the same host.
func (cc *ClientContext) Config(host string) *tls.Config {
	if cc.opts.ServerName != "" {
		host = cc.opts.ServerName
	}
	if c, ok := cc.configs.Load(host); ok {
		return c.(*tls.Config)
	}
	c := cc.template.Clone()
	c.ServerName = verifiedName(host)
	if cc.stored.Add(1) > maxClientConfigs {
		// Of servers that are long gone, most of them.
		cc.configs.Clear()
		cc.stored.Store(1)
	}
	kept, _ := cc.configs.LoadOrStore(host, c)
	return kept.(*tls.Config)
}

// verifiedName is host as certificates have it: without the brackets or the
// zone of an address, normalised.
func verifiedName(host string) string {
	if ip, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return ip.WithZone("").String()
	}
	return normalName(host)
}

// certificate is tls.Config.GetClientCertificate.
func (cc *ClientContext) certificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	cc.renew()
	return cc.cert.Load(), nil
}

// renew reads the client certificate anew if its files have changed. A pair
// that is no good is told once, and the old one stays in use.
func (cc *ClientContext) renew() {
	if cc.cert.Load() == nil {
		return
	}
	now := time.Now()
	due := cc.checkAt.Load()
	if now.UnixNano() < due || !cc.checkAt.CompareAndSwap(due, now.Add(clientCheck).UnixNano()) {
		return
	}
	cc.mu.Lock()
	defer cc.mu.Unlock()
	keyFile := cc.opts.KeyFile
	if keyFile == "" {
		keyFile = cc.opts.CertFile
	}
	certState, keyState := statFile(cc.opts.CertFile), statFile(keyFile)
	settled := certState.same(cc.seen.cert) && keyState.same(cc.seen.key) && certState.settledSince(cc.readAt) && keyState.settledSince(cc.readAt)
	if settled && (cc.seen.err == nil || cc.reported != "") {
		return
	}
	before := cc.seen
	l := loadPair(cc.opts.CertFile, cc.opts.KeyFile, now)
	cc.seen, cc.readAt = l, now
	switch {
	case l.err == nil && l.sum == cc.inUse:
		cc.reported = ""
	case l.err == nil:
		cc.reported, cc.inUse = "", l.sum
		cc.cert.Store(l.pair.current.Load())
		// Servers would go on to see the old certificate in resumed sessions.
		cc.forgetSessions()
		cc.events.CertificateLoaded(cc.name, cc.opts.CertFile, l.pair.names, l.pair.leaf.NotAfter)
	case before.err != nil && cc.reported != l.err.Error():
		// For the second time: the pair was not just being replaced.
		cc.reported = l.err.Error()
		cc.events.CertificateRefused(cc.name, cc.opts.CertFile, l.err)
	}
}

func (cc *ClientContext) forgetSessions() {
	cache := tls.NewLRUClientSessionCache(clientSessions)
	cc.sessions.Store(&cache)
}

// sharedSessions is the session cache of all configurations of a context.
type sharedSessions struct{ cc *ClientContext }

func (s sharedSessions) Get(key string) (*tls.ClientSessionState, bool) {
	s.cc.renew()
	return (*s.cc.sessions.Load()).Get(key)
}

func (s sharedSessions) Put(key string, cs *tls.ClientSessionState) {
	(*s.cc.sessions.Load()).Put(key, cs)
}
