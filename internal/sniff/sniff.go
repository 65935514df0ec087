// Package sniff tells from the first bytes of a client's stream what it
// speaks and whom it wants: the protocol, the server name and ALPN offers of a
// TLS ClientHello, the host and path of an HTTP/1 request. It is a pure codec:
// the bytes are looked at, never consumed.
//
//  1. The caller peeks at the stream and passes what there is to [Info.Sniff],
//     always from the first byte on.
//  2. While several answers are possible, Sniff says how many bytes it needs
//     at least; the caller waits for them and peeks again.
//  3. It is decided: a protocol, [Unknown], or an error. An error is about a
//     stream that a server might understand though we do not: were it routed
//     like one that names nobody, conditions on names could be evaded. It is
//     to be refused.
//
// Whatever would make two implementations read different names is an error,
// too; what does not touch routing is left to those who speak the protocol.
package sniff

import "bytes"

// Protocol is what a client's first bytes look like.
type Protocol uint8

const (
	Unknown Protocol = iota
	TLS
	HTTP     // HTTP/1 request line, or the HTTP/2 preface
	SSH      // RFC 4253, section 4.2
	Postgres // startup, cancel, GSSENCRequest and SSLRequest packets
	Redis    // RESP arrays
	MQTT     // CONNECT
	RDP      // TPKT with an X.224 connection request
	SOCKS5   // RFC 1928
	Proxy    // a PROXY protocol header
	QUIC     // in datagrams, so Sniff does not look for it; it is the last one
	protocolCount
)

var names = [protocolCount]string{"unknown", "tls", "http", "ssh", "postgres", "redis", "mqtt", "rdp", "socks5", "proxy", "quic"}

// String returns the name in configurations and logs.
func (p Protocol) String() string {
	if p >= protocolCount {
		p = Unknown
	}
	return names[p]
}

// ParseProtocol is the inverse of String; there is no name for Unknown.
func ParseProtocol(name string) (Protocol, bool) {
	for p := TLS; p < protocolCount; p++ {
		if names[p] == name {
			return p, true
		}
	}
	return Unknown, false
}

// Names returns the names of what Sniff looks for in a stream: all but QUIC.
func Names() []string { return append([]string(nil), names[TLS:QUIC]...) }

// Set is a set of protocols, and of what is wanted of them.
type Set uint16

// Head is HTTP, and its request head awaited whole, for Host and Path.
const Head = Set(1<<15 | 1<<HTTP)

// Has reports whether p is in s.
func (s Set) Has(p Protocol) bool { return s&(1<<p) != 0 }

// With returns s with p in it.
func (s Set) With(p Protocol) Set { return s | 1<<p }

// Bounds of what is awaited, from the first byte of the stream on. They are
// the size of the buffer a caller wants to peek with.
const (
	MaxHello = 64 << 10 // a ClientHello with the headers of its records
	MaxHead  = 16 << 10 // an HTTP/1 request head
)

// Info is what was found. Its slices point into the bytes sniffed, so they are
// good as long as those are.
type Info struct {
	Protocol Protocol

	// Of a ClientHello. ServerName is in lower case, without a trailing dot;
	// empty if the hello names no host. An IP address is no name there (RFC
	// 6066, section 3). With Encrypted Client Hello it is the outer name.
	ServerName []byte
	ALPN       ALPNList
	HelloLen   int // bytes up to the end of the ClientHello; in a stream, record headers included

	// Of an HTTP/1 request, with [Head]: the host it is for, in the form of
	// ServerName and without port and brackets, but it may be an IP address;
	// and the target in origin-form as it was sent, with its query (RFC 9112,
	// section 3.2.1). Empty where there is none, as in HTTP/2.
	Host, Path []byte

	// SSLRequest says that the Postgres client asks for TLS: its ClientHello
	// follows when it was answered with 'S'.
	SSLRequest bool
}

// verdict is what a protocol's matcher says of the bytes so far.
type verdict uint8

const (
	no    verdict = iota
	maybe         // more bytes are needed to tell
	sure          // this protocol and no other, but not all there yet
	yes
)

