// Package upstream holds groups of servers and their live state, chooses a
// server for a session, and connects to it.
//
// A session and its server, in steps:
//
//  1. [Dialer.Dial] picks a server by the group's policy among those that are
//     up, have an address, and are below their max_connections.
//  2. Taking it is a lease: it counts in the server's load until released.
//  3. The socket connects without blocking, on the session's loop; a failure
//     is counted, the lease given back, and another server picked.
//  4. The PROXY header goes first, if there is to be one; then the TLS
//     handshake, in a pool of workers.
//  5. The owner gets the connected socket and the lease, which it gives back
//     with [Server.Release], exactly once.
//
// What a server has counted and whether it is up belongs to the [Server], which
// survives reloads; a [Group] is one configuration's view of its servers.
package upstream

import (
	"context"
	"errors"
	"reflect"
	"sync"

	"edgeproxy/health"
	"edgeproxy/tlsterm"
)

// Events is told of what happens to servers, from any goroutine.
type Events interface {
	// ServerChanged tells that the health checks have changed their verdict.
	ServerChanged(s *Server, up bool, err error)
	// ServerResolved tells that a host name has another address, or has one
	// again, or (err) cannot be looked up.
	ServerResolved(s *Server, addr string, err error)
}

// Env is what all upstreams of the process share.
type Env struct {
	Loops  int
	Checks *health.Scheduler
	Events Events
	TLS    tlsterm.CertificateEvents // told of client certificates; nil: nobody is
}

// Set is all upstreams of one configuration.
type Set struct {
	env    *Env
	groups map[string]*Group
	order  []*Group
}

// Prepare makes the upstreams of a configuration, going on with the servers
// that old (may be nil) has as well. Nothing of old changes until [Set.Commit];
// a prepared set that is not committed needs no closing. The error joins all
// that went wrong: files for TLS that cannot be used.
func Prepare(env *Env, old *Set, opts []Options) (*Set, error) {
	s := &Set{env: env, groups: make(map[string]*Group, len(opts))}
	var unresolved []*Server
	var errs []error
	for i := range opts {
		o := opts[i]
		var before *Group
		if old != nil {
			before = old.groups[o.Name]
		}
		// Read at each reload: what a file says may have changed, or be wrong.
		var tls *tlsterm.ClientContext
		if o.TLS != nil {
			var err error
			if tls, err = tlsterm.PrepareClient(o.Name, o.TLS, env.TLS); err != nil {
				errs = append(errs, err)
				continue
			}
			if before != nil && before.tls != nil && before.tls.Same(tls) {
				tls = before.tls
			}
		}
		if before != nil && before.tls == tls && reflect.DeepEqual(before.opts, o) {
			s.add(before)
			continue
		}
		g := newGroup(env, o, before)
		g.tls = tls
		for _, m := range g.members {
			if m.endpoint.Load() == nil {
				unresolved = append(unresolved, m.Server)
			}
		}
		s.add(g)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	if len(unresolved) > 0 {
		resolveAll(unresolved, env.Events)
	}
	return s, nil
}

func (s *Set) add(g *Group) {
	s.groups[g.opts.Name] = g
	s.order = append(s.order, g)
}

func newGroup(env *Env, o Options, before *Group) *Group {
	g := &Group{opts: o, retries: o.Retries, views: make([]view, env.Loops), connect: newConnectHistogram()}
	switch {
	case o.Retries == 0:
		g.retries = DefaultRetries
	case o.Retries < 0:
		g.retries = 0
	}
	type identity struct {
		name string
		addr Address
	}
	known := map[identity]*Server{}
	if before != nil {
		g.connect = before.connect
		for _, m := range before.members {
			known[identity{m.Name, m.Address}] = m.Server
		}
	}
	g.members = make([]*member, len(o.Servers))
	for i, so := range o.Servers {
		sv := known[identity{so.Name, so.Address}]
		if sv == nil {
			sv = newServer(o.Name, so)
		}
		g.members[i] = &member{Server: sv, opts: so}
	}
	g.keyed = g.keyedTiers(before)
	return g
}

// Group returns the group of that name, nil if there is none.
func (s *Set) Group(name string) *Group { return s.groups[name] }

// Commit makes s the set in use instead of old, which may be nil. It cannot fail.
func (s *Set) Commit(old *Set) {
	kept := map[*Server]bool{}
	for _, g := range s.order {
		for _, m := range g.members {
			kept[m.Server] = true
		}
	}
	if old != nil {
		for _, g := range old.order {
			if s.groups[g.opts.Name] == g {
				continue
			}
			g.stopResolving()
			for _, m := range g.members {
				if !kept[m.Server] {
					m.unwatch()
				}
			}
		}
	}
	for _, g := range s.order {
		if old != nil && old.groups[g.opts.Name] == g {
			continue
		}
		for _, m := range g.members {
			m.group.Store(g)
			m.watch(s.env, g.opts.Health)
		}
		g.startResolving(s.env.Events)
	}
}

// Close stops checks and look-ups and waits until none is reported any more.
func (s *Set) Close() {
	for _, g := range s.order {
		g.stopResolving()
		for _, m := range g.members {
			m.unwatch()
		}
	}
}

// Stats returns what all groups have counted, in the order of the configuration.
func (s *Set) Stats() []Stats {
	out := make([]Stats, len(s.order))
	for i, g := range s.order {
		out[i] = g.Stats()
	}
	return out
}

// resolving is the goroutine that keeps looking host names up.
type resolving struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
}

func (g *Group) startResolving(events Events) {
	ctx, cancel := context.WithCancel(context.Background())
	g.resolving = &resolving{cancel: cancel}
	g.resolving.done.Go(func() { g.keepResolving(ctx, events) })
}

func (g *Group) stopResolving() {
	if g.resolving != nil {
		g.resolving.cancel()
		g.resolving.done.Wait()
		g.resolving = nil
	}
}
