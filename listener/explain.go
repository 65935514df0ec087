package listener

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"edgeproxy/internal/sniff"
	"edgeproxy/upstream"
)

// Question is a session that might begin.
type Question struct {
	Source netip.AddrPort // of the client, behind a PROXY header if there is to be one
	// Destination is what the client sends to; invalid: where the listener
	// listens, if that leaves no doubt.
	Destination netip.AddrPort
	Protocol    string // what its first bytes are, by name; "": what the rest implies
	SNI         string
	ALPN        []string
	Host, Path  string   // of an HTTP/1 request
	ClientNames []string // that its verified certificate bears
}

// BadQuestion is an error of whoever asks.
type BadQuestion struct {
	What string // the part of the question: source, destination, protocol …
	Err  error
}

func (e *BadQuestion) Error() string { return e.What + ": " + e.Err.Error() }
func (e *BadQuestion) Unwrap() error { return e.Err }

func bad(what, format string, args ...any) error {
	return &BadQuestion{what, fmt.Errorf(format, args...)}
}

// Explanation is what would become of the session.
type Explanation struct {
	Listener    string `json:"listener"`
	Network     string `json:"network"`
	Source      string `json:"source"`
	Destination string `json:"destination,omitempty"`
	Protocol    string `json:"protocol"`
	// End is why the session would be refused, as the access log has it; "": it
	// would not. Why says it in words.
	End string `json:"end,omitempty"`
	Why string `json:"why,omitempty"`

	Route     string             `json:"route,omitempty"` // chosen; "" also where a listener has a single one without a name
	Routes    []RouteExplanation `json:"routes,omitempty"`
	TLS       string             `json:"tls,omitempty"` // block that terminates the session
	Upstreams []UpstreamShare    `json:"upstreams,omitempty"`
	Notes     []string           `json:"notes,omitempty"` // on what the answer takes for granted
}

// RouteExplanation is why a route is the one, or is not.
type RouteExplanation struct {
	Name   string `json:"name,omitempty"`
	Chosen bool   `json:"chosen,omitempty"`
	// Holds is that it would be chosen were no other before it.
	Holds bool `json:"holds"`
	// Fails is, for each match, the first condition that does not hold; "" in
	// the place of a match that does.
	Fails []string `json:"fails,omitempty"`
}

// UpstreamShare is one of the upstreams that a route splits its sessions among.
type UpstreamShare struct {
	Percent float64 `json:"percent"`
	upstream.Explanation
}

// Explain tells what a listener with these options does with a session, by the
// same tables that decide about real ones. Whatever only a running proxy knows
// is taken as good: servers are up, limits not reached, handshakes succeed. An
// error is a [*BadQuestion].
func Explain(o *Options, upstreams []upstream.Options, q Question) (*Explanation, error) {
	groups := map[string]*upstream.Group{}
	for i := range o.Routes {
		for _, s := range o.Routes[i].Splits {
			n := slices.IndexFunc(upstreams, func(u upstream.Options) bool { return u.Name == s.Upstream })
			if n >= 0 && groups[s.Upstream] == nil {
				groups[s.Upstream] = upstream.Sketch(upstreams[n])
			}
		}
	}
	x := explaining{t: newTable(o, func(name string) *upstream.Group { return groups[name] }), q: q}
	if err := x.ask(); err != nil {
		return nil, err
	}
	q = x.q
	e := &x.Explanation
	e.Listener, e.Network, e.Source, e.Protocol = o.Name, o.Network.String(), q.Source.String(), x.info.Protocol.String()
	if x.assumed {
		e.Destination = addressList(o.Addresses)
	} else if x.destination.IsValid() {
		e.Destination = x.destination.String()
	}
	if x.t.proxied(q.Source.Addr()) {
		x.note("sessions from %v begin with a PROXY header; the source is taken to be what that header says", q.Source.Addr())
	}
	if !x.t.allowed(q.Source.Addr()) {
		x.refuse(Denied, "%s", x.whyDenied())
		return e, nil
	}
	return e, x.route()
}

// explaining is a question on its way to an answer.
type explaining struct {
	Explanation
	t           *table
	q           Question
	destination netip.AddrPort // its address may be missing
	assumed     bool           // the destination was not given
	info        sniff.Info
	facts       facts
}

func (x *explaining) note(format string, args ...any) {
	x.Notes = append(x.Notes, fmt.Sprintf(format, args...))
}

func (x *explaining) refuse(end End, format string, args ...any) {
	x.End, x.Why = end.String(), fmt.Sprintf(format, args...)
}

// ask makes facts of the question.
func (x *explaining) ask() error {
	q := &x.q
	if !q.Source.IsValid() {
		return bad("source", "it is missing; write IP:PORT")
	}
	q.Source = netip.AddrPortFrom(q.Source.Addr().Unmap(), q.Source.Port())
	if err := x.speak(); err != nil {
		return err
	}
	port, err := x.arrive()
	if err != nil {
		return err
	}
	x.facts = facts{source: q.Source.Addr(), port: port, info: &x.info}
	return nil
}

