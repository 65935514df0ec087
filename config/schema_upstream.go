package config

import (
	"net/netip"
	"slices"
	"time"

	"edgeproxy/balance"
	"edgeproxy/health"
	"edgeproxy/upstream"
)

type upstreamNode struct {
	node
	opts    upstream.Options
	servers []*serverNode
	health  []*healthNode
	tls     *clientTLSNode
}

type serverNode struct {
	node
	opts upstream.ServerOptions
}

type healthNode struct {
	node
	opts              health.Options
	sendHex, matchHex []byte
}

var upstreamBlock = &block{
	name: "upstream", named: true, many: true, sample: "web",
	doc: "A group of servers, and how to choose and reach one.",
	open: in(func(r *root) *upstreamNode {
		u := new(upstreamNode)
		r.upstreams = append(r.upstreams, u)
		return u
	}),
	attrs: []attr{
		{
			name: "balance", def: `"random"`, example: `"least_conn"`,
			doc: "How a server is chosen. `random` draws two by weight and takes the one with fewer active sessions per weight; " +
				"`round_robin` takes them in turn, by weight; `least_conn` takes the one with the fewest active sessions per weight; " +
				"`maglev` and `ring_hash` take the same one for the same key (`hash_on`), on every machine with the same servers. See [balance by key](#balance-by-key).",
			binding: to(named[balance.Policy](balance.Policies), func(u *upstreamNode) *balance.Policy { return &u.opts.Balance }),
		},
		{
			name: "hash_on", def: `"source"`,
			doc:     "The key of `maglev` and `ring_hash`: the client's address; its address and port; the server name it asks for, or without one its address; the address and port that it came to.",
			binding: to(named[upstream.HashOn](upstream.HashOns), func(u *upstreamNode) *upstream.HashOn { return &u.opts.HashOn }),
		},
		{
			name: "connect_timeout", def: `"3s"`, example: `"3s"`,
			doc:     "Of one attempt to connect. Nothing is waited for over UDP.",
			binding: to(duration(time.Millisecond, time.Hour, false), func(u *upstreamNode) *time.Duration { return &u.opts.ConnectTimeout }),
		},
		{
			name: "retries", def: "2", example: "2",
			doc:     "Further attempts, on other servers where there are any. -1: none (0 is the default, as everywhere).",
			binding: to(retries(upstream.DefaultRetries, 100), func(u *upstreamNode) *int { return &u.opts.Retries }),
		},
		{
			name: "panic_threshold", def: `"0%"`, example: `"50%"`,
			doc:     "Below this share of usable servers, health is ignored. See [panic_threshold](#panic_threshold).",
			binding: to(percent(), func(u *upstreamNode) *float64 { return &u.opts.PanicThreshold }),
		},
		{
			name: "on_down", def: "TCP sessions are kept, UDP sessions move", example: `"keep"`,
			doc: "What happens to the live sessions of a server that goes down. See [on_down](#on_down).",
			binding: to(word([]string{"keep", "close"}, []upstream.OnDown{upstream.KeepSessions, upstream.CloseSessions}),
				func(u *upstreamNode) *upstream.OnDown { return &u.opts.OnDown }),
		},
		{
			name: "source", def: "the kernel's choice", example: `["10.0.0.9", "10.0.0.10"]`,
			doc:     "Local addresses to connect from, taken in turn. See [source](#source).",
			binding: to(addresses(), func(u *upstreamNode) *[]netip.Addr { return &u.opts.Source }),
		},
		{
			name: "proxy_protocol", def: "none", example: `"v2"`,
			doc: "Sends a PROXY header with the client's address first; v2 tells of terminated TLS, too. Over UDP it is v2, in each datagram. " +
				"See [PROXY protocol](tls.md#proxy-protocol), and [over UDP](udp.md#proxy-protocol).",
			binding: to(word([]string{"v1", "v2"}, []upstream.ProxyProtocol{upstream.ProxyV1, upstream.ProxyV2}),
				func(u *upstreamNode) *upstream.ProxyProtocol { return &u.opts.ProxyProtocol }),
		},
		{
			name: "resolve", def: `"10s"`, example: `"10s"`,
			doc:     "Host names of servers are looked up again so often.",
			binding: to(duration(100*time.Millisecond, year, false), func(u *upstreamNode) *time.Duration { return &u.opts.Resolve }),
		},
	},
	blocks: []*block{serverBlock, healthTCPBlock, healthHTTPBlock, healthUDPBlock, clientTLSBlock, serverTCPBlock},
}