// Sniff looks at b, the first bytes of a stream, for the protocols in want.
//
// A need of zero says that it is decided. in.Protocol is then one of want, or
// Unknown, and does not depend on how the bytes came. Otherwise need is how
// many bytes there must be to get further: more than len(b), at most MaxHello,
// and never more than a client sends that goes by its protocol, whichever it is
// (so that it may be a socket's SO_RCVLOWAT). Of in, only Protocol counts then:
// it is set once no other is possible.
//
// An error means that the stream is of in.Protocol, but malformed, or over its
// bound: it must be refused, not routed as something else.
//
// b is spoiled: names are lower-cased in place, a ClientHello in several
// records is put together in place. Each call wants the bytes as they came.
func (in *Info) Sniff(b []byte, want Set) (need int, err error) {
	if len(b) == 0 && want != 0 {
		*in = Info{}
		return 1, nil
	}
	_, need, err = in.sniff(b, want)
	return need, err
}

// Final is Sniff for a stream of which no more will come, or not in time: a
// stream that might have become several protocols is Unknown, one that is
// surely of a protocol and incomplete is an error.
func (in *Info) Final(b []byte, want Set) error {
	v, _, err := in.sniff(b, want)
	if err != nil {
		return err
	}
	switch p := in.Protocol; {
	case v == sure && p == TLS:
		return errHelloCut
	case v == sure:
		return errHeadCut
	case v == maybe:
		*in = Info{}
	}
	return nil
}

// sniff sets in.Protocol if the verdict is at least sure.
func (in *Info) sniff(b []byte, want Set) (v verdict, need int, err error) {
	*in = Info{}
	if len(b) == 0 {
		return no, 0, nil
	}
	p := Unknown
	switch b[0] {
	case recordHandshake, recordAlert:
		if !want.Has(TLS) {
			break
		}
		v, need, err = in.hello(b)
		if v >= sure {
			in.Protocol = TLS
		}
		return v, need, err
	case 'S':
		p, v = SSH, prefix(b, "SSH-")
	case 'P':
		p, v = Proxy, max(prefix(b, "PROXY TCP4 "), prefix(b, "PROXY TCP6 "), prefix(b, "PROXY UNKNOWN"))
	case '\r':
		p, v = Proxy, prefix(b, "\r\n\r\n\x00\r\nQUIT\n")
	case '*':
		p, v = Redis, redis(b)
	case 0:
		p, v = Postgres, postgres(b)
	case 3:
		p, v = RDP, rdp(b)
	case 5:
		p, v = SOCKS5, socks5(b)
	case 0x10:
		p, v = MQTT, mqtt(b)
	}
	if !want.Has(p) || p == Unknown {
		v = no
	}
	if v == yes {
		in.Protocol = p
		in.SSLRequest = p == Postgres && code(b) == postgresSSL
		return yes, 0, nil
	}
	// What is a prefix of something else may become a request line.
	if want.Has(HTTP) {
		h, err := in.request(b, want&Head == Head)
		if h >= sure || err != nil {
			in.Protocol = HTTP
		}
		if err != nil {
			return h, 0, err
		}
		v = max(v, h)
	}
	if v == maybe || v == sure {
		need = len(b) + 1
	}
	return v, need, nil
}

func prefix(b []byte, magic string) verdict {
	n := min(len(b), len(magic))
	switch {
	case string(b[:n]) != magic[:n]:
		return no
	case n < len(magic):
		return maybe
	}
	return yes
}

// redis: an array of bulk strings, "*2\r\n$". Inline commands are not told
// from other text.
func redis(b []byte) verdict {
	i := 1
	for i < len(b) && b[i] >= '0' && b[i] <= '9' {
		i++
	}
	switch {
	case i > 8: // the server takes a million of them at most
		return no
	case i == len(b):
		return maybe
	case i == 1:
		return no
	}
	return prefix(b[i:], "\r\n$")
}

// Request codes of Postgres clients. See the message formats of "StartupMessage",
// "CancelRequest", "SSLRequest" and "GSSENCRequest" in its manual.
const (
	postgresCancel = 1234<<16 | 5678
	postgresSSL    = 1234<<16 | 5679
	postgresGSS    = 1234<<16 | 5680
	postgresMax    = 10000 // of a startup packet: MAX_STARTUP_PACKET_LENGTH
)

