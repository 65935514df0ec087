package tlsterm

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"time"

	"edgeproxy/tlsterm/acme"
)

// Events is told what becomes of the files of `tls` blocks, from any goroutine.
// Its methods must not wait for the set to close.
type Events interface {
	CertificateEvents
	// RevocationsLoaded says that a crl_file is in use from now on; the first
	// of its lists expires at expires.
	RevocationsLoaded(tlsName, file string, expires time.Time)
	// RevocationsRefused says that a changed crl_file cannot be used. What was
	// read before stays in force.
	RevocationsRefused(tlsName, file string, err error)
	// RevocationsExpire says that a list has expired, or will within a day. Once
	// it has, clients with certificates of that issuer are refused.
	RevocationsExpire(tlsName, file, issuer string, at time.Time, expired bool)
	// TicketKeysLoaded says that a file of ticket keys is in use from now on.
	TicketKeysLoaded(file string)
	// TicketKeysRefused says that a changed file of ticket keys cannot be used.
	// The old keys stay in force.
	TicketKeysRefused(file string, err error)
	// TicketKeysRotated says that a block seals tickets with a new own key.
	TicketKeysRotated(tlsName string)
}

// Env is what all `tls` blocks of the process share.
type Env struct {
	Events   Events        // nil: nobody is told
	ACME     *acme.Service // nil: ACME is an error
	checking bool          // only what files hold: nothing is obtained
}

// Set is all `tls` blocks of one configuration.
//
//	Prepare ──▶ Commit ──▶ in use ──▶ (the next one's Commit) or Close
//	   └──────▶ Discard
type Set struct {
	env      *Env
	contexts map[string]*Context
	order    []*Context
	fresh    []*certStore           // made for this set, to be started
	shared   map[string]*ticketKeys // by file

	cancel context.CancelFunc
	watch  sync.WaitGroup
}

// Prepare makes the contexts of a configuration, going on with those of old
// (may be nil) that are the same, and with the certificates and ticket keys of
// those that are not. It reads all files and reports all errors. Nothing of old
// changes until [Set.Commit]; a set that is not committed must be discarded.
func Prepare(env *Env, old *Set, opts []Options) (*Set, error) {
	s := &Set{env: env, contexts: make(map[string]*Context, len(opts)), shared: map[string]*ticketKeys{}}
	var errs []error
	for _, o := range opts {
		var before *Context
		if old != nil {
			before = old.contexts[o.Name]
		}
		c, err := s.prepare(old, before, o)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s.contexts[o.Name] = c
		s.order = append(s.order, c)
	}
	if err := errors.Join(errs...); err != nil {
		s.Discard()
		return nil, err
	}
	return s, nil
}

