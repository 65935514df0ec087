package integration

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
)

// initialSalt is that of QUIC version 1 (RFC 9001, section 5.2).
const initialSalt = "\x38\x76\x2c\xf7\xf5\x59\x34\xb3\x4d\x17\x9a\xe6\xa4\xc8\x0c\xad\xcc\xbb\x7f\x0a"

// rawInitial is a client's first datagram of QUIC version 1, for names and
// connection ids that no library would send (RFC 9000, section 17.2.2).
func rawInitial(t testing.TB, dcid, sni string) string {
	t.Helper()
	hello := rawHello(t, sni)
	payload := append([]byte{6, 0, 0x40 | byte(len(hello)>>8), byte(len(hello))}, hello...) // CRYPTO
	const size, overhead, numberLen = 1200, 16, 4
	b := append([]byte{0xc3, 0, 0, 0, 1, byte(len(dcid))}, dcid...)
	b = append(b, 4, 'f', 'r', 'o', 'm', 0) // our id, no token
	rest := size - len(b) - 2
	if len(payload) > rest-numberLen-overhead {
		t.Fatalf("a hello of %d bytes", len(hello))
	}
	payload = append(payload, make([]byte, rest-numberLen-overhead-len(payload))...)
	b = binary.BigEndian.AppendUint16(b, 0x4000|uint16(rest))
	at := len(b)
	b = append(b, 0, 0, 0, 0)
	secret, err := hkdf.Extract(sha256.New, []byte(dcid), []byte(initialSalt))
	expand := func(secret []byte, label string, n int) []byte {
		label = "tls13 " + label
		out, failed := hkdf.Expand(sha256.New, secret, "\x00"+string(rune(n))+string(rune(len(label)))+label+"\x00", n)
		if failed != nil {
			t.Fatal(failed)
		}
		return out
	}
	if err != nil {
		t.Fatal(err)
	}
	secret = expand(secret, "client in", 32)
	block, err := aes.NewCipher(expand(secret, "quic key", 16))
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	mask, err := aes.NewCipher(expand(secret, "quic hp", 16))
	if err != nil {
		t.Fatal(err)
	}
	b = aead.Seal(b, expand(secret, "quic iv", 12), payload, b)
	var m [16]byte
	mask.Encrypt(m[:], b[at+4:at+20])
	b[0] ^= m[0] & 0xf
	for i := range numberLen {
		b[at+i] ^= m[1+i]
	}
	return string(b)
}

// rawHello is a ClientHello that fits into one datagram, with a name as it
// stands: crypto/tls takes the dot from the end of a name.
func rawHello(t testing.TB, sni string) []byte {
	t.Helper()
	given := strings.Repeat("x", len(sni))
	c := tls.QUICClient(&tls.QUICConfig{TLSConfig: &tls.Config{
		ServerName: given, NextProtos: []string{"h3"}, MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519},
	}})
	defer c.Close()
	c.SetTransportParameters(nil)
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for {
		switch e := c.NextEvent(); e.Kind {
		case tls.QUICWriteData:
			hello := slices.Clone(e.Data)
			i := strings.LastIndex(string(hello), given)
			copy(hello[i:], sni)
			return hello
		case tls.QUICNoEvent:
			t.Fatal("no hello")
		}
	}
}