var serverBlock = &block{
	name: "server", named: true, many: true, sample: "a",
	doc: "One server. Its counters and its load survive reloads by this name.",
	open: in(func(u *upstreamNode) *serverNode {
		s := new(serverNode)
		u.servers = append(u.servers, s)
		return s
	}),
	attrs: []attr{
		{
			name: "address", required: true, example: `"10.0.0.1:8080"`,
			doc:     "Where it listens. A host name is looked up again and again (`resolve`).",
			binding: to(serverAddress(), func(s *serverNode) *upstream.Address { return &s.opts.Address }),
		},
		{
			name: "weight", def: "1", example: "10",
			doc:     "Its share of the sessions, relative to the others. 0: no new sessions, live ones go on.",
			binding: to(whole(0, 256), func(s *serverNode) *int { return &s.opts.Weight }),
		},
		{
			name: "max_connections", def: "no limit", example: "1000",
			doc:     "Sessions at one time; a full server is passed over.",
			binding: to(whole(0, 1_000_000_000), func(s *serverNode) *int { return &s.opts.MaxConnections }),
		},
		{
			name: "tier", def: "0", example: "1",
			doc:     "Used when no server of a lower tier is usable.",
			binding: to(whole(0, 255), func(s *serverNode) *int { return &s.opts.Tier }),
		},
		{
			name: "quic_server_id", def: "learned from what it sends", example: `"0a1b"`,
			doc:     "What the server puts behind the first byte of its QUIC connection ids (QUIC-LB, plaintext), as long as the listener's `quic { server_id_length }`. See [address changes](udp.md#address-changes).",
			binding: to(quicServerID(), func(s *serverNode) *string { return &s.opts.QUICServerID }),
		},
	},
}

var serverTCPBlock = &block{
	name: "tcp",
	doc:  "Socket options towards the servers.",
	open: in(func(u *upstreamNode) *upstream.TCPOptions { return &u.opts.TCP }),
	attrs: []attr{
		{
			name: "keepalive", def: `"5m"`, example: `"5m"`,
			doc:     "Silence before the first keepalive probe.",
			binding: to(duration(time.Second, 9*time.Hour, true), func(t *upstream.TCPOptions) *time.Duration { return &t.Keepalive }),
		},
		{
			name: "user_timeout", def: "the kernel's", example: `"30s"`,
			doc:     "Data that stays unacknowledged for so long breaks the connection (TCP_USER_TIMEOUT, RFC 5482).",
			binding: to(duration(time.Millisecond, 24*24*time.Hour, false), func(t *upstream.TCPOptions) *time.Duration { return &t.UserTimeout }),
		},
		{
			name: "nodelay", def: "true", example: "true",
			doc:     "Small segments leave at once (TCP_NODELAY).",
			binding: to(negated(), func(t *upstream.TCPOptions) *bool { return &t.Delay }),
		},
	},
}

// healthCommon are the attributes of every kind of check.
var healthCommon = []attr{
	{
		name: "interval", def: `"5s"`, example: `"5s"`,
		doc:     "Between the starts of two probes of a server, 10 % more or less at random.",
		binding: to(duration(10*time.Millisecond, 24*time.Hour, false), func(h *healthNode) *time.Duration { return &h.opts.Interval }),
	},
	{
		name: "timeout", def: `"2s"`, example: `"2s"`,
		doc:     "Of a whole probe.",
		binding: to(duration(time.Millisecond, time.Hour, false), func(h *healthNode) *time.Duration { return &h.opts.Timeout }),
	},
	{
		name: "rise", def: "2", example: "2",
		doc:     "Successes in a row that make a server usable again.",
		binding: to(whole(0, 1000), func(h *healthNode) *int { return &h.opts.Rise }),
	},
	{
		name: "fall", def: "3", example: "3",
		doc:     "Failures in a row that make it unusable.",
		binding: to(whole(0, 1000), func(h *healthNode) *int { return &h.opts.Fall }),
	},
	{
		name: "port", def: "the server's", example: "9000",
		doc:     "Port to probe.",
		binding: to(whole(0, 65535), func(h *healthNode) *int { return &h.opts.Port }),
	},
	{
		name: "address", def: "the server's", example: `"10.0.9.1"`,
		doc:     "Host to probe instead of the server's own.",
		binding: to(bareHost(), func(h *healthNode) *string { return &h.opts.Address }),
	},
}

// healthProxy is of checks over connections.
var healthProxy = attr{
	name: "proxy_protocol", def: "none", example: `"v2"`,
	doc: "Begins each probe with a PROXY header, for servers that expect one on the probed port; the upstream's `proxy_protocol` does not apply to probes. " +
		"`v2` says that the connection is the proxy's own (LOCAL), `v1` names the addresses of the probe.",
	binding: to(word([]string{"v1", "v2"}, []health.ProxyProtocol{health.ProxyV1, health.ProxyV2}),
		func(h *healthNode) *health.ProxyProtocol { return &h.opts.ProxyProtocol }),
}

