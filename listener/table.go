package listener

import (
	"math/rand/v2"
	"net/netip"
	"time"

	"edgeproxy/upstream"
)

// table is what a listener decides by: an immutable snapshot of one
// configuration. Sessions keep the one they began with.
type table struct {
	opts   *Options
	routes []route
	limits *limiter // nil: none that needs state
	// Timeouts with the defaults filled in; 0: off.
	handshake, idle, halfClose, lifetime time.Duration
}

type route struct {
	opts   *RouteOptions
	shares []share
	total  int
}

type share struct {
	group  *upstream.Group
	weight int
}

func newTable(o *Options, groups func(name string) *upstream.Group) *table {
	t := &table{
		opts:      o,
		routes:    make([]route, len(o.Routes)),
		handshake: timeout(o.Timeouts.Handshake, DefaultHandshake),
		idle:      timeout(o.Timeouts.Idle, DefaultIdle),
		halfClose: timeout(o.Timeouts.HalfClose, DefaultHalfClose),
		lifetime:  timeout(o.Timeouts.Lifetime, 0),
	}
	for i := range o.Routes {
		r := &t.routes[i]
		r.opts = &o.Routes[i]
		for _, s := range r.opts.Splits {
			r.shares = append(r.shares, share{groups(s.Upstream), s.Weight})
			r.total += s.Weight
		}
	}
	return t
}

func timeout(d, def time.Duration) time.Duration {
	switch {
	case d == 0:
		return def
	case d < 0:
		return 0
	}
	return d
}

// allowed applies allow and deny. A client without an address, of a unix
// socket, is let in: the socket file's mode decides there.
func (t *table) allowed(source netip.Addr) bool {
	if !source.IsValid() {
		return true
	}
	if contains(t.opts.Deny, source) {
		return false
	}
	return len(t.opts.Allow) == 0 || contains(t.opts.Allow, source)
}

// contains ignores the zone of a link-local address, with which no prefix
// would contain it: ::/0 is to deny those clients, too.
func contains(ps []netip.Prefix, a netip.Addr) bool {
	a = a.WithZone("")
	for _, p := range ps {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// route returns the first route that matches, -1 if none does.
func (t *table) route(source netip.Addr, port uint16) int {
	for i := range t.routes {
		ms := t.routes[i].opts.Match
		if len(ms) == 0 {
			return i
		}
		for j := range ms {
			if ms[j].matches(source, port) {
				return i
			}
		}
	}
	return -1
}

func (m *Match) matches(source netip.Addr, port uint16) bool {
	if len(m.Source) > 0 && !contains(m.Source, source) {
		return false
	}
	if len(m.Port) == 0 {
		return true
	}
	for _, r := range m.Port {
		if port >= r.From && port <= r.To {
			return true
		}
	}
	return false
}

// group chooses among the route's upstreams by weight.
func (r *route) group(rnd *rand.Rand) *upstream.Group {
	if len(r.shares) == 1 {
		return r.shares[0].group
	}
	n := rnd.IntN(r.total)
	for i := range r.shares {
		if n -= r.shares[i].weight; n < 0 {
			return r.shares[i].group
		}
	}
	return r.shares[0].group // not reached: the weights add up to total
}
