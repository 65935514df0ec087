package config

import (
	"net/netip"
	"time"

	"edgeproxy/internal/sniff"
	"edgeproxy/listener"
)

type listenerNode struct {
	node
	opts     listener.Options
	bound    boundAddresses
	upstream string // where the listener has no routes
	tls      string // … and that terminates its sessions
	proxy    *proxyNode
	quic     *quicNode
	timeouts timeoutsNode
	routes   []*routeNode

	// Of something else that listens: who it is, and its attribute.
	owned, attr string
}

type timeoutsNode struct {
	node
	*listener.Timeouts
}

type proxyNode struct {
	node
	from *[]netip.Prefix
}

type quicNode struct {
	node
	idLength *int
}

type routeNode struct {
	node
	upstream string
	tls      string
	reject   bool
	splits   []*splitNode
	matches  []*matchNode
}

type splitNode struct {
	node
	split listener.Split
}

type matchNode struct {
	node
	match listener.Match
}

const year = 365 * 24 * time.Hour

// The two kinds of listeners take much in common. What only one of them has is
// in the absent tables of the other: a mistake that the message can clear up.

func openListener(n listener.Network) func(any) any {
	return in(func(r *root) *listenerNode {
		l := &listenerNode{opts: listener.Options{Network: n}}
		r.listeners = append(r.listeners, l)
		return l
	})
}

func listenAddress(n listener.Network, example string) attr {
	return attr{
		name: "address", required: true, example: example,
		doc:     "Where to listen. See [addresses](#addresses).",
		binding: to(listenAddresses(n), func(l *listenerNode) *boundAddresses { return &l.bound }),
	}
}

var listenerUpstream = attr{
	name: "upstream", example: "upstream.web",
	doc:     "All sessions go there. Not together with `route`.",
	binding: to(reference(upstreamRefs), func(l *listenerNode) *string { return &l.upstream }),
}

func allow(doc string) attr {
	return attr{
		name: "allow", def: "all", example: `["10.0.0.0/8", "192.0.2.7"]`,
		doc:     doc,
		binding: to(prefixes(), func(l *listenerNode) *[]netip.Prefix { return &l.opts.Allow }),
	}
}

var deny = attr{
	name: "deny", def: "none", example: `["10.6.6.0/24"]`,
	doc:     "Not these clients; wins over `allow`.",
	binding: to(prefixes(), func(l *listenerNode) *[]netip.Prefix { return &l.opts.Deny }),
}

func acceptProxy(doc string) *block {
	return &block{
		name: "accept_proxy_protocol",
		doc:  doc,
		open: in(func(l *listenerNode) *proxyNode {
			l.proxy = &proxyNode{from: &l.opts.AcceptProxy}
			return l.proxy
		}),
		attrs: []attr{{
			name: "from", required: true, example: `["10.0.0.0/8"]`,
			doc:     "Who is trusted to say whom it speaks for: the balancers in front, and nobody else.",
			binding: to(prefixes(), func(p *proxyNode) *[]netip.Prefix { return p.from }),
		}},
	}
}

func openLimits(l *listenerNode) *listener.Limits { return &l.opts.Limits }

// limitsCommon are the limits of every kind of listener.
var limitsCommon = []attr{
	{
		name: "connections", def: "no limit", example: "100000",
		doc:     "Sessions at one time.",
		binding: to(whole(0, 1_000_000_000), func(l *listener.Limits) *int { return &l.Connections }),
	},
	{
		name: "connections_per_source", def: "no limit", example: "200",
		doc:     "Sessions at one time from one source.",
		binding: to(whole(0, 1_000_000_000), func(l *listener.Limits) *int { return &l.ConnectionsPerSource }),
	},
	{
		name: "rate", def: "no limit", example: `"5000/s"`,
		doc:     "New sessions.",
		binding: to(rate(), func(l *listener.Limits) *float64 { return &l.Rate }),
	},
	{
		name: "rate_per_source", def: "no limit", example: `"50/s"`,
		doc:     "New sessions from one source.",
		binding: to(rate(), func(l *listener.Limits) *float64 { return &l.RatePerSource }),
	},
	{
		name: "bandwidth_in", def: "no limit", example: `"10MB/s"`,
		doc:     "Bytes from the client to the server, of each session.",
		binding: to(bandwidth(), func(l *listener.Limits) *int64 { return &l.BandwidthIn }),
	},
	{
		name: "bandwidth_out", def: "no limit", example: `"10MB/s"`,
		doc:     "Bytes from the server to the client, of each session.",
		binding: to(bandwidth(), func(l *listener.Limits) *int64 { return &l.BandwidthOut }),
	},
}

