package config

import (
	"crypto/tls"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"edgeproxy/balance"
	"edgeproxy/health"
	"edgeproxy/internal/sniff"
	"edgeproxy/listener"
	"edgeproxy/tlsterm"
	"edgeproxy/upstream"
)

// TestEverything sets every attribute to something that is not its default,
// and finds it in its field.
func TestEverything(t *testing.T) {
	t.Parallel()
	cfg, diags := Parse(File{Name: "/conf/test.hcl", Source: []byte(`
process {
  workers          = 3
  pin_cpus         = true
  max_connections  = "1000"
  user             = "nobody"
  steering         = "off"
  kernel_tls       = "auto"
  shutdown_timeout = "1m30s"
}
log {
  level  = "debug"
  format = "console"
  output = "stdout"
}
access_log {
  output = "/tmp/access.log"
  format = "console"
}
admin { address = "unix:/run/a.sock" }
tls "public" {
  certificate {
    cert_file = "web.crt"
    key_file  = "/etc/web.key"
  }
  certificate { cert_file = "both.pem" }
  certificate { dir = "../certs" }
  certificate {
    acme {
      domains      = ["Example.com.", "bücher.example"]
      email        = "a@example.com"
      directory    = "https://ca.internal/directory"
      storage      = "acme"
      ca_file      = "acme.pem"
      http_address = ":80"
      tls_alpn     = false
    }
  }
  min_version     = "1.0"
  max_version     = "1.2"
  cipher_suites   = ["TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "TLS_RSA_WITH_AES_128_CBC_SHA"]
  groups          = ["X25519MLKEM768", "SecP256r1MLKEM768", "SecP384r1MLKEM1024", "X25519", "P-256", "P-384", "P-521"]
  alpn            = ["h2", "http/1.1"]
  ocsp_stapling   = true
  strict_sni      = true
  ticket_keys     = "tickets.bin"
  client_auth {
    mode     = "request"
    ca_file  = "clients.pem"
    crl_file = "revoked.pem"
  }
}
tls "plain" {
  certificate { dir = "/certs" }
  session_tickets = false
  client_auth { mode = "none" }
}
listener "tcp" "edge" {
  address = ["127.0.0.1:0", ":8000-8001", "unix:@x", "systemd:web"]
  allow   = "10.0.0.0/8"
  deny    = ["2001:db8::1", "::ffff:10.0.0.0/104"]
  limits {
    connections            = 1
    connections_per_source = 2
    rate                   = "60/m"
    rate_per_source        = "1.5/s"
    bandwidth_in           = "64KiB/s"
    bandwidth_out          = "1.5MB/s"
    handshakes             = 7
    handshake_rate         = "2/s"
  }
  accept_proxy_protocol { from = ["10.0.0.0/8", "192.0.2.1"] }
  timeouts {
    handshake  = "1s"
    sniff      = "200ms"
    idle       = "off"
    half_close = "-5s"
    lifetime   = "1d12h"
  }
  tcp {
    backlog      = 100
    keepalive    = "off"
    user_timeout = "30s"
    nodelay      = false
  }
  route "a" {
    match {
      source = ["192.0.2.0/24"]
      port   = [80, "8000-8010", "90"]
    }
    match { port = 81 }
    match {
      sni         = ["Example.COM.", "*.bücher.example", "example.com"]
      alpn        = "h2"
      client_name = ["*.Clients.example.", "Bob@example.com", "spiffe://x/y", "Bob Smith"]
    }
    match { protocol = ["postgres", "tls"] }
    tls = tls.public
    split {
      upstream = upstream.web
      weight   = 0
    }
    split { upstream = upstream["web"] }
  }
  route "b" { reject = true }
  route "c" {
    match {
      host = ["Example.com", "192.0.2.1", "[2001:DB8::1]"]
      path = ["/.well-known/", "/a"]
    }
    match { protocol = ["ssh", "redis", "mqtt", "rdp", "socks5", "proxy", "http"] }
    upstream = upstream.web
  }
}
listener "tcp" "plain" {
  address  = ":9000"
  upstream = upstream.web
  tls      = tls["plain"]
}
listener "udp" "datagrams" {
  address   = [":53", "systemd:dns"]
  allow     = "192.0.2.0/24"
  deny      = "192.0.2.7"
  responses = 1
  requests  = 2
  accept_proxy_protocol { from = "10.0.0.0/8" }
  limits {
    connections            = 1
    connections_per_source = 2
    rate                   = "3/s"
    rate_per_source        = "4/s"
    bandwidth_in           = "5KB/s"
    bandwidth_out          = "6KB/s"
  }
  timeouts {
    handshake = "1s"
    idle      = "2s"
    lifetime  = "3s"
  }
  udp {
    receive_buffer = "64KiB"
    send_buffer    = "1GiB"
    offload        = false
  }
  quic { server_id_length = 2 }
  route "a" {
    match {
      sni      = "*.Example.com"
      alpn     = ["h3"]
      protocol = ["quic"]
      source   = "10.0.0.0/8"
      port     = 53
    }
    split {
      upstream = upstream.datagrams
      weight   = 3
    }
  }
  route "b" { reject = true }
  route "c" { upstream = upstream.datagrams }
}
upstream "datagrams" {
  balance        = "maglev"
  hash_on        = "sni"
  on_down        = "keep"
  proxy_protocol = "v2"
  server "a" {
    address        = "10.0.0.1:53"
    quic_server_id = "0a 1B"
  }
  health "udp" {
    send           = "ping"
    expect_hex     = "00ff"
    proxy_protocol = "v2"
    port           = 54
  }
}
upstream "web" {
  balance         = "round_robin"
  connect_timeout = "100ms"
  retries         = -1
  panic_threshold = "12.5%"
  on_down         = "close"
  source          = ["10.0.0.9", "::1"]
  proxy_protocol  = "v2"
  resolve         = "1m"
  tcp {
    keepalive    = "10s"
    user_timeout = "20s"
    nodelay      = false
  }
  server "a" {
    address         = "web.example.com:80"
    weight          = 0
    max_connections = 5
    tier            = 2
  }
  server "b" {
    address = "[::1]:80"
    weight  = 256
  }
  tls {
    server_name   = "Web.internal."
    verify        = false
    ca_file       = "internal.pem"
    cert_file     = "proxy.pem"
    alpn          = ["h2"]
    min_version   = "1.2"
    max_version   = 1.3
    cipher_suites = "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"
    groups        = "P-384"
  }
  health "tcp" {
    send     = "PING\r\n"
    expect   = "\u0000+PONG"
    interval = "1s"
    timeout  = "500ms"
    rise     = 5
    fall     = 6
    port     = 7
    address  = "::1"
  }
  health "tcp" {
    send_hex   = "00 ff"
    expect_hex = "d2"
  }
  health "http" {
    path          = "/x?y"
    host          = "h:1"
    method        = "HEAD"
    expect_status = ["200-299,301", 404]
    expect_body   = "ok"
  }
}
`)})
	if diags.HasErrors() {
		t.Fatal(written(diags, false, 0))
	}
	ap := netip.MustParseAddrPort
	pf := netip.MustParsePrefix
	web := []listener.Split{{Upstream: "web", Weight: 1}}
	want := &Config{
		Process:   Process{Workers: 3, PinCPUs: true, MaxConnections: 1000, User: "nobody", Steering: "off", KernelTLS: "auto", ShutdownTimeout: 90 * time.Second},
		Log:       Log{Level: "debug", Format: "console", Output: "stdout"},
		AccessLog: AccessLog{Output: "/tmp/access.log", Format: "console"},
		Admin:     Admin{Address: "unix:/run/a.sock"},
		TLS: []tlsterm.Options{
			{
				Name: "public",
				Certificates: []tlsterm.CertificateOptions{
					{CertFile: "/conf/web.crt", KeyFile: "/etc/web.key"},
					{CertFile: "/conf/both.pem", KeyFile: "/conf/both.pem"},
					{Dir: "/certs"},
					{ACME: &tlsterm.ACMEOptions{
						Domains: []string{"example.com", "xn--bcher-kva.example"}, Email: "a@example.com", Directory: "https://ca.internal/directory",
						Storage: "/conf/acme", CAFile: "/conf/acme.pem", HTTPAddress: ":80", NoTLSALPN: true,
					}},
				},
				MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS12,
				CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_128_CBC_SHA},
				Groups:       []tls.CurveID{tls.X25519MLKEM768, tls.SecP256r1MLKEM768, tls.SecP384r1MLKEM1024, tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521},
				ALPN:         []string{"h2", "http/1.1"},
				OCSPStapling: true, StrictSNI: true, TicketKeys: "/conf/tickets.bin",
				ClientAuth: tlsterm.ClientAuthOptions{Mode: tlsterm.ClientAuthRequest, CAFile: "/conf/clients.pem", CRLFile: "/conf/revoked.pem"},
			},
			{Name: "plain", Certificates: []tlsterm.CertificateOptions{{Dir: "/certs"}}, NoTickets: true},
		},
		Listeners: []listener.Options{
			{
				Name: "edge",
				Addresses: []listener.Address{
					{AddrPort: ap("127.0.0.1:0")}, {AddrPort: ap("[::]:8000"), Dual: true}, {AddrPort: ap("[::]:8001"), Dual: true},
					{Unix: "@x"}, {Systemd: "web"},
				},
				Allow:       []netip.Prefix{pf("10.0.0.0/8")},
				Deny:        []netip.Prefix{pf("2001:db8::1/128"), pf("10.0.0.0/8")},
				AcceptProxy: []netip.Prefix{pf("10.0.0.0/8"), pf("192.0.2.1/32")},
				Limits:      listener.Limits{Connections: 1, ConnectionsPerSource: 2, Rate: 1, RatePerSource: 1.5, BandwidthIn: 65536, BandwidthOut: 1500000, Handshakes: 7, HandshakeRate: 2},
				Timeouts:    listener.Timeouts{Handshake: time.Second, Sniff: 200 * time.Millisecond, Idle: -1, HalfClose: -1, Lifetime: 36 * time.Hour},
				TCP:         listener.TCPOptions{Backlog: 100, Keepalive: -1, UserTimeout: 30 * time.Second, Delay: true},
				Routes: []listener.RouteOptions{
					{
						Name: "a",
						Match: []listener.Match{
							{Source: []netip.Prefix{pf("192.0.2.0/24")}, Port: []listener.PortRange{{From: 80, To: 80}, {From: 8000, To: 8010}, {From: 90, To: 90}}},
							{Port: []listener.PortRange{{From: 81, To: 81}}},
							{
								SNI: []string{"example.com", "*.xn--bcher-kva.example"}, ALPN: []string{"h2"},
								ClientName: []string{"*.clients.example", "bob@example.com", "spiffe://x/y", "bob smith"},
							},
							{Protocol: []sniff.Protocol{sniff.TLS, sniff.Postgres}},
						},
						TLS:    "public",
						Splits: []listener.Split{{Upstream: "web", Weight: 0}, {Upstream: "web", Weight: 1}},
					},
					{Name: "b", Reject: true},
					{
						Name: "c",
						Match: []listener.Match{
							{Host: []string{"example.com", "192.0.2.1", "2001:db8::1"}, Path: []string{"/.well-known/", "/a"}},
							{Protocol: []sniff.Protocol{sniff.HTTP, sniff.SSH, sniff.Redis, sniff.MQTT, sniff.RDP, sniff.SOCKS5, sniff.Proxy}},
						},
						Splits: web,
					},
				},
			},
			{Name: "plain", Addresses: []listener.Address{{AddrPort: ap("[::]:9000"), Dual: true}}, Routes: []listener.RouteOptions{{Splits: web, TLS: "plain"}}},
			{
				Name: "datagrams", Network: listener.UDP,
				Addresses: []listener.Address{{AddrPort: ap("[::]:53"), Dual: true}, {Systemd: "dns"}},
				Allow:     []netip.Prefix{pf("192.0.2.0/24")}, Deny: []netip.Prefix{pf("192.0.2.7/32")}, AcceptProxy: []netip.Prefix{pf("10.0.0.0/8")},
				Limits:   listener.Limits{Connections: 1, ConnectionsPerSource: 2, Rate: 3, RatePerSource: 4, BandwidthIn: 5000, BandwidthOut: 6000},
				Timeouts: listener.Timeouts{Handshake: time.Second, Idle: 2 * time.Second, Lifetime: 3 * time.Second},
				UDP:      listener.UDPOptions{Responses: 1, Requests: 2, ReceiveBuffer: 64 << 10, SendBuffer: 1 << 30, NoOffload: true, QUICServerID: 2},
				Routes: []listener.RouteOptions{
					{
						Name: "a",
						Match: []listener.Match{{
							SNI: []string{"*.example.com"}, ALPN: []string{"h3"}, Protocol: []sniff.Protocol{sniff.QUIC},
							Source: []netip.Prefix{pf("10.0.0.0/8")}, Port: []listener.PortRange{{From: 53, To: 53}},
						}},
						Splits: []listener.Split{{Upstream: "datagrams", Weight: 3}},
					},
					{Name: "b", Reject: true},
					{Name: "c", Splits: []listener.Split{{Upstream: "datagrams", Weight: 1}}},
				},
			},
		},
		Upstreams: []upstream.Options{{
			Name: "datagrams", Balance: balance.Maglev, HashOn: upstream.HashSNI, OnDown: upstream.KeepSessions, ProxyProtocol: upstream.ProxyV2,
			Servers: []upstream.ServerOptions{{Name: "a", Address: upstream.Address{AddrPort: ap("10.0.0.1:53")}, QUICServerID: "\x0a\x1b"}},
			Health:  []health.Options{{Kind: health.UDP, Send: []byte("ping"), Expect: []byte{0, 0xff}, ProxyProtocol: health.ProxyV2, Port: 54}},
		}, {
			Name: "web", Balance: balance.RoundRobin, ConnectTimeout: 100 * time.Millisecond, Retries: -1, PanicThreshold: 0.125,
			OnDown: upstream.CloseSessions, Source: []netip.Addr{netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("::1")},
			ProxyProtocol: upstream.ProxyV2, Resolve: time.Minute,
			TCP: upstream.TCPOptions{Keepalive: 10 * time.Second, UserTimeout: 20 * time.Second, Delay: true},
			TLS: &tlsterm.ClientOptions{
				ServerName: "web.internal", Insecure: true, CAFile: "/conf/internal.pem", CertFile: "/conf/proxy.pem", KeyFile: "/conf/proxy.pem", ALPN: []string{"h2"},
				MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS13, CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256}, Groups: []tls.CurveID{tls.CurveP384},
			},
			Servers: []upstream.ServerOptions{
				{Name: "a", Address: upstream.Address{Host: "web.example.com", Port: 80}, Weight: -1, MaxConnections: 5, Tier: 2},
				{Name: "b", Address: upstream.Address{AddrPort: ap("[::1]:80")}, Weight: 256},
			},
			Health: []health.Options{
				{
					Kind: health.TCP, Send: []byte("PING\r\n"), Expect: []byte("\x00+PONG"), Interval: time.Second, Timeout: 500 * time.Millisecond,
					Rise: 5, Fall: 6, Port: 7, Address: "::1",
				},
				{Kind: health.TCP, Send: []byte{0, 0xff}, Expect: []byte{0xd2}},
				{Kind: health.HTTP, Path: "/x?y", Host: "h:1", Method: "HEAD", ExpectStatus: []health.StatusRange{{From: 200, To: 299}, {From: 301, To: 301}, {From: 404, To: 404}}, ExpectBody: "ok"},
			},
		}},
	}
	if !reflect.DeepEqual(cfg, want) {
		t.Errorf("got\n%+v\nwant\n%+v", cfg, want)
	}
}

// TestDefaults: what is not said stays zero, for the packages to fill in.
func TestDefaults(t *testing.T) {
	t.Parallel()
	cfg := mustParse(t, leastFile[len("The least configuration is one listener and one upstream:"):])
	want := &Config{
		Listeners: []listener.Options{{
			Name: "web", Addresses: []listener.Address{{AddrPort: netip.MustParseAddrPort("[::]:8080"), Dual: true}},
			Routes: []listener.RouteOptions{{Splits: []listener.Split{{Upstream: "app", Weight: 1}}}},
		}},
		Upstreams: []upstream.Options{{Name: "app", Servers: []upstream.ServerOptions{
			{Name: "a", Address: upstream.Address{AddrPort: netip.MustParseAddrPort("127.0.0.1:9000")}},
		}}},
	}
	if !reflect.DeepEqual(cfg, want) {
		t.Errorf("got\n%+v\nwant\n%+v", cfg, want)
	}
}
