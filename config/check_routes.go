package config

import (
	"fmt"
	"slices"

	"github.com/hashicorp/hcl/v2"

	"edgeproxy/internal/sniff"
	"edgeproxy/listener"
	"edgeproxy/tlsterm"
)

func (l *loader) checkRoutes(n *listenerNode, tlsByName map[string]*tlsNode, used uses) {
	switch {
	case n.partial:
	case n.has("upstream") && len(n.routes) > 0:
		l.d.errorf(n.at("upstream"), "Put it into a last route without match: route \"rest\" { upstream = … }",
			"listener %q has both an upstream and routes", n.name)
	case !n.has("upstream") && len(n.routes) == 0:
		l.d.errorf(n.header, "Write upstream = upstream.NAME to send all sessions there, or route blocks.",
			"listener %q has neither an upstream nor routes", n.name)
	}
	if n.has("tls") && len(n.routes) > 0 {
		l.d.errorf(n.at("tls"), "Put it into each route whose sessions are to be terminated; the others are passed through.",
			"listener %q has both tls and routes", n.name)
	}
	used.tls[n.tls] = true
	if len(n.routes) == 0 {
		if n.upstream != "" {
			used.upstream(n.upstream, n)
			n.opts.Routes = []listener.RouteOptions{{Splits: []listener.Split{{Upstream: n.upstream, Weight: 1}}, TLS: n.tls}}
		}
		return
	}
	var catchAll *routeNode
	earlier := newShadows(n.opts.Network)
	n.opts.Routes = make([]listener.RouteOptions, 0, len(n.routes))
	for _, r := range n.routes {
		said := len(l.d.list)
		l.checkMatches(n, r, tlsByName[r.tls])
		used.tls[r.tls] = true
		n.opts.Routes = append(n.opts.Routes, l.route(n, r, used))
		sound := len(l.d.list) == said && !r.bad && !r.partial
		switch {
		case catchAll != nil && earlier.sure(catchAll, r):
			l.d.warnf(r.header, firstWins, "route %q is never reached: route %q at %s takes every session", r.name, catchAll.name, place(catchAll.header))
		case r.matchesAll():
			if catchAll == nil {
				catchAll = r
			}
		case sound:
			if by := earlier.covering(r); by != nil {
				l.d.warnf(r.header, firstWins, "route %q is never reached: route %q at %s takes all of its sessions", r.name, by.name, place(by.header))
			} else {
				earlier.add(r)
			}
		}
	}
}

const firstWins = "Routes are tried in the order of the file, the first that matches wins."

func (r *routeNode) matchesAll() bool {
	for _, m := range r.matches {
		if !m.partial && len(m.attrs) == 0 {
			return true
		}
	}
	return len(r.matches) == 0 && !r.partial
}

func (l *loader) route(n *listenerNode, r *routeNode, used uses) listener.RouteOptions {
	out := listener.RouteOptions{Name: r.name, Reject: r.reject, TLS: r.tls}
	for _, m := range r.matches {
		l.checkEmpty(m, "source", len(m.match.Source))
		l.checkEmpty(m, "port", len(m.match.Port))
		out.Match = append(out.Match, m.match)
	}
	ways := btoi(r.has("upstream")) + btoi(len(r.splits) > 0) + btoi(r.reject)
	switch {
	case r.partial:
	case ways == 0 && !r.bad:
		l.d.errorf(r.header, "Write one of: upstream = upstream.NAME, split { … } blocks, reject = true.",
			"route %q does not say where its sessions go", r.name)
	case ways > 1:
		l.d.errorf(r.header, "Keep one of upstream, split and reject.", "route %q says more than once where its sessions go", r.name)
	}
	if r.upstream != "" {
		used.upstream(r.upstream, n)
		out.Splits = []listener.Split{{Upstream: r.upstream, Weight: 1}}
	}
	sum := 0
	for _, s := range r.splits {
		used.upstream(s.split.Upstream, n)
		sum += s.split.Weight
		out.Splits = append(out.Splits, s.split)
	}
	if len(r.splits) > 0 && sum == 0 {
		l.d.errorf(r.splits[0].header, "Give at least one of them a weight above 0.", "the splits of route %q all have weight 0", r.name)
	}
	return out
}

// checkEmpty refuses an empty list, also one that an expression has made: it
// is a mistake rather than "matches nothing", and must not match all.
func (l *loader) checkEmpty(m *matchNode, attr string, decoded int) {
	if decoded == 0 && !m.bad && m.has(attr) {
		l.d.errorf(m.at(attr), "Leave the attribute out, or make it null, to match all.", "%s: the list is empty", attr)
	}
}

