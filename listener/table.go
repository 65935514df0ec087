package listener

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"edgeproxy/internal/sniff"
	"edgeproxy/tlsterm"
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

	entries   []entry    // those that sni and host know
	nameless  []entry    // the others, in order
	sni, host *nameIndex // nil: no such condition
	alpn      alpnBits
	want      sniff.Set // all that is ever sniffed
	steps     []step
	reverify  bool // some route asks for names in the client's certificate

	opening       bool          // some sessions have more to do than to connect: see session.admit
	terminates    bool          // some route has TLS
	sniffTimeout  time.Duration // 0: off
	handshakeRate rule

	quicServers map[string]quicEntry // by the server ids of the configuration
}

var defaultIdle = [...]time.Duration{TCP: DefaultIdle, UDP: DefaultUDPIdle}

type route struct {
	opts   *RouteOptions
	shares []share
	total  int
	named  bool             // some upstream chooses servers by the server name
	tls    *tlsterm.Context // nil: passed through
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
		idle:      timeout(o.Timeouts.Idle, defaultIdle[o.Network]),
		halfClose: timeout(o.Timeouts.HalfClose, DefaultHalfClose),
		lifetime:  timeout(o.Timeouts.Lifetime, 0),
	}
	for i := range o.Routes {
		r := &t.routes[i]
		r.opts = &o.Routes[i]
		for _, s := range r.opts.Splits {
			g := groups(s.Upstream)
			r.shares = append(r.shares, share{g, s.Weight})
			r.total += s.Weight
			r.named = r.named || g != nil && g.Options().NeedsName()
		}
	}
	t.index()
	t.indexQUICServers()
	return t
}

// index prepares what route and sniffs look at.
func (t *table) index() {
	var names, hosts, entries int
	for i := range t.routes {
		for j := range t.routes[i].opts.Match {
			m := &t.routes[i].opts.Match[j]
			names += len(m.SNI)
			hosts += len(m.Host)
			entries++
		}
	}
	sni, host := make([]named, 0, names), make([]named, 0, hosts)
	if names+hosts > 0 {
		t.entries = make([]entry, 0, entries)
	}
	for i := range t.routes {
		o := t.routes[i].opts
		if len(o.Match) == 0 {
			t.nameless = append(t.nameless, entry{route: int32(i)})
		}
		for j := range o.Match {
			m := &o.Match[j]
			e := entry{match: m, route: int32(i), alpn: t.alpn.add(m.ALPN)}
			e.where = len(m.Source)+len(m.Port) > 0
			e.more = len(m.ALPN)+len(m.Path)+len(m.Protocol)+len(m.ClientName) > 0
			t.reverify = t.reverify || len(m.ClientName) > 0
			if len(m.SNI)+len(m.Host) == 0 {
				t.nameless = append(t.nameless, e)
				continue
			}
			n := int32(len(t.entries))
			t.entries = append(t.entries, e)
			switch {
			case len(m.Host) == 0:
				for _, name := range m.SNI {
					sni = append(sni, named{name, n})
				}
			case len(m.SNI) == 0:
				for _, name := range m.Host {
					host = append(host, named{name, n})
				}
			}
			// With both it is in neither: one is of TLS, the other of plain text.
		}
	}
	t.sni, t.host = newNameIndex(sni), newNameIndex(host)
	t.plan()
}

// plan writes down in what order sniffs must ask: of 100 000 routes by SNI on
// any address only the first one matters.
func (t *table) plan() {
	var always sniff.Set // wanted of every session that gets this far
	var pending []string // tls blocks of the routes so far that a certificate may rule out
	add := func(o *RouteOptions, m *Match, want sniff.Set) (last bool) {
		if want == 0 && slices.ContainsFunc(pending, func(tls string) bool { return tls != o.TLS }) {
			return false // not for sessions that are asked about again
		}
		s := step{match: m, want: want}
		if m != nil && len(m.Source)+len(m.Port) == 0 {
			s.match = nil
			always |= want
		}
		t.want |= want
		t.steps = append(t.steps, s)
		return s.match == nil && want == 0
	}
	defer func() {
		if t.want == 0 {
			t.steps = nil
		}
	}()
	for i := range t.routes {
		o := t.routes[i].opts
		var name sniff.Set // whatever the match asks for
		if t.routes[i].named {
			name = name.With(sniff.TLS)
		}
		if len(o.Match) == 0 && add(o, nil, name) {
			return
		}
		for j := range o.Match {
			m := &o.Match[j]
			want := m.sniffs() | name
			if len(m.ClientName) > 0 {
				if o.TLS == "" {
					continue // never holds
				}
				if !slices.Contains(pending, o.TLS) {
					pending = append(pending, o.TLS)
				}
				if want == 0 {
					continue
				}
			}
			if want != 0 && want|always == always {
				continue
			}
			if add(o, m, want) {
				return
			}
		}
	}
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

// proxied reports whether sessions from source begin with a PROXY header.
func (t *table) proxied(source netip.Addr) bool { return contains(t.opts.AcceptProxy, source) }

// route returns the first route that matches, -1 if none does. Before
// termination a client's certificate is not known: routes that ask for names in
// it match if all else does, and are to be asked again with facts.tls set.
//
// It is what trying the routes one by one would find. Rules with names are
// looked up, the others tried in order; the smallest number of all wins.
func (t *table) route(f *facts) int {
	none := int32(len(t.routes))
	best, offered := none, uint64(0)
	if f.info != nil {
		offered = t.alpn.offered(f.info)
		best = t.routeByName(f, offered)
	}
	for i := range t.nameless {
		e := &t.nameless[i]
		if e.route >= best {
			break
		}
		if t.matches(e, f, offered) {
			return int(e.route)
		}
	}
	if best == none {
		return -1
	}
	return int(best)
}

// routeByName returns the first route with names that matches, the number of
// all routes if none does.
func (t *table) routeByName(f *facts, offered uint64) int32 {
	best := int32(len(t.routes))
	try := func(list []int32) {
		for _, i := range list {
			e := &t.entries[i]
			if e.route >= best {
				return
			}
			if t.matches(e, f, offered) {
				best = e.route
				return
			}
		}
	}
	if t.sni != nil && len(f.info.ServerName) > 0 {
		t.sni.lookup(f.info.ServerName, try)
	}
	if t.host != nil && len(f.info.Host) > 0 {
		t.host.lookup(f.info.Host, try)
	}
	return best
}

// sniffs returns what the first bytes of a session must be searched for before
// it can be routed; 0 if its addresses decide already. Only those are asked.
func (t *table) sniffs(f *facts) (want sniff.Set) {
	for i := range t.steps {
		s := &t.steps[i]
		if s.match != nil && !s.match.reaches(f.source, f.port) {
			continue
		}
		if want |= s.want; s.want == 0 || want == t.want {
			break
		}
	}
	return want
}

// step is a match as sniffs sees it.
type step struct {
	match *Match    // nil: no condition on addresses
	want  sniff.Set // 0: it holds, whatever the bytes are
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