// rawNames has routes by name for TCP and UDP, and a server for each.
func rawNames(t *testing.T) *Proxy {
	var b strings.Builder
	for _, network := range []string{"udp", "tcp"} {
		fmt.Fprintf(&b, `
listener %[1]q "edge-%[1]s" {
  address = "127.0.0.1:0"
  timeouts { idle = "1s" }
  route "closed" {
    match { sni = ["closed.test"] }
    reject = true
  }
  route "a" {
    match { sni = ["A.Test"] }
    upstream = upstream.a-%[1]s
  }
  route "wild" {
    match { sni = ["*.wild.test"] }
    upstream = upstream.wild-%[1]s
  }
  route "rest" { upstream = upstream.rest-%[1]s }
}
`, network)
		for _, name := range []string{"a", "wild", "rest"} {
			addr := ""
			if network == "udp" {
				addr = ServeUDP(t, func(d Datagram) []string {
					if d.Payload[0]&0x80 == 0 {
						return nil
					}
					return []string{rawReply(name)}
				}).Addr()
			} else {
				addr = Serve(t, func(c Conn) {
					io.WriteString(c, name)
					c.Close()
				}).Addr()
			}
			fmt.Fprintf(&b, "upstream \"%s-%s\" {\n server %q { address = %q }\n}\n", name, network, name, addr)
		}
	}
	return Start(t, b.String())
}

// issued is the connection id that a server of [rawNames] issues.
func issued(name string) string { return (name + "-issued-")[:8] }

// rawReply is what such a server answers: the beginning of an Initial.
func rawReply(name string) string {
	return "\xc0\x00\x00\x00\x01\x04from\x08" + issued(name) + "\x00\x40\x40" + strings.Repeat(name, 64)[:64]
}

// Names are compared as on TCP: in any case (RFC 4343), and without a dot at
// the end, which RFC 6066 forbids and some clients send. (Differential routing:
// Traefik CVE-2026-48491.)
func TestQUICNamesAreSpeltAsOnTCP(t *testing.T) {
	t.Parallel()
	p := rawNames(t)
	for sni, want := range map[string]string{
		"a.test": "a", "A.TEST": "a", "a.Test": "a", "a.test.": "a", "A.TEST.": "a",
		"deep.wild.test": "wild", "DEEP.Wild.tesT": "wild", "deep.wild.test.": "wild",
		"closed.test": "", "CLOSED.test": "", "closed.test.": "", "Closed.Test.": "",
		"other.test": "rest", "other.test.": "rest", "test": "rest",
	} {
		hello := string(rawHello(t, sni))
		tcp := Dial(t, p.Addr("edge-tcp"))
		io.WriteString(tcp, "\x16\x03\x01"+string([]byte{byte(len(hello) >> 8), byte(len(hello))})+hello)
		tcp.SetReadDeadline(soon())
		if got, _ := io.ReadAll(tcp); string(got) != want { // what is rejected may be reset
			t.Errorf("TCP, %q: %q, want %q", sni, got, want)
		}
		tcp.Close()
		denied := p.Metrics().Drops("edge-udp")["denied"]
		c := DialUDP(t, p.Addr("edge-udp"))
		c.Send(rawInitial(t, "of-mine!", sni))
		if want != "" {
			c.Expect(rawReply(want))
			continue
		}
		eventually(t, func() bool { return p.Metrics().Drops("edge-udp")["denied"] == denied+1 },
			func() string { return fmt.Sprintf("UDP, %q: dropped %v", sni, p.Metrics().Drops("edge-udp")) })
		c.ExpectNothing()
	}
}

// An id that a server has issued leads to that server, but a new connection
// that begins with it does not thereby get past the routes by name: neither from
// the address that was given the id, nor from another one.
func TestQUICNamesOfConnectionsThatBeginWithAnIssuedID(t *testing.T) {
	t.Parallel()
	p := rawNames(t)
	c := DialUDP(t, p.Addr("edge-udp"))
	c.Send(rawInitial(t, "of-mine!", "a.test"))
	c.Expect(rawReply("a"))
	for name, again := range map[string]*UDPClient{"the same address": c, "another address": DialUDP(t, p.Addr("edge-udp"))} {
		denied := p.Metrics().Drops("edge-udp")["denied"]
		again.Send(rawInitial(t, issued("a"), "closed.test"))
		eventually(t, func() bool { return p.Metrics().Drops("edge-udp")["denied"] == denied+1 },
			func() string { return fmt.Sprintf("%s: dropped %v", name, p.Metrics().Drops("edge-udp")) })
		again.ExpectNothing()
	}
}
