package config

import (
	"slices"
	"time"

	"edgeproxy/listener"
)

var tcpListenerBlock = &block{
	name: "listener", kind: "tcp", named: true, many: true, sample: "edge",
	doc: "Takes TCP connections on its addresses and sends each by a route to an upstream. " +
		"A listener has either `route` blocks, or an `upstream` for all of it.",
	open: openListener(listener.TCP),
	attrs: []attr{
		listenAddress(listener.TCP, `[":443", "unix:/run/edge.sock"]`),
		listenerUpstream,
		{
			name: "tls", def: "passed through", example: "tls.public",
			doc:     "All sessions are terminated by this `tls` block. Not together with `route`: there each route says it.",
			binding: to(reference(tlsRefs), func(l *listenerNode) *string { return &l.tls }),
		},
		allow("Only these clients; others are closed with `denied`. Clients on unix sockets are not asked."),
		deny,
	},
	blocks: []*block{tcpProxyBlock, tcpLimitsBlock, tcpTimeoutsBlock, clientTCPBlock, tcpRouteBlock},
	absent: map[string]string{
		"responses": countsDatagrams,
		"requests":  countsDatagrams,
		"udp":       "It tunes the sockets of a listener \"udp\".",
		"quic":      "QUIC comes over UDP: write it in a listener \"udp\", which can have the same port.",
	},
}

const countsDatagrams = "It counts datagrams: it is for a listener \"udp\"."

var tcpProxyBlock = acceptProxy("Sessions from these addresses must begin with a PROXY header, v1 or v2, and have the source and destination that it says; one without ends with `bad_proxy_header`. " +
	"From elsewhere a header ends so, too. See [PROXY protocol](tls.md#proxy-protocol).")

var tcpLimitsBlock = &block{
	name: "limits",
	doc:  "What a listener takes. A session over a limit is closed with `limited`. A source is one IPv4 address or one IPv6 /64.",
	open: in(openLimits),
	attrs: slices.Concat(limitsCommon, []attr{
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
	}),
}

var tcpTimeoutsBlock = &block{
	name: "timeouts",
	doc:  "How long a session may take for what.",
	open: in(openTimeouts),
	attrs: []attr{
		timeout("handshake", `"10s"`, `"10s"`,
			"From accepting until a server is connected to: PROXY header, first bytes and TLS handshake together; ends with `handshake_timeout`.",
			func(t *timeoutsNode) *time.Duration { return &t.Handshake }),
		timeout("sniff", "off", `"3s"`,
			"A client that is silent for so long is routed as one whose first bytes are unknown. For a server that speaks first, behind the last route of a port that it shares.",
			func(t *timeoutsNode) *time.Duration { return &t.Sniff }),
		timeout("idle", `"1h"`, `"1h"`,
			"No byte in either direction; ends with `idle_timeout`.",
			func(t *timeoutsNode) *time.Duration { return &t.Idle }),
		timeout("half_close", `"1m"`, `"1m"`,
			"No byte after one side has finished sending; ends with `half_close_timeout`.",
			func(t *timeoutsNode) *time.Duration { return &t.HalfClose }),
		timeout("lifetime", "off", `"12h"`,
			"From accepting to the end, whatever happens; ends with `lifetime`.",
			func(t *timeoutsNode) *time.Duration { return &t.Lifetime }),
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

var tcpRouteBlock = &block{
	name: "route", named: true, many: true, sample: "lan",
	doc: "Where sessions go that match. Routes are tried in the order of the file, the first that matches wins; a session that none matches ends with `no_route`. " +
		"Each has exactly one of `upstream`, `split` and `reject`.",
	open: in(openRoute),
	attrs: []attr{
		routeUpstream,
		{
			name: "tls", def: "passed through", example: "tls.public",
			doc:     "Sessions of the route are terminated by this `tls` block. Without it nothing is decrypted.",
			binding: to(reference(tlsRefs), func(r *routeNode) *string { return &r.tls }),
		},
		routeReject,
	},
	blocks: []*block{tcpMatchBlock, splitBlock},
}

var tcpMatchBlock = &block{
	name: "match", many: true,
	doc:  matchDoc,
	open: in(openMatch),
	attrs: []attr{
		matchSNI("The server name that a TLS client asks for"),
		matchALPN("A TLS client offers one of these application protocols.", `["h2"]`),
		matchProtocol(listener.TCP, "What the client's first bytes look like. `http` is HTTP/1, and HTTP/2 without TLS."),
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
		matchSource("The client's address is in one of these. Clients on unix sockets have none and match nothing here."),
		matchPort("The port the client connected to."),
	},
}