// speak decides on the client's first bytes.
func (x *explaining) speak() error {
	q, in := &x.q, &x.info
	hello, streams := sniff.TLS, sniff.Names()
	if x.t.opts.Network == UDP {
		hello, streams = sniff.QUIC, []string{sniff.QUIC.String()}
	}
	isHello, isHead := q.SNI != "" || len(q.ALPN) > 0 || len(q.ClientNames) > 0, q.Host != "" || q.Path != ""
	switch {
	case q.Protocol != "":
		if !slices.Contains(streams, q.Protocol) {
			return bad("protocol", "%q is not one that this %s listener knows: %s", q.Protocol, x.t.opts.Network, strings.Join(streams, ", "))
		}
		in.Protocol, _ = sniff.ParseProtocol(q.Protocol)
	case isHello && isHead:
		return bad("host", "a client begins with a TLS ClientHello or with an HTTP request, not with both")
	case isHello:
		in.Protocol = hello
	case isHead:
		in.Protocol = sniff.HTTP
	}
	if isHello && in.Protocol != hello {
		return bad("protocol", "a client that begins with %s has no SNI, ALPN and certificate", in.Protocol)
	}
	if isHead && (in.Protocol != sniff.HTTP || x.t.opts.Network == UDP) {
		return bad("protocol", "only a client that begins with http has a host and a path, not %s", in.Protocol)
	}
	if _, err := netip.ParseAddr(q.SNI); err == nil {
		return bad("sni", "%q is an IP address, which is no server name (RFC 6066, section 3)", q.SNI)
	}
	name := func(s string) []byte { return []byte(strings.ToLower(strings.TrimSuffix(s, "."))) }
	in.ServerName, in.Host, in.Path = name(q.SNI), name(q.Host), []byte(q.Path)
	for _, p := range q.ALPN {
		if len(p) == 0 || len(p) > 255 {
			return bad("alpn", "%q is not 1 to 255 bytes long (RFC 7301, section 3.1)", p)
		}
		in.ALPN = append(append(in.ALPN, byte(len(p))), p...)
	}
	return nil
}

// arrive decides on the destination, and on the port of the socket that takes
// the session.
func (x *explaining) arrive() (port uint16, err error) {
	o, to := x.t.opts, x.q.Destination
	if to.IsValid() {
		to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
		x.destination = to
		fits := func(a Address) bool {
			return a.Systemd != "" || a.Unix == "" && (a.AddrPort.Port() == 0 || a.Overlaps(Address{AddrPort: to}))
		}
		if slices.ContainsFunc(o.Addresses, fits) {
			return to.Port(), nil
		}
		if len(o.AcceptProxy) == 0 {
			return 0, bad("destination", "listener %q does not listen on %v; its addresses are %s", o.Name, to, addressList(o.Addresses))
		}
		// What a PROXY header says; conditions on the port are about the socket.
	}
	ports := map[uint16]bool{}
	for _, a := range o.Addresses {
		ports[a.AddrPort.Port()] = true
	}
	asks := slices.ContainsFunc(o.Routes, func(r RouteOptions) bool {
		return slices.ContainsFunc(r.Match, func(m Match) bool { return len(m.Port) > 0 })
	})
	if asks && len(ports) > 1 {
		return 0, bad("destination", "routes go by the port, and listener %q has several; name one of %s", o.Name, addressList(o.Addresses))
	}
	if len(o.Addresses) == 0 {
		return 0, nil
	}
	at := o.Addresses[0].AddrPort
	if !to.IsValid() {
		x.assumed = true
		x.destination = at
	}
	return at.Port(), nil
}

func addressList(addresses []Address) string {
	texts := make([]string, len(addresses))
	for i, a := range addresses {
		texts[i] = a.String()
	}
	return list(texts)
}

// route finds the route, as session.choose does: again with the names in the
// client's certificate where routes ask for them.
func (x *explaining) route() error {
	t, f := x.t, &x.facts
	n := t.route(f)
	if n >= 0 && t.routes[n].opts.TLS != "" && !t.routes[n].opts.Reject {
		x.TLS = t.routes[n].opts.TLS
		if t.reverify && x.mayBeTLS() {
			f.tls, f.names = x.TLS, x.q.ClientNames
			n = t.route(f)
		}
	}
	for i := range t.routes {
		x.Routes = append(x.Routes, x.explainRoute(i))
	}
	if n < 0 {
		x.refuse(NoRoute, "no route matches")
		return nil
	}
	x.Routes[n].Chosen = true
	r := &t.routes[n]
	if x.Route = r.opts.Name; r.opts.Reject {
		x.refuse(Denied, "route %q rejects", r.opts.Name)
		return nil
	}
	switch {
	case x.TLS == "":
	case !x.mayBeTLS():
		x.refuse(TLSFailed, "tls.%s terminates the session, but the client begins with %s", x.TLS, x.info.Protocol)
		return nil
	case x.info.Protocol == sniff.Unknown:
		x.note("tls.%s terminates the session: a client that begins with anything but TLS is refused", x.TLS)
	}
	return x.share(r)
}

// mayBeTLS reports whether a handshake can follow what the client begins with.
func (x *explaining) mayBeTLS() bool {
	switch x.info.Protocol {
	case sniff.TLS, sniff.Postgres, sniff.Unknown: // Unknown is: nobody has said
		return true
	}
	return false
}

// share tells of the upstreams that the route leads to.
func (x *explaining) share(r *route) error {
	c := upstream.Client{Source: x.q.Source, Local: x.destination, SNI: string(x.info.ServerName)}
	servers := 0
	for _, s := range r.shares {
		if s.group == nil || s.weight == 0 {
			continue
		}
		if s.group.Options().NeedsDestination() && x.assumed {
			if a := x.destination.Addr(); !a.IsValid() || a.IsUnspecified() || x.destination.Port() == 0 || len(x.t.opts.Addresses) > 1 {
				return bad("destination", "upstream %q chooses by it, and listener %q takes sessions to more than one", s.group.Options().Name, x.t.opts.Name)
			}
		}
		u := UpstreamShare{Percent: 100 * float64(s.weight) / float64(r.total), Explanation: s.group.Explain(c)}
		x.Upstreams = append(x.Upstreams, u)
		for _, t := range u.Tiers {
			servers += len(t.Servers)
		}
	}
	if servers == 0 {
		x.refuse(NoServer, "no server has a weight")
	}
	return nil
}