func openTimeouts(l *listenerNode) *timeoutsNode {
	l.timeouts.Timeouts = &l.opts.Timeouts
	return &l.timeouts
}

func timeout(name, def, example, doc string, field func(*timeoutsNode) *time.Duration) attr {
	return attr{name: name, def: def, example: example, doc: doc, binding: to(duration(time.Millisecond, year, true), field)}
}

func openRoute(l *listenerNode) *routeNode {
	r := new(routeNode)
	l.routes = append(l.routes, r)
	return r
}

var (
	routeUpstream = attr{
		name: "upstream", example: "upstream.web",
		doc:     "All sessions of the route go there.",
		binding: to(reference(upstreamRefs), func(r *routeNode) *string { return &r.upstream }),
	}
	routeReject = attr{
		name: "reject", def: "false", example: "",
		doc:     "Sessions of the route are closed with `denied`.",
		binding: to(boolean(), func(r *routeNode) *bool { return &r.reject }),
	}
)

const matchDoc = "Conditions that must all hold. Of several `match` blocks one is enough; a route without any takes every session."

func openMatch(r *routeNode) *matchNode {
	m := new(matchNode)
	r.matches = append(r.matches, m)
	return m
}

func matchSNI(doc string) attr {
	return attr{
		name: "sni", def: "all", example: `["example.com", "*.example.com"]`,
		doc:     doc + "; `*.example.com` is every name below example.com, at any depth. Case does not matter, names beyond ASCII may be written as they are.",
		binding: to(patterns(), func(m *matchNode) *[]string { return &m.match.SNI }),
	}
}

func matchALPN(doc, example string) attr {
	return attr{
		name: "alpn", def: "all", example: example, doc: doc,
		binding: to(alpnNames(), func(m *matchNode) *[]string { return &m.match.ALPN }),
	}
}

func matchProtocol(n listener.Network, doc string) attr {
	return attr{
		name: "protocol", def: "all", doc: doc,
		binding: to(protocols(n), func(m *matchNode) *[]sniff.Protocol { return &m.match.Protocol }),
	}
}

func matchSource(doc string) attr {
	return attr{
		name: "source", def: "all", example: `["10.0.0.0/8"]`, doc: doc,
		binding: to(prefixes(), func(m *matchNode) *[]netip.Prefix { return &m.match.Source }),
	}
}

func matchPort(doc string) attr {
	return attr{
		name: "port", def: "all", example: `[443, "8000-8010"]`, doc: doc,
		binding: to(ports(), func(m *matchNode) *[]listener.PortRange { return &m.match.Port }),
	}
}

var splitBlock = &block{
	name: "split", many: true,
	doc: "A share of the route's sessions. Each session is drawn on its own; shares are the weights divided by their sum.",
	open: in(func(r *routeNode) *splitNode {
		s := &splitNode{split: listener.Split{Weight: 1}}
		r.splits = append(r.splits, s)
		return s
	}),
	attrs: []attr{
		{
			name: "upstream", required: true, example: "upstream.web",
			doc:     "Where the share goes.",
			binding: to(reference(upstreamRefs), func(s *splitNode) *string { return &s.split.Upstream }),
		},
		{
			name: "weight", def: "1", example: "95",
			doc:     "The share; 0 sends nothing.",
			binding: to(whole(0, 1_000_000), func(s *splitNode) *int { return &s.split.Weight }),
		},
	},
}