func (s *Set) prepare(old *Set, before *Context, o Options) (*Context, error) {
	var errs []error
	failed := func(err error) { errs = append(errs, fmt.Errorf("tls %q: %w", o.Name, err)) }
	auth, err := newClientAuth(&o.ClientAuth)
	if err != nil {
		failed(err)
	}
	keys, err := s.ticketKeys(old, before, &o)
	if err != nil {
		failed(fmt.Errorf("ticket_keys: %w", err))
	}
	var certs *certStore
	if before != nil && sameCertificates(&before.opts, &o) {
		certs = before.certs
		if err := certs.refresh(); err != nil {
			errs = append(errs, err)
		}
		if len(errs) == 0 && reflect.DeepEqual(before.opts, o) && before.auth.sum == auth.sum {
			return before, nil
		}
	} else {
		env := certEnv{events: s.env.events(), acme: s.env.acmeSource}
		if before != nil {
			env.previous = before.certs
		}
		if certs, err = newCertStore(&o, env); err != nil {
			errs = append(errs, err) // names the block in each of its lines
		} else {
			s.fresh = append(s.fresh, certs)
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return newContext(o, certs, keys, auth), nil
}

// ticketKeys finds or makes the keys of a block. Its own outlive changes of
// the block: what a session was verified against is in the keys' derivation.
// A file is read even if it is in use, so that a reload tells what is wrong
// with it.
func (s *Set) ticketKeys(old *Set, before *Context, o *Options) (*ticketKeys, error) {
	switch {
	case o.NoTickets:
		return nil, nil
	case o.TicketKeys == "" && before != nil && before.keys != nil && before.keys.file == "":
		return before.keys, nil
	case o.TicketKeys == "":
		return newTicketKeys("")
	}
	if keys := s.shared[o.TicketKeys]; keys != nil {
		return keys, nil
	}
	keys, err := newTicketKeys(o.TicketKeys)
	if err != nil {
		return nil, err
	}
	if old != nil && old.shared[o.TicketKeys] != nil {
		keys = old.shared[o.TicketKeys]
	}
	s.shared[o.TicketKeys] = keys
	return keys, nil
}

// Context returns the context of that name, nil if there is none.
func (s *Set) Context(name string) *Context { return s.contexts[name] }

// Contexts returns them in the order of the configuration.
func (s *Set) Contexts() []*Context { return s.order }

// Commit makes s the set in use instead of old, which may be nil. It cannot fail.
func (s *Set) Commit(old *Set) {
	if old != nil {
		old.stopWatching()
	}
	for _, certs := range s.fresh {
		certs.start()
		for _, d := range certs.dynamic {
			if d, ok := d.(managed); ok {
				d.Start()
			}
		}
	}
	s.fresh = nil
	s.startWatching(old)
	if old != nil {
		kept := map[*certStore]bool{}
		for _, c := range s.order {
			kept[c.certs] = true
		}
		for _, c := range old.order {
			if !kept[c.certs] {
				c.certs.Close()
			}
		}
	}
}

// Discard gives back what a prepared set has taken.
func (s *Set) Discard() {
	for _, certs := range s.fresh {
		certs.Close()
	}
	s.fresh = nil
}

// Close stops watching and waits until nothing is reported any more. The
// contexts go on to work with what they have.
func (s *Set) Close() {
	s.stopWatching()
	for _, c := range s.order {
		c.certs.Close()
	}
}

func (e *Env) events() Events {
	if e == nil || e.Events == nil {
		return noSetEvents{}
	}
	return e.Events
}

// watching is the state of the goroutine that keeps files in force.
type watching struct {
	events Events
	files  []*watchedFile
	own    map[*Context]*ticketMasters // last seen
	told   map[*clientAuth]expiry
	auths  map[*clientAuth]*Context
}

// expiry is what has been told of the lists of a file.
type expiry struct {
	at      time.Time
	expired bool
}

func (s *Set) startWatching(old *Set) {
	w := &watching{events: s.env.events(), own: map[*Context]*ticketMasters{}, told: map[*clientAuth]expiry{}, auths: map[*clientAuth]*Context{}}
	for file, keys := range s.shared {
		w.files = append(w.files, &watchedFile{
			name: file, reload: keys.reload,
			loaded:  func() { w.events.TicketKeysLoaded(file) },
			refused: func(err error) { w.events.TicketKeysRefused(file, err) },
		})
	}
	for _, c := range s.order {
		if c.keys != nil && c.keys.file == "" {
			w.own[c] = c.keys.current.Load()
		}
		if auth := c.auth; auth.crlFile != "" {
			w.auths[auth] = c
			loaded := func() {
				at, _ := auth.crl.Load().expires()
				w.events.RevocationsLoaded(c.Name(), auth.crlFile, at)
			}
			w.files = append(w.files, &watchedFile{
				name: auth.crlFile, reload: auth.reloadCRL, loaded: loaded,
				refused: func(err error) { w.events.RevocationsRefused(c.Name(), auth.crlFile, err) },
			})
			if old == nil || old.contexts[c.Name()] != c {
				loaded()
			}
		}
	}
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(context.Background())
	s.watch.Go(func() { w.run(ctx) })
}

func (s *Set) stopWatching() {
	if s.cancel != nil {
		s.cancel()
		s.watch.Wait()
	}
}

func (w *watching) run(ctx context.Context) {
	every := watchInterval
	if len(w.files) == 0 {
		every = 10 * time.Minute // only for own keys, to be forgotten in time
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		now := time.Now()
		for _, f := range w.files {
			f.poll(now)
		}
		for auth, c := range w.auths {
			w.expiry(auth, c, now)
		}
		for c, seen := range w.own {
			if masters := c.keys.masters(); masters != seen {
				w.own[c] = masters
				w.events.TicketKeysRotated(c.Name())
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// expiry warns of lists that are about to expire, and again when they have.
func (w *watching) expiry(auth *clientAuth, c *Context, now time.Time) {
	at, issuer := auth.crl.Load().expires()
	if now.Before(at.Add(-crlWarning)) {
		return
	}
	if tell := (expiry{at, now.After(at)}); w.told[auth] != tell {
		w.told[auth] = tell
		w.events.RevocationsExpire(c.Name(), auth.crlFile, issuer, at, tell.expired)
	}
}

type noSetEvents struct{ noEvents }

func (noSetEvents) RevocationsLoaded(string, string, time.Time)               {}
func (noSetEvents) RevocationsRefused(string, string, error)                  {}
func (noSetEvents) RevocationsExpire(string, string, string, time.Time, bool) {}
func (noSetEvents) TicketKeysLoaded(string)                                   {}
func (noSetEvents) TicketKeysRefused(string, error)                           {}
func (noSetEvents) TicketKeysRotated(string)                                  {}
