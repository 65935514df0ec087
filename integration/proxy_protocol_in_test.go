package integration

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// trusted is where headers may come from in these tests: the address that a
// client has unless it asks for another, such as stranger.
const (
	trusted  = `accept_proxy_protocol { from = ["127.0.0.1", "::1"] }`
	stranger = "127.0.0.9"
)

// headerV2 makes a header of version 2, command PROXY (section 2.2).
func headerV2(src, dst string, tlvs ...string) string {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	family := byte(0x11)
	if s.Addr().Is6() {
		family = 0x21
	}
	body := append(s.Addr().AsSlice(), d.Addr().AsSlice()...)
	body = binary.BigEndian.AppendUint16(body, s.Port())
	body = binary.BigEndian.AppendUint16(body, d.Port())
	body = append(body, strings.Join(tlvs, "")...)
	return rawV2(0x21, family, string(body))
}

func rawV2(command, family byte, body string) string {
	h := append([]byte("\r\n\r\n\x00\r\nQUIT\n"), command, family)
	return string(binary.BigEndian.AppendUint16(h, uint16(len(body)))) + body
}

func tlv(kind byte, value string) string {
	return string([]byte{kind, byte(len(value) >> 8), byte(len(value))}) + value
}

// withChecksum fills in the CRC32c that a header ends with (section 2.2.3).
func withChecksum(header string) string {
	b := []byte(header)
	binary.BigEndian.PutUint32(b[len(b)-4:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return string(b)
}

// serveHeaders runs a server that answers with the header it was told, and
// then echoes.
func serveHeaders(t testing.TB) *Server {
	return Serve(t, func(c Conn) {
		h, err := readProxyHeader(c)
		if err != nil {
			return
		}
		fmt.Fprintln(c, h)
		echo(c)
	})
}

// What a trusted peer says of its client is what log and server are told, in
// either version and family.
func TestProxyProtocolFromTrusted(t *testing.T) {
	t.Parallel()
	for _, out := range []string{"v1", "v2"} {
		t.Run("out "+out, func(t *testing.T) {
			t.Parallel()
			s := serveHeaders(t)
			p := Start(t, oneUpstream(trusted, fmt.Sprintf("proxy_protocol = %q", out), s.Addr()))
			for i, c := range []struct{ header, source, destination, v1, v2 string }{
				{"PROXY TCP4 192.0.2.7 198.51.100.2 56324 443\r\n", "192.0.2.7:56324", "198.51.100.2:443",
					"TCP4 192.0.2.7 198.51.100.2 56324 443", "0x21 0x11 192.0.2.7 198.51.100.2 56324 443"},
				{"PROXY TCP6 2001:db8::7 2001:db8::1 65535 0\r\n", "[2001:db8::7]:65535", "[2001:db8::1]:0",
					"TCP6 2001:db8::7 2001:db8::1 65535 0", "0x21 0x21 2001:db8::7 2001:db8::1 65535 0"},
				{"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:198.51.100.2 1 2\r\n", "192.0.2.7:1", "198.51.100.2:2",
					"TCP4 192.0.2.7 198.51.100.2 1 2", "0x21 0x11 192.0.2.7 198.51.100.2 1 2"},
				{headerV2("192.0.2.7:56324", "198.51.100.2:443"), "192.0.2.7:56324", "198.51.100.2:443",
					"TCP4 192.0.2.7 198.51.100.2 56324 443", "0x21 0x11 192.0.2.7 198.51.100.2 56324 443"},
				{headerV2("[2001:db8::7]:1", "[2001:db8::1]:2"), "[2001:db8::7]:1", "[2001:db8::1]:2",
					"TCP6 2001:db8::7 2001:db8::1 1 2", "0x21 0x21 2001:db8::7 2001:db8::1 1 2"},
			} {
				conn := Dial(t, p.Addr("edge"))
				// In one segment: nothing of what follows is part of the header.
				Send(t, conn, c.header+"PROXY is what I say")
				want := map[string]string{"v1": "v1 " + c.v1, "v2": "v2 " + c.v2}[out]
				if got := ReadLine(t, conn); got != want {
					t.Errorf("%q: the server was told %q, want %q", c.header, got, want)
				}
				Expect(t, conn, "PROXY is what I say")
				conn.CloseWrite()
				ExpectEOF(t, conn)
				e := p.LastEnd(i+1, "client_closed", "relay")
				if e.Source != c.source || e.Destination != c.destination {
					t.Errorf("%q: logged with source %s and destination %s", c.header, e.Source, e.Destination)
				}
				if e.BytesIn != int64(len("PROXY is what I say")) {
					t.Errorf("%d bytes in: the header is none of the client's bytes", e.BytesIn)
				}
			}
		})
	}
}

// "The receiver is expected to speak first" (section 2): the server is
// connected to as soon as the header is whole.
func TestProxyProtocolServerSpeaksFirst(t *testing.T) {
	t.Parallel()
	s := Serve(t, func(c Conn) {
		io.WriteString(c, "220 ready\n")
		echo(c)
	})
	p := Start(t, oneUpstream(trusted, "", s.Addr()))
	for _, header := range []string{"PROXY TCP4 192.0.2.7 198.51.100.2 1 2\r\n", "PROXY UNKNOWN\r\n", headerV2("192.0.2.7:1", "198.51.100.2:2"), rawV2(0x20, 0, "")} {
		c := Dial(t, p.Addr("edge"))
		Send(t, c, header)
		if got := ReadLine(t, c); got != "220 ready" {
			t.Errorf("%q: %q", header, got)
		}
		RoundTrip(t, c, "EHLO")
	}
}

// A client that is not trusted is listened to first, for it must not send a
// header. One that waits for the server to speak is let through after
// timeouts.sniff.
func TestProxyProtocolStrangerWaits(t *testing.T) {
	t.Parallel()
	s := Serve(t, func(c Conn) {
		io.WriteString(c, "220 ready\n")
		echo(c)
	})
	p := Start(t, oneUpstream(trusted+"\n timeouts { sniff = \"100ms\" }", "", s.Addr()))
	c := DialFrom(t, stranger, p.Addr("edge"))
	if got := ReadLine(t, c); got != "220 ready" {
		t.Error(got)
	}
	RoundTrip(t, c, "EHLO")
}

// HAProxy and nginx refuse a header that comes in pieces.
func TestProxyProtocolByteByByte(t *testing.T) {
	t.Parallel()
	s := serveHeaders(t)
	p := Start(t, oneUpstream(trusted, `proxy_protocol = "v2"`, s.Addr()))
	for _, header := range []string{
		"PROXY TCP4 192.0.2.7 198.51.100.2 56324 443\r\n",
		headerV2("192.0.2.7:56324", "198.51.100.2:443", tlv(4, strings.Repeat("\x00", 40))),
	} {
		c := Dial(t, p.Addr("edge"))
		for i := range len(header) + 1 {
			Send(t, c, (header + "payload")[i:i+1])
			// A pause, so that the pieces arrive one by one; for the result it
			// does not matter whether they do.
			time.Sleep(time.Millisecond)
		}
		Send(t, c, "ayload")
		if got, want := ReadLine(t, c), "v2 0x21 0x11 192.0.2.7 198.51.100.2 56324 443"; got != want {
			t.Errorf("the server was told %q, want %q", got, want)
		}
		Expect(t, c, "payload")
	}
}

// "UNKNOWN" and LOCAL leave the connection the addresses it has (sections 2.1
// and 2.2), as does a family without addresses.
func TestProxyProtocolWithoutAddresses(t *testing.T) {
	t.Parallel()
	s := serveHeaders(t)
	p := Start(t, oneUpstream(trusted, `proxy_protocol = "v2"`, s.Addr()))
	for i, header := range []string{
		"PROXY UNKNOWN\r\n",
		"PROXY UNKNOWN 192.0.2.7 198.51.100.2 1 2\r\n",
		rawV2(0x20, 0x00, ""),
		rawV2(0x20, 0x11, headerV2("192.0.2.7:1", "198.51.100.2:2")[16:]),
		rawV2(0x20, 0x11, "\x01"), // shorter than the family has (Envoy CVE-2024-23327)
		rawV2(0x21, 0x00, ""),
		rawV2(0x21, 0x31, strings.Repeat("/", 216)),
	} {
		c := Dial(t, p.Addr("edge"))
		Send(t, c, header)
		edge := p.Addr("edge")
		want := fmt.Sprintf("v2 0x21 0x11 127.0.0.1 127.0.0.1 %s %s", splitPort(t, c.LocalAddr().String()), splitPort(t, edge))
		if got := ReadLine(t, c); got != want {
			t.Errorf("%q: the server was told %q, want %q", header, got, want)
		}
		c.Close()
		if e := p.AccessLog(i + 1)[i]; e.Source != c.LocalAddr().String() || e.Destination != edge {
			t.Errorf("%q: logged with source %s and destination %s", header, e.Source, e.Destination)
		}
	}
}

// TLVs go on to a server that is sent version 2; the checksum is made anew.
func TestProxyProtocolKeepsTLVs(t *testing.T) {
	t.Parallel()
	s := serveHeaders(t)
	p := Start(t, oneUpstream(trusted, `proxy_protocol = "v2"`, s.Addr()))
	ssl := "\x01\x00\x00\x00\x00" + tlv(0x21, "TLSv1.3")
	tlvs := tlv(1, "h2") + tlv(2, "app.example.com") + tlv(5, "id-1") + tlv(0x20, ssl) + tlv(0xea, "\x01vpce-1") + tlv(0xee, "\x01\x02")
	kept := fmt.Sprintf(` 0x01:"h2" 0x02:"app.example.com" 0x05:"id-1" 0x20:%q 0xea:"\x01vpce-1" 0xee:"\x01\x02"`, ssl)
	const ends = "v2 0x21 0x11 192.0.2.7 198.51.100.2 1 2"

	c := Dial(t, p.Addr("edge"))
	Send(t, c, headerV2("192.0.2.7:1", "198.51.100.2:2", tlv(4, "padding"), tlvs))
	if got := ReadLine(t, c); got != ends+kept {
		t.Errorf("the server was told\n%s, want\n%s", got, ends+kept)
	}

	c = Dial(t, p.Addr("edge"))
	Send(t, c, withChecksum(headerV2("192.0.2.7:1", "198.51.100.2:2", tlv(4, ""), tlvs, tlv(3, "\x00\x00\x00\x00"))))
	sum := withChecksum(headerV2("192.0.2.7:1", "198.51.100.2:2", tlvs, tlv(3, "\x00\x00\x00\x00")))
	if got, want := ReadLine(t, c), fmt.Sprintf("%s%s 0x03:%q", ends, kept, sum[len(sum)-4:]); got != want {
		t.Errorf("the server was told\n%s, want\n%s", got, want)
	}

	// The longest header there is, and a server that is sent version 1.
	long := headerV2("192.0.2.7:1", "198.51.100.2:2", tlv(0xe0, strings.Repeat("x", 4096-28-3)))
	c = Dial(t, p.Addr("edge"))
	Send(t, c, long)
	if got, want := ReadLine(t, c), ends+fmt.Sprintf(" 0xe0:%q", strings.Repeat("x", 4096-28-3)); got != want {
		t.Errorf("the server was told %d bytes, want %d", len(got), len(want))
	}
	p.Reload(oneUpstream(trusted, `proxy_protocol = "v1"`, s.Addr()))
	c = Dial(t, p.Addr("edge"))
	Send(t, c, long)
	if got, want := ReadLine(t, c), "v1 TCP4 192.0.2.7 198.51.100.2 1 2"; got != want {
		t.Errorf("the server was told %q, want %q", got, want)
	}
}

func TestBadProxyHeader(t *testing.T) {
	t.Parallel()
	s := Serve(t, echo)
	p := Start(t, oneUpstream(trusted, "", s.Addr()))
	good := headerV2("192.0.2.7:1", "198.51.100.2:2")
	n := 0
	for _, c := range []struct {
		name, from, header string
	}{
		{"none, HTTP", "", "GET / HTTP/1.1\r\n\r\n"},
		{"none, TLS", "", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"},
		{"none, one byte", "", "x"},
		{"v1 lower case", "", "PROXY tcp4 192.0.2.7 198.51.100.2 1 2\r\n"},
		{"v1 port 65536 (HAProxy reads it as 0)", "", "PROXY TCP4 192.0.2.7 198.51.100.2 65536 2\r\n"},
		{"v1 without CR", "", "PROXY TCP4 192.0.2.7 198.51.100.2 1 2\n"},
		{"v1 with two spaces", "", "PROXY TCP4 192.0.2.7  198.51.100.2 1 2\r\n"},
		{"v1 too long", "", "PROXY UNKNOWN " + strings.Repeat("x", 200)},
		{"v2 another version", "", rawV2(0x11, 0x11, good[16:])},
		{"v2 another command", "", rawV2(0x22, 0x11, good[16:])},
		{"v2 another family", "", rawV2(0x21, 0x41, good[16:])},
		{"v2 without its addresses (Envoy CVE-2024-23327)", "", rawV2(0x21, 0x11, "")},
		{"v2 unix without its addresses (Envoy CVE-2024-23327)", "", rawV2(0x21, 0x31, good[16:])},
		{"v2 a TLV into the payload (HAProxy 488ee7fb6e; nginx accepts it)", "", headerV2("192.0.2.7:1", "198.51.100.2:2", "\x02\x00\x05ab") + "payload"},
		{"v2 wrong checksum (nginx accepts it)", "", headerV2("192.0.2.7:1", "198.51.100.2:2", tlv(3, "\x00\x00\x00\x00"))},
		{"v2 too long", "", rawV2(0x21, 0x11, strings.Repeat("\x00", 4096))},
		{"v1 from elsewhere", stranger, "PROXY TCP4 192.0.2.7 198.51.100.2 1 2\r\n"},
		{"v2 from elsewhere", stranger, good},
		{"v2 LOCAL from elsewhere", stranger, rawV2(0x20, 0, "")},
	} {
		source := "127.0.0.1"
		if c.from != "" {
			source = c.from
		}
		conn := DialFrom(t, source, p.Addr("edge"))
		Send(t, conn, c.header)
		ExpectGone(t, conn)
		n++
		phase := "proxy_header"
		if c.from != "" {
			phase = ""
		}
		e := p.LastEnd(n, "bad_proxy_header", phase)
		if e.Error == "" || e.Source != conn.LocalAddr().String() || e.Server != "" {
			t.Errorf("%s: %+v", c.name, e)
		}
	}
	// An end within it is no header either.
	for _, cut := range []string{"", "P", "PROXY TCP4 192.0.2.7", good[:15], good[:20]} {
		conn := Dial(t, p.Addr("edge"))
		Send(t, conn, cut)
		conn.CloseWrite()
		ExpectGone(t, conn)
		n++
		p.LastEnd(n, "bad_proxy_header", "proxy_header")
	}
	if got := s.Accepted(); got > 0 {
		t.Errorf("the server was bothered %d times", got)
	}
	// From elsewhere a session without a header is an ordinary one.
	conn := DialFrom(t, stranger, p.Addr("edge"))
	RoundTrip(t, conn, "hello")
	conn.Close()
	if e := p.AccessLog(n + 1)[n]; e.Source != conn.LocalAddr().String() || e.Destination != p.Addr("edge") {
		t.Errorf("%+v", e)
	}
}

// Waiting for the header is bounded from accept on, however slowly it comes.
func TestProxyHeaderTimeout(t *testing.T) {
	t.Parallel()
	s := Serve(t, echo)
	p := Start(t, oneUpstream(trusted+"\n timeouts { handshake = \"300ms\" }", "", s.Addr()))
	for i, begin := range []string{"", "P", "PROXY TCP4 192.0.2.7 198.51.100.2 1 2\r", headerV2("192.0.2.7:1", "198.51.100.2:2")[:27]} {
		c := Dial(t, p.Addr("edge"))
		Send(t, c, begin)
		ExpectGone(t, c)
		if e := p.LastEnd(i+1, "handshake_timeout", "proxy_header"); e.DurationMS < 250 || e.Error == "" {
			t.Errorf("%q: %+v", begin, e)
		}
	}
	c := Dial(t, p.Addr("edge"))
	for _, b := range []byte("PROXY UNKNOWN " + strings.Repeat("x", 90)) {
		if _, err := c.Write([]byte{b}); err != nil {
			break
		}
		time.Sleep(20 * time.Millisecond) // a slow peer, which would take 2 s
	}
	ExpectGone(t, c)
	p.LastEnd(5, "handshake_timeout", "proxy_header")
	if got := s.Accepted(); got > 0 {
		t.Errorf("the server was bothered %d times", got)
	}
}

// The header's source is the client in all that is asked of clients: allow,
// deny, limits and routes. That the peer may speak for it is for from alone.
func TestProxyProtocolSourceCounts(t *testing.T) {
	t.Parallel()
	lan, rest := Serve(t, named("lan")), Serve(t, named("rest"))
	p := Start(t, fmt.Sprintf(`
listener "tcp" "edge" {
  address = "127.0.0.1:0"
  %s
  allow = ["10.0.0.0/8", "192.0.2.0/24"]
  deny  = ["10.6.6.0/24"]
  limits { connections_per_source = 1 }
  route "lan" {
    match { source = ["10.0.0.0/8"] }
    upstream = upstream.lan
  }
  route "rest" { upstream = upstream.rest }
}
upstream "lan" {
  server "s0" { address = %q }
}
upstream "rest" {
  server "s0" { address = %q }
}
`, trusted, lan.Addr(), rest.Addr()))
	from := func(source string) Conn {
		c := Dial(t, p.Addr("edge"))
		Send(t, c, headerV2(source+":1", "198.51.100.2:443"))
		return c
	}
	a, b := from("10.1.1.1"), from("192.0.2.7")
	if got := ReadLine(t, a) + " " + ReadLine(t, b); got != "lan rest" {
		t.Errorf("routed to %s", got)
	}
	for i, c := range []struct{ source, end string }{
		{"10.6.6.6", "denied"},
		{"203.0.113.1", "denied"},
		{"10.1.1.1", "limited"},
	} {
		ExpectGone(t, from(c.source))
		if e := p.LastEnd(i+1, c.end, ""); e.Source != c.source+":1" {
			t.Errorf("%+v", e)
		}
	}
	// The peer itself is not among those who are allowed.
	c := Dial(t, p.Addr("edge"))
	Send(t, c, "PROXY UNKNOWN\r\n")
	ExpectGone(t, c)
	p.LastEnd(4, "denied", "")
}

// A reload that begins to ask for headers, or ceases to, is for new sessions.
func TestProxyProtocolAfterReload(t *testing.T) {
	t.Parallel()
	s := Serve(t, echo)
	p := Start(t, oneUpstream("", "", s.Addr()))
	before := Dial(t, p.Addr("edge"))
	RoundTrip(t, before, "PROXY TCP4 is only text\r\n")
	p.Reload(oneUpstream(trusted, "", s.Addr()))
	RoundTrip(t, before, "still here")
	with := Dial(t, p.Addr("edge"))
	Send(t, with, "PROXY TCP4 192.0.2.7 198.51.100.2 1 2\r\n")
	RoundTrip(t, with, "hello")
	p.Reload(oneUpstream("", "", s.Addr()))
	RoundTrip(t, with, "hello again")
	RoundTrip(t, Dial(t, p.Addr("edge")), "PROXY TCP4 192.0.2.7 198.51.100.2 1 2\r\n")
}

// What HAProxy and nginx say of their clients is understood, from a dual-stack
// socket, too, whose IPv4 clients they write as "::ffff:127.0.0.1".
func TestRealProxiesInFront(t *testing.T) {
	t.Parallel()
	s := serveHeaders(t)
	p := Start(t, oneUpstream(trusted, `proxy_protocol = "v2"`, s.Addr()))
	dir := shortTempDir(t)
	os.Chmod(dir, 0o755)
	first := FreePorts(t, 4)
	conf := writeFile(t, filepath.Join(dir, "haproxy.cfg"), fmt.Sprintf(`
defaults
  mode tcp
  timeout connect 5s
  timeout client 30s
  timeout server 30s
listen v1
  bind 127.0.0.1:%[2]d
  server edge %[1]s send-proxy
listen v2
  bind 127.0.0.1:%[3]d
  unique-id-format id
  server edge %[1]s send-proxy-v2 proxy-v2-options crc32c,unique-id
listen dual
  bind :::%[4]d v4v6
  server edge %[1]s send-proxy
`, p.Addr("edge"), first, first+1, first+2))
	startReal(t, local(first+2), nil, need(t, "haproxy"), "-db", "-f", conf)
	module := "/usr/lib/nginx/modules/ngx_stream_module.so"
	if _, err := os.Stat(module); err == nil {
		module = "load_module " + module + ";"
	} else {
		module = "" // built in
	}
	nginx := writeFile(t, filepath.Join(dir, "nginx.conf"), fmt.Sprintf(`%s
daemon off;
pid %s/pid;
error_log stderr warn;
events { }
stream {
  server {
    listen [::]:%d ipv6only=off;
    proxy_pass %s;
    proxy_protocol on;
  }
}
`, module, dir, first+3, p.Addr("edge")))
	startReal(t, local(first+3), nil, need(t, "nginx"), "-p", dir, "-c", nginx, "-e", "stderr")
	for i := range 4 {
		c := Dial(t, local(first+i))
		Send(t, c, "hello")
		want := fmt.Sprintf("v2 0x21 0x11 127.0.0.1 127.0.0.1 %s %d", splitPort(t, c.LocalAddr().String()), first+i)
		if got := ReadLine(t, c); !strings.HasPrefix(got, want) || strings.Contains(got, `0x05:"id"`) != (i == 1) {
			t.Errorf("proxy %d: the server was told %q, want %q", i, got, want)
		}
		Expect(t, c, "hello")
	}
}