// checkMatches refuses conditions that cannot hold together, or not in a route
// that terminates TLS by t (nil if it does not, or t is not known).
func (l *loader) checkMatches(n *listenerNode, r *routeNode, t *tlsNode) {
	for _, m := range r.matches {
		if n.opts.Network == listener.TCP {
			l.checkConditions(m)
		}
		if m.has("client_name") && !r.partial {
			switch {
			case !r.has("tls"):
				l.d.errorf(m.at("client_name"), "Write tls = tls.NAME in the route: certificates of clients are only seen where TLS is terminated.",
					"client_name: route %q passes TLS through", r.name)
			case t != nil && t.opts.ClientAuth.Mode == tlsterm.ClientAuthNone && !t.partial && (t.clientAuth == nil || !t.clientAuth.bad && !t.clientAuth.partial):
				l.d.errorf(m.at("client_name"), fmt.Sprintf("Add to tls %q: client_auth { mode = \"require\", ca_file = … }", t.name),
					"client_name: tls %q asks clients for no certificate", t.name)
			}
		}
		if !r.has("tls") {
			continue
		}
		for _, a := range []string{"host", "path"} {
			if m.has(a) {
				l.d.errorf(m.at(a), "It looks at requests that are not encrypted; for TLS write sni. To route decrypted requests, put an HTTP proxy behind edgeproxy.",
					"%s: route %q terminates TLS", a, r.name)
			}
		}
		for i, p := range m.match.Protocol {
			if p != sniff.TLS && p != sniff.Postgres && !m.bad {
				l.d.errorf(m.protocolAt(i), "A route with tls begins with a handshake, either at once (\"tls\") or when PostgreSQL's client asks for it (\"postgres\"). Give what is not encrypted a route without tls.",
					"protocol: %q cannot be terminated as TLS", p.String())
			}
		}
		if t != nil && !t.bad && !t.partial && m.has("alpn") && !m.bad {
			l.checkALPN(m, t)
		}
	}
}

func (l *loader) checkALPN(m *matchNode, t *tlsNode) {
	for i, p := range m.match.ALPN {
		switch {
		case len(t.opts.ALPN) == 0:
			l.d.warnf(m.at("alpn"), fmt.Sprintf("Add alpn to tls %q, or client and server will fall back to what they speak without.", t.name),
				"alpn: tls %q negotiates no protocol", t.name)
			return
		case !slices.Contains(t.opts.ALPN, p):
			l.d.warnf(element(m.attrs["alpn"].Expr, i), fmt.Sprintf("It has: %s. Clients that offer nothing else are refused.", anyOf(t.opts.ALPN, "and")),
				"alpn: tls %q does not offer %q", t.name, p)
		}
	}
}

// checkConditions refuses a match that no session can meet. Over UDP there is
// none: all that can be asked for is of QUIC.
func (l *loader) checkConditions(m *matchNode) {
	if m.bad || m.partial {
		return
	}
	first := func(names ...string) string {
		for _, a := range names {
			if m.has(a) {
				return a
			}
		}
		return ""
	}
	ofTLS, ofHTTP := first("sni", "alpn", "client_name"), first("host", "path")
	if ofTLS != "" && ofHTTP != "" {
		l.d.errorf(m.at(ofHTTP), fmt.Sprintf("%s is of TLS, %s of HTTP/1 that is not encrypted. Of two match blocks in a route one is enough.", ofTLS, ofHTTP),
			"%s and %s never hold together", ofTLS, ofHTTP)
		return
	}
	has := func(p sniff.Protocol) bool { return slices.Contains(m.match.Protocol, p) }
	if ofTLS != "" && m.has("protocol") && !has(sniff.TLS) && !(has(sniff.Postgres) && ofTLS == "client_name") {
		l.d.errorf(m.at("protocol"), fmt.Sprintf("%s is of TLS; leave protocol out.", ofTLS), "%s and this protocol never hold together", ofTLS)
	}
	if ofHTTP != "" && m.has("protocol") && !has(sniff.HTTP) {
		l.d.errorf(m.at("protocol"), fmt.Sprintf("%s is of HTTP; leave protocol out.", ofHTTP), "%s and this protocol never hold together", ofHTTP)
	}
}

// protocolAt is the place of a protocol, which were sorted when they were read.
func (m *matchNode) protocolAt(i int) hcl.Range {
	expr := m.attrs["protocol"].Expr
	list, diags := hcl.ExprList(expr)
	if diags.HasErrors() {
		return expr.Range()
	}
	for _, e := range list {
		if v, diags := e.Value(nil); !diags.HasErrors() && v.IsKnown() && show(v) == quote(m.match.Protocol[i].String()) {
			return e.Range()
		}
	}
	return expr.Range()
}
