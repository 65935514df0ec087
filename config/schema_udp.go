package config

import (
	"time"

	"edgeproxy/listener"
)

var udpListenerBlock = &block{
	name: "listener", kind: "udp", named: true, many: true, sample: "dns",
	doc: "Takes datagrams on its addresses; those from one address and port to one of its own are a session, which a route sends to a server of an upstream. See [UDP](udp.md). " +
		"A listener has either `route` blocks, or an `upstream` for all of it.",
	open: openListener(listener.UDP),
	attrs: []attr{
		listenAddress(listener.UDP, `[":53", "[::1]:5353"]`),
		listenerUpstream,
		allow("Only these clients; datagrams of others are dropped and counted as `denied`."),
		deny,
		{
			name: "responses", def: "no limit", example: "1",
			doc:     "A session ends with `responses_done` when each datagram of the client so far has had so many of the server. 1 is right for DNS over UDP and the like.",
			binding: to(whole(0, maxDatagrams), func(l *listenerNode) *int { return &l.opts.UDP.Responses }),
		},
		{
			name: "requests", def: "no limit", example: "100",
			doc:     "So many datagrams of the client make a session; the next one begins another, perhaps with another server.",
			binding: to(whole(0, maxDatagrams), func(l *listenerNode) *int { return &l.opts.UDP.Requests }),
		},
	},
	blocks: []*block{udpProxyBlock, udpLimitsBlock, udpTimeoutsBlock, clientUDPBlock, quicBlock, udpRouteBlock},
	absent: map[string]string{
		"tls": passedThrough,
		"tcp": "It tunes the sockets of a listener \"tcp\". Those of this one have a block udp { … }.",
	},
}

const (
	maxDatagrams  = 1_000_000_000
	passedThrough = "TLS is terminated on TCP listeners. QUIC is passed through, and can be routed by sni and alpn: see docs/udp.md."
	noHandshakes  = "Handshakes of TLS are those of a listener \"tcp\". New sessions of this one are bounded by connections, rate and rate_per_source."
	ofRequests    = "It looks at HTTP/1 requests, which come over TCP. HTTP/3 can be routed by sni and alpn."
)

var udpProxyBlock = acceptProxy("Each datagram from these addresses must begin with a PROXY header, v2, and has the source and destination that it says; one without is dropped and counted as `malformed`. " +
	"From elsewhere a header is dropped so, too. See [PROXY protocol](udp.md#proxy-protocol).")

var udpLimitsBlock = &block{
	name:  "limits",
	doc:   "What a listener takes. Over a limit, datagrams that would begin a session are dropped and counted as `limited`; see [floods](udp.md#floods-and-limits). A source is one IPv4 address or one IPv6 /64.",
	open:  in(openLimits),
	attrs: limitsCommon,
	absent: map[string]string{
		"handshakes":     noHandshakes,
		"handshake_rate": noHandshakes,
	},
}

var udpTimeoutsBlock = &block{
	name: "timeouts",
	doc:  "How long a session may take for what.",
	open: in(openTimeouts),
	attrs: []attr{
		timeout("handshake", `"10s"`, `"10s"`,
			"From the first datagram until the ClientHello of a QUIC client is whole, where routes ask for it; ends with `handshake_timeout`.",
			func(t *timeoutsNode) *time.Duration { return &t.Handshake }),
		timeout("idle", `"30s"`, `"30s"`,
			"No datagram in either direction; ends with `idle_timeout`.",
			func(t *timeoutsNode) *time.Duration { return &t.Idle }),
		timeout("lifetime", "off", `"12h"`,
			"From the first datagram to the end, whatever happens; ends with `lifetime`.",
			func(t *timeoutsNode) *time.Duration { return &t.Lifetime }),
	},
	absent: map[string]string{
		"half_close": "A UDP session has no end that one side could announce: it ends by idle, responses, requests or lifetime.",
		"sniff":      "Each datagram is whole, so that nothing is waited for but the rest of a QUIC hello: see handshake.",
	},
}

var clientUDPBlock = &block{
	name: "udp",
	doc:  "Sockets towards the clients. See [buffers](udp.md#buffers) and [offload](udp.md#offload).",
	open: in(func(l *listenerNode) *listener.UDPOptions { return &l.opts.UDP }),
	attrs: []attr{
		{
			name: "receive_buffer", def: `"4MiB"`, example: `"4MiB"`,
			doc:     "Of each event loop's socket, as the kernel counts it. Without `CAP_NET_ADMIN` the kernel caps it at `net.core.rmem_max`.",
			binding: to(size(4<<10, 1<<30), func(u *listener.UDPOptions) *int { return &u.ReceiveBuffer }),
		},
		{
			name: "send_buffer", def: `"4MiB"`, example: `"4MiB"`,
			doc:     "The same for sending, capped at `net.core.wmem_max`.",
			binding: to(size(4<<10, 1<<30), func(u *listener.UDPOptions) *int { return &u.SendBuffer }),
		},
		{
			name: "offload", def: "true", example: "true",
			doc:     "Datagrams of one size are taken from the kernel and given to it in one piece (UDP_GRO, UDP_SEGMENT), where it can.",
			binding: to(negated(), func(u *listener.UDPOptions) *bool { return &u.NoOffload }),
		},
	},
}

var quicBlock = &block{
	name: "quic",
	doc:  "What the listener is to know of the servers' QUIC connection ids. See [address changes](udp.md#address-changes).",
	open: in(func(l *listenerNode) *quicNode {
		l.quic = &quicNode{idLength: &l.opts.UDP.QUICServerID}
		return l.quic
	}),
	attrs: []attr{{
		name: "server_id_length", def: "servers put none there", example: "2",
		doc:     "Bytes of the server id that servers put behind the first byte of their connection ids (QUIC-LB, plaintext).",
		binding: to(whole(0, maxQUICServerID), func(q *quicNode) *int { return q.idLength }),
	}},
}

var udpRouteBlock = &block{
	name: "route", named: true, many: true, sample: "lan",
	doc: "Where sessions go that match. Routes are tried in the order of the file, the first that matches wins; a datagram that would begin a session and that none matches is dropped and counted as `no_route`. " +
		"Each has exactly one of `upstream`, `split` and `reject`.",
	open:   in(openRoute),
	attrs:  []attr{routeUpstream, routeReject},
	blocks: []*block{udpMatchBlock, splitBlock},
	absent: map[string]string{"tls": passedThrough},
}

var udpMatchBlock = &block{
	name: "match", many: true,
	doc:  matchDoc,
	open: in(openMatch),
	attrs: []attr{
		matchSNI("The server name that a QUIC client asks for"),
		matchALPN("A QUIC client offers one of these application protocols.", `["h3"]`),
		matchProtocol(listener.UDP, "The first datagram is an Initial of QUIC, version 1 or 2."),
		matchSource("The client's address is in one of these."),
		matchPort("The port the client sent to."),
	},
	absent: map[string]string{
		"host":        ofRequests,
		"path":        ofRequests,
		"client_name": "It is in the client's certificate, which is seen only where TLS is terminated: on TCP listeners.",
	},
}