// openHealth makes a check of that kind.
func openHealth(k health.Kind) func(any) any {
	return in(func(u *upstreamNode) *healthNode {
		h := &healthNode{opts: health.Options{Kind: k}}
		u.health = append(u.health, h)
		return h
	})
}

var healthTCPBlock = &block{
	name: "health", kind: "tcp", many: true,
	doc:  "Probes each server by connecting, and if asked to by a short exchange. Of several `health` blocks all must pass.",
	open: openHealth(health.TCP),
	attrs: slices.Concat([]attr{
		{
			name: "send", def: "nothing", example: `"PING\r\n"`,
			doc:     "Sent after connecting.",
			binding: to(payload(), func(h *healthNode) *[]byte { return &h.opts.Send }),
		},
		{
			name: "expect", def: "connecting is enough", example: `"+PONG"`,
			doc:     "Must occur in the first 64 KiB that come back.",
			binding: to(payload(), func(h *healthNode) *[]byte { return &h.opts.Expect }),
		},
		{
			name: "send_hex", def: "nothing",
			doc:     "As `send`, for bytes that are no text: `\"00 00 00 08 04 d2 16 2f\"`. Not together with it.",
			binding: to(hexBytes(), func(h *healthNode) *[]byte { return &h.sendHex }),
		},
		{
			name: "expect_hex", def: "connecting is enough",
			doc:     "As `expect`, for bytes that are no text. Not together with it.",
			binding: to(hexBytes(), func(h *healthNode) *[]byte { return &h.matchHex }),
		},
	}, healthCommon, []attr{healthProxy}),
}

var healthHTTPBlock = &block{
	name: "health", kind: "http", many: true,
	doc:  "Probes each server by one HTTP/1.1 request. Of several `health` blocks all must pass.",
	open: openHealth(health.HTTP),
	attrs: slices.Concat([]attr{
		{
			name: "path", def: `"/"`, example: `"/healthz"`,
			doc:     "Path and query.",
			binding: to(httpPath(), func(h *healthNode) *string { return &h.opts.Path }),
		},
		{
			name: "host", def: "the probed address", example: `"web.example.com"`,
			doc:     "Host header.",
			binding: to(httpHost(), func(h *healthNode) *string { return &h.opts.Host }),
		},
		{
			name: "method", def: `"GET"`, example: `"GET"`,
			doc:     "Request method.",
			binding: to(httpMethod(), func(h *healthNode) *string { return &h.opts.Method }),
		},
		{
			name: "expect_status", def: `"200-399"`, example: `"200-299,301"`,
			doc:     "Status codes that are a success.",
			binding: to(statuses(), func(h *healthNode) *[]health.StatusRange { return &h.opts.ExpectStatus }),
		},
		{
			name: "expect_body", def: "anything", example: `"ok"`,
			doc:     "Must occur in the first 64 KiB of the body.",
			binding: to(text(), func(h *healthNode) *string { return &h.opts.ExpectBody }),
		},
	}, healthCommon, []attr{healthProxy}),
}

var healthUDPBlock = &block{
	name: "health", kind: "udp", many: true,
	doc:  "Probes each server by a datagram and its answer. Of several `health` blocks all must pass. See [health](udp.md#balancing-and-health).",
	open: openHealth(health.UDP),
	attrs: slices.Concat([]attr{
		{
			name: "send", def: "an empty datagram", example: `"ping"`,
			doc:     "The datagram. While nothing comes back it is sent up to three times, spread over `timeout`.",
			binding: to(payload(), func(h *healthNode) *[]byte { return &h.opts.Send }),
		},
		{
			name: "expect", def: "no error by ICMP", example: `"pong"`,
			doc:     "Must occur in an answer. Without it any answer will do, and silence, too: only \"port unreachable\" and the like fail.",
			binding: to(payload(), func(h *healthNode) *[]byte { return &h.opts.Expect }),
		},
		{
			name: "send_hex", def: "an empty datagram",
			doc:     "As `send`, for bytes that are no text. Not together with it.",
			binding: to(hexBytes(), func(h *healthNode) *[]byte { return &h.sendHex }),
		},
		{
			name: "expect_hex", def: "no error by ICMP",
			doc:     "As `expect`, for bytes that are no text. Not together with it.",
			binding: to(hexBytes(), func(h *healthNode) *[]byte { return &h.matchHex }),
		},
	}, healthCommon, []attr{{
		name: "proxy_protocol", def: "none", example: `"v2"`,
		doc:     "Begins the datagram with a PROXY header that says that it is the proxy's own (LOCAL), for servers that expect one; the upstream's `proxy_protocol` does not apply to probes.",
		binding: to(word([]string{"v2"}, []health.ProxyProtocol{health.ProxyV2}), func(h *healthNode) *health.ProxyProtocol { return &h.opts.ProxyProtocol }),
	}}),
}
