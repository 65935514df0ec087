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

var listenerBlock = &block{
	name: "listener", kind: "tcp", named: true, many: true, sample: "edge",
	doc: "Takes TCP connections on its addresses and sends each by a route to an upstream. " +
		"A listener has either `route` blocks, or an `upstream` for all of it.",
	open: in(func(r *root) *listenerNode {
		l := new(listenerNode)
		r.listeners = append(r.listeners, l)
		return l
	}),
	attrs: []attr{
		{
			name: "address", required: true, example: `[":443", "unix:/run/edge.sock"]`,
			doc:     "Where to listen. See [addresses](#addresses).",
			binding: to(listenAddresses(), func(l *listenerNode) *boundAddresses { return &l.bound }),
		},
		{
			name: "upstream", example: "upstream.web",
			doc:     "All sessions go there. Not together with `route`.",
			binding: to(reference(upstreamRefs), func(l *listenerNode) *string { return &l.upstream }),
		},
		{
			name: "tls", def: "passed through", example: "tls.public",
			doc:     "All sessions are terminated by this `tls` block. Not together with `route`: there each route says it.",
			binding: to(reference(tlsRefs), func(l *listenerNode) *string { return &l.tls }),
		},
		{
			name: "allow", def: "all", example: `["10.0.0.0/8", "192.0.2.7"]`,
			doc:     "Only these clients; others are closed with `denied`. Clients on unix sockets are not asked.",
			binding: to(prefixes(), func(l *listenerNode) *[]netip.Prefix { return &l.opts.Allow }),
		},
		{
			name: "deny", def: "none", example: `["10.6.6.0/24"]`,
			doc:     "Not these clients; wins over `allow`.",
			binding: to(prefixes(), func(l *listenerNode) *[]netip.Prefix { return &l.opts.Deny }),
		},
	},
	blocks: []*block{acceptProxyBlock, limitsBlock, timeoutsBlock, clientTCPBlock, routeBlock},
}

