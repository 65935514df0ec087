package config

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"edgeproxy/balance"
	"edgeproxy/health"
	"edgeproxy/listener"
	"edgeproxy/upstream"
)

// TestEverything sets every attribute to something that is not its default,
// and finds it in its field.
func TestEverything(t *testing.T) {
	t.Parallel()
	cfg := mustParse(t, `
process {
  workers          = 3
  pin_cpus         = true
  max_connections  = "1000"
  user             = "nobody"
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
  }
  timeouts {
    handshake  = "1s"
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
    split {
      upstream = upstream.web
      weight   = 0
    }
    split { upstream = upstream["web"] }
  }
  route "b" { reject = true }
}
listener "tcp" "plain" {
  address  = ":9000"
  upstream = upstream.web
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
`)
	ap := netip.MustParseAddrPort
	pf := netip.MustParsePrefix
	web := []listener.Split{{Upstream: "web", Weight: 1}}
	want := &Config{
		Process:   Process{Workers: 3, PinCPUs: true, MaxConnections: 1000, User: "nobody", ShutdownTimeout: 90 * time.Second},
		Log:       Log{Level: "debug", Format: "console", Output: "stdout"},
		AccessLog: AccessLog{Output: "/tmp/access.log", Format: "console"},
		Admin:     Admin{Address: "unix:/run/a.sock"},
		Listeners: []listener.Options{
			{
				Name: "edge",
				Addresses: []listener.Address{
					{AddrPort: ap("127.0.0.1:0")}, {AddrPort: ap("[::]:8000"), Dual: true}, {AddrPort: ap("[::]:8001"), Dual: true},
					{Unix: "@x"}, {Systemd: "web"},
				},
				Allow:    []netip.Prefix{pf("10.0.0.0/8")},
				Deny:     []netip.Prefix{pf("2001:db8::1/128"), pf("10.0.0.0/8")},
				Limits:   listener.Limits{Connections: 1, ConnectionsPerSource: 2, Rate: 1, RatePerSource: 1.5, BandwidthIn: 65536, BandwidthOut: 1500000},
				Timeouts: listener.Timeouts{Handshake: time.Second, Idle: -1, HalfClose: -1, Lifetime: 36 * time.Hour},
				TCP:      listener.TCPOptions{Backlog: 100, Keepalive: -1, UserTimeout: 30 * time.Second, Delay: true},
				Routes: []listener.RouteOptions{
					{
						Name: "a",
						Match: []listener.Match{
							{Source: []netip.Prefix{pf("192.0.2.0/24")}, Port: []listener.PortRange{{From: 80, To: 80}, {From: 8000, To: 8010}, {From: 90, To: 90}}},
							{Port: []listener.PortRange{{From: 81, To: 81}}},
						},
						Splits: []listener.Split{{Upstream: "web", Weight: 0}, {Upstream: "web", Weight: 1}},
					},
					{Name: "b", Reject: true},
				},
			},
			{Name: "plain", Addresses: []listener.Address{{AddrPort: ap("[::]:9000"), Dual: true}}, Routes: []listener.RouteOptions{{Splits: web}}},
		},
		Upstreams: []upstream.Options{{
			Name: "web", Balance: balance.RoundRobin, ConnectTimeout: 100 * time.Millisecond, Retries: -1, PanicThreshold: 0.125,
			OnDown: upstream.CloseSessions, Source: []netip.Addr{netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("::1")},
			ProxyProtocol: upstream.ProxyV2, Resolve: time.Minute,
			TCP: upstream.TCPOptions{Keepalive: 10 * time.Second, UserTimeout: 20 * time.Second, Delay: true},
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