func code(b []byte) uint32 {
	return uint32(b[4])<<24 | uint32(b[5])<<16 | uint32(b[6])<<8 | uint32(b[7])
}

// postgres: length (itself included) and code.
func postgres(b []byte) verdict {
	if len(b) >= 2 && b[1] != 0 {
		return no
	}
	if len(b) < 4 {
		return maybe
	}
	n := int(b[2])<<8 | int(b[3])
	if n < 8 || n > postgresMax {
		return no
	}
	if len(b) < 8 {
		if b := b[4:]; prefix(b, "\x00\x03") == no && prefix(b, "\x04\xd2\x16") == no {
			return no
		}
		return maybe
	}
	switch c := code(b); {
	case c>>16 == 3, // protocol 3, any minor version
		c == postgresCancel && n >= 16, // the key is longer than 4 bytes from 3.2 on
		(c == postgresSSL || c == postgresGSS) && n == 8:
		return yes
	}
	return no
}

// rdp: TPKT version 3 (RFC 1006, section 6) around an X.224 connection request.
func rdp(b []byte) verdict {
	if len(b) >= 2 && b[1] != 0 {
		return no
	}
	const least = 4 + 7 // the headers alone
	switch {
	case len(b) >= 4 && int(b[2])<<8|int(b[3]) < least, len(b) >= 5 && b[4] < 6, len(b) >= 6 && b[5] != 0xe0:
		return no
	case len(b) < 6:
		return maybe
	}
	return yes
}

// socks5: version, number of methods, methods; 0xff is for servers only.
func socks5(b []byte) verdict {
	switch {
	case len(b) >= 2 && b[1] == 0, len(b) >= 3 && b[2] == 0xff:
		return no
	case len(b) < 3:
		return maybe
	}
	return yes
}

// mqtt: CONNECT, the remaining length in one to four bytes, the protocol's name.
func mqtt(b []byte) verdict {
	i := 1
	for i < len(b) && i < 4 && b[i] >= 0x80 {
		i++
	}
	switch {
	case i >= len(b):
		return maybe
	case b[i] >= 0x80:
		return no
	}
	return max(prefix(b[i+1:], "\x00\x04MQTT"), prefix(b[i+1:], "\x00\x06MQIsdp"))
}

// hostName lower-cases a host name in place and takes one trailing dot off.
// Names that DNS cannot carry are refused, but for underscores, which occur.
func hostName(b []byte) ([]byte, bool) {
	if n := len(b); n > 0 && b[n-1] == '.' {
		b = b[:n-1]
	}
	if len(b) == 0 || len(b) > 253 {
		return nil, false
	}
	label := 0
	for i, c := range b {
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_':
			label++
		case c >= 'A' && c <= 'Z':
			b[i] = c | 0x20
			label++
		case c == '.' && label > 0:
			label = 0
		default:
			return nil, false
		}
		if label > 63 {
			return nil, false
		}
	}
	return b, label > 0
}

// isIPv4 reports whether a host name is a dotted quad. With leading zeros, which
// some read as octal, it is none (RFC 6943, section 3.1.1).
func isIPv4(b []byte) bool {
	dots, n, digits := 0, 0, 0
	for _, c := range b {
		switch {
		case c >= '0' && c <= '9':
			if digits > 0 && n == 0 {
				return false
			}
			n = n*10 + int(c-'0')
			digits++
			if n > 255 {
				return false
			}
		case c == '.' && digits > 0:
			dots++
			n, digits = 0, 0
		default:
			return false
		}
	}
	return dots == 3 && digits > 0
}

// isIPv6 reports whether b looks like the text of an IPv6 address, without
// brackets and zone. No host name does.
func isIPv6(b []byte) bool {
	if len(b) < 2 || len(b) > 45 || bytes.Count(b, []byte{':'}) < 2 {
		return false
	}
	for _, c := range b {
		switch {
		case c >= '0' && c <= '9', c|0x20 >= 'a' && c|0x20 <= 'f', c == ':', c == '.':
		default:
			return false
		}
	}
	return true
}