var acceptProxyBlock = &block{
	name: "accept_proxy_protocol",
	doc: "Sessions from these addresses must begin with a PROXY header, v1 or v2, and have the source and destination that it says; one without ends with `bad_proxy_header`. " +
		"From elsewhere a header ends so, too. See [PROXY protocol](tls.md#proxy-protocol).",
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

var limitsBlock = &block{
	name: "limits",
	doc:  "What a listener takes. A session over a limit is closed with `limited`. A source is one IPv4 address or one IPv6 /64.",
	open: in(func(l *listenerNode) *listener.Limits { return &l.opts.Limits }),
	attrs: []attr{
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
		{
			name: "handshakes", def: "no limit", example: "1000",
			doc:     "TLS handshakes under way at one time.",
			binding: to(whole(0, 1_000_000_000), func(l *listener.Limits) *int { return &l.Handshakes }),
		},
		{
			name: "handshake_rate", def: "no limit", example: `"500/s"`,
			doc:     "TLS handshakes begun.",
			binding: to(rate(), func(l *listener.Limits) *float64 { return &l.HandshakeRate }),
		},
	},
}

var timeoutsBlock = &block{
	name: "timeouts",
	doc:  "How long a session may take for what.",
	open: in(func(l *listenerNode) *timeoutsNode {
		l.timeouts.Timeouts = &l.opts.Timeouts
		return &l.timeouts
	}),
	attrs: []attr{
		{
			name: "handshake", def: `"10s"`, example: `"10s"`,
			doc:     "From accepting until a server is connected to: PROXY header, first bytes and TLS handshake together; ends with `handshake_timeout`.",
			binding: to(duration(time.Millisecond, year, true), func(t *timeoutsNode) *time.Duration { return &t.Handshake }),
		},
		{
			name: "sniff", def: "off", example: `"3s"`,
			doc:     "A client that is silent for so long is routed as one whose first bytes are unknown. For a server that speaks first, behind the last route of a port that it shares.",
			binding: to(duration(time.Millisecond, year, true), func(t *timeoutsNode) *time.Duration { return &t.Sniff }),
		},
		{
			name: "idle", def: `"1h"`, example: `"1h"`,
			doc:     "No byte in either direction; ends with `idle_timeout`.",
			binding: to(duration(time.Millisecond, year, true), func(t *timeoutsNode) *time.Duration { return &t.Idle }),
		},
		{
			name: "half_close", def: `"1m"`, example: `"1m"`,
			doc:     "No byte after one side has finished sending; ends with `half_close_timeout`.",
			binding: to(duration(time.Millisecond, year, true), func(t *timeoutsNode) *time.Duration { return &t.HalfClose }),
		},
		{
			name: "lifetime", def: "off", example: `"12h"`,
			doc:     "From accepting to the end, whatever happens; ends with `lifetime`.",
			binding: to(duration(time.Millisecond, year, true), func(t *timeoutsNode) *time.Duration { return &t.Lifetime }),
		},
	},
}

var clientTCPBlock = &block{
	name: "tcp",
	doc:  "Socket options towards the clients.",
	open: in(func(l *listenerNode) *listener.TCPOptions { return &l.opts.TCP }),
	attrs: []attr{
		{
			name: "backlog", def: "65535", example: "65535",
			doc:     "Connections that wait to be accepted. The kernel caps it at `net.core.somaxconn`.",
			binding: to(whole(0, 65535), func(t *listener.TCPOptions) *int { return &t.Backlog }),
		},
		{
			name: "keepalive", def: `"5m"`, example: `"5m"`,
			doc:     "Silence before the first keepalive probe.",
			binding: to(duration(time.Second, 9*time.Hour, true), func(t *listener.TCPOptions) *time.Duration { return &t.Keepalive }),
		},
		{
			name: "user_timeout", def: "the kernel's", example: `"30s"`,
			doc:     "Data that stays unacknowledged for so long breaks the connection (TCP_USER_TIMEOUT, RFC 5482).",
			binding: to(duration(time.Millisecond, 24*24*time.Hour, false), func(t *listener.TCPOptions) *time.Duration { return &t.UserTimeout }),
		},
		{
			name: "nodelay", def: "true", example: "true",
			doc:     "Small segments leave at once (TCP_NODELAY).",
			binding: to(negated(), func(t *listener.TCPOptions) *bool { return &t.Delay }),
		},
	},
}

var routeBlock = &block{
	name: "route", named: true, many: true, sample: "lan",
	doc: "Where sessions go that match. Routes are tried in the order of the file, the first that matches wins; a session that none matches ends with `no_route`. " +
		"Each has exactly one of `upstream`, `split` and `reject`.",
	open: in(func(l *listenerNode) *routeNode {
		r := new(routeNode)
		l.routes = append(l.routes, r)
		return r
	}),
	attrs: []attr{
		{
			name: "upstream", example: "upstream.web",
			doc:     "All sessions of the route go there.",
			binding: to(reference(upstreamRefs), func(r *routeNode) *string { return &r.upstream }),
		},
		{
			name: "tls", def: "passed through", example: "tls.public",
			doc:     "Sessions of the route are terminated by this `tls` block. Without it nothing is decrypted.",
			binding: to(reference(tlsRefs), func(r *routeNode) *string { return &r.tls }),
		},
		{
			name: "reject", def: "false", example: "",
			doc:     "Sessions of the route are closed with `denied`.",
			binding: to(boolean(), func(r *routeNode) *bool { return &r.reject }),
		},
	},
	blocks: []*block{matchBlock, splitBlock},
}

var matchBlock = &block{
	name: "match", many: true,
	doc: "Conditions that must all hold. Of several `match` blocks one is enough; a route without any takes every session.",
	open: in(func(r *routeNode) *matchNode {
		m := new(matchNode)
		r.matches = append(r.matches, m)
		return m
	}),
	attrs: []attr{
		{
			name: "sni", def: "all", example: `["example.com", "*.example.com"]`,
			doc:     "The server name that a TLS client asks for; `*.example.com` is every name below example.com, at any depth. Case does not matter, names beyond ASCII may be written as they are.",
			binding: to(patterns(), func(m *matchNode) *[]string { return &m.match.SNI }),
		},
		{
			name: "alpn", def: "all", example: `["h2"]`,
			doc:     "A TLS client offers one of these application protocols.",
			binding: to(alpnNames(), func(m *matchNode) *[]string { return &m.match.ALPN }),
		},
		{
			name: "protocol", def: "all",
			doc:     "What the client's first bytes look like. `http` is HTTP/1, and HTTP/2 without TLS.",
			binding: to(protocols(), func(m *matchNode) *[]sniff.Protocol { return &m.match.Protocol }),
		},
		{
			name: "host", def: "all",
			doc:     "The Host header of an HTTP/1 request that is not encrypted, without its port; as `sni`. The first request of a connection decides for all that follow.",
			binding: to(patterns(), func(m *matchNode) *[]string { return &m.match.Host }),
		},
		{
			name: "path", def: "all",
			doc:     "The target of an HTTP/1 request that is not encrypted begins with one of these.",
			binding: to(requestPaths(), func(m *matchNode) *[]string { return &m.match.Path }),
		},
		{
			name: "client_name", def: "all",
			doc:     "The client's verified certificate bears one of these: a DNS name, e-mail address or URI among its alternative names, or its common name. Only in routes with `tls`; whoever bears none of them goes on to later routes with the same `tls`, and to no others.",
			binding: to(clientNames(), func(m *matchNode) *[]string { return &m.match.ClientName }),
		},
		{
			name: "source", def: "all", example: `["10.0.0.0/8"]`,
			doc:     "The client's address is in one of these. Clients on unix sockets have none and match nothing here.",
			binding: to(prefixes(), func(m *matchNode) *[]netip.Prefix { return &m.match.Source }),
		},
		{
			name: "port", def: "all", example: `[443, "8000-8010"]`,
			doc:     "The port the client connected to.",
			binding: to(ports(), func(m *matchNode) *[]listener.PortRange { return &m.match.Port }),
		},
	},
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
