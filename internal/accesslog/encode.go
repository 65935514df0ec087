package accesslog

import (
	"crypto/tls"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"edgeproxy/internal/sniff"
	"edgeproxy/listener"
)

// What a line shows of one text, in bytes before escaping. Configured names
// are shorter; an error's text may carry what a stranger sent.
const (
	maxName  = 255
	maxError = 512
)

// maxLine bounds a line: eleven names and one error, each byte of which may
// become six (\u001f), and less than 1 KiB of keys, numbers and addresses.
const maxLine = 16 << 10

// encoder appends records. It remembers the text of what is likely to be the
// same in the next one: a date and an IPv6 address cost as much as all else.
type encoder struct {
	second      int64
	date        []byte // "2006-01-02T15:04:05" of second, in UTC
	destination netip.AddrPort
	address     []byte // text of destination
}

func (e *encoder) appendTime(b []byte, t time.Time) []byte {
	if s := t.Unix(); s != e.second || len(e.date) == 0 {
		e.second = s
		e.date = time.Unix(s, 0).UTC().AppendFormat(e.date[:0], "2006-01-02T15:04:05")
	}
	b = append(b, e.date...)
	ms := t.Nanosecond() / int(time.Millisecond)
	return append(b, '.', digit(ms/100), digit(ms/10), digit(ms), 'Z')
}

func (e *encoder) appendDestination(b []byte, a netip.AddrPort) []byte {
	if a != e.destination {
		e.destination = a
		e.address = appendAddrPort(e.address[:0], a)
	}
	return append(b, e.address...)
}

// protocol is what the client was seen to speak; tcp or udp where nobody has
// looked, or nothing was known.
func protocol(r *listener.Record) string {
	if r.Protocol == sniff.Unknown {
		return r.Network.String()
	}
	return r.Protocol.String()
}

// tlsVersion is "1.3", as in the configuration.
func tlsVersion(v uint16) string { return strings.TrimPrefix(tls.VersionName(v), "TLS ") }

func digit(n int) byte { return '0' + byte(n%10) }

// appendJSON appends r as one line of JSON. Texts and addresses that are
// unknown are left out, numbers never are.
func (e *encoder) appendJSON(b []byte, r *listener.Record) []byte {
	b = append(b, `{"time":"`...)
	b = e.appendTime(b, r.Time)
	b = append(b, `","id":"`...)
	b = appendID(b, r.ID)
	b = append(b, `","listener":`...)
	b = appendQuoted(b, r.Listener, maxName)
	b = appendMember(b, `,"route":`, r.Route, maxName)
	b = appendMember(b, `,"upstream":`, r.Upstream, maxName)
	b = appendMember(b, `,"server":`, r.Server, maxName)
	if r.Source.IsValid() {
		b = append(b, `,"source":"`...)
		b = appendAddrPort(b, r.Source)
		b = append(b, '"')
	}
	switch {
	case r.Destination.IsValid():
		b = append(b, `,"destination":"`...)
		b = e.appendDestination(b, r.Destination)
		b = append(b, '"')
	case r.DestUnix != "":
		b = append(b, `,"destination":"unix:`...)
		b = appendEscaped(b, r.DestUnix, maxName)
		b = append(b, '"')
	}
	b = appendMember(b, `,"server_address":`, r.ServerAddress, maxName)
	b = append(b, `,"protocol":"`...)
	b = append(b, protocol(r)...)
	b = append(b, '"')
	b = appendMember(b, `,"sni":`, r.SNI, maxName)
	b = appendMember(b, `,"alpn":`, r.ALPN, maxName)
	if r.TLSVersion != 0 {
		b = appendMember(b, `,"tls_version":`, tlsVersion(r.TLSVersion), maxName)
		b = appendMember(b, `,"tls_cipher":`, tls.CipherSuiteName(r.TLSCipher), maxName)
		b = append(b, `,"tls_ms":`...)
		b = appendMillis(b, r.TLS)
		b = appendMember(b, `,"client_name":`, r.ClientName, maxName)
	}
	b = append(b, `,"bytes_in":`...)
	b = strconv.AppendUint(b, r.BytesIn, 10)
	b = append(b, `,"bytes_out":`...)
	b = strconv.AppendUint(b, r.BytesOut, 10)
	if r.Network == listener.UDP {
		b = append(b, `,"datagrams_in":`...)
		b = strconv.AppendUint(b, r.DatagramsIn, 10)
		b = append(b, `,"datagrams_out":`...)
		b = strconv.AppendUint(b, r.DatagramsOut, 10)
	}
	b = append(b, `,"duration_ms":`...)
	b = appendMillis(b, r.Duration)
	b = append(b, `,"connect_ms":`...)
	b = appendMillis(b, r.Connect)
	b = append(b, `,"retries":`...)
	b = strconv.AppendInt(b, int64(r.Retries), 10)
	b = append(b, `,"end":"`...)
	b = append(b, r.End.String()...)
	b = append(b, `","phase":"`...)
	b = append(b, r.Phase.String()...)
	b = append(b, '"')
	if r.Err != nil {
		b = appendMember(b, `,"error":`, r.Err.Error(), maxError)
	}
	return append(b, '}', '\n')
}

// appendConsole appends r as a line for people:
//
//	TIME ID LISTENER/ROUTE SOURCE -> UPSTREAM/SERVER ADDRESS tcp in=… out=… …
//
// UDP has in=BYTES/DATAGRAMS, and out= alike. What is unknown is a dash.
func (e *encoder) appendConsole(b []byte, r *listener.Record) []byte {
	b = e.appendTime(b, r.Time)
	b = append(b, ' ')
	b = appendID(b, r.ID)
	b = append(b, ' ')
	b = appendBare(b, r.Listener, maxName)
	if r.Route != "" {
		b = append(b, '/')
		b = appendBare(b, r.Route, maxName)
	}
	b = append(b, ' ')
	switch {
	case r.Source.IsValid():
		b = appendAddrPort(b, r.Source)
	case r.DestUnix != "":
		b = append(b, "unix:"...)
		b = appendBare(b, r.DestUnix, maxName)
	default:
		b = append(b, '-')
	}
	b = append(b, " -> "...)
	b = appendBare(b, r.Upstream, maxName)
	b = append(b, '/')
	b = appendBare(b, r.Server, maxName)
	b = append(b, ' ')
	b = appendBare(b, r.ServerAddress, maxName)
	b = append(b, ' ')
	b = append(b, protocol(r)...)
	if r.SNI != "" {
		b = append(b, " sni="...)
		b = appendBare(b, r.SNI, maxName)
	}
	if r.ALPN != "" {
		b = append(b, " alpn="...)
		b = appendBare(b, r.ALPN, maxName)
	}
	if r.TLSVersion != 0 {
		b = append(b, " tls="...)
		b = append(b, tlsVersion(r.TLSVersion)...)
		b = append(b, '/')
		b = append(b, tls.CipherSuiteName(r.TLSCipher)...)
		b = append(b, '/')
		b = appendMillis(b, r.TLS)
		b = append(b, "ms"...)
		if r.ClientName != "" {
			b = append(b, " client="...)
			b = appendBare(b, r.ClientName, maxName)
		}
	}
	b = append(b, " in="...)
	b = strconv.AppendUint(b, r.BytesIn, 10)
	if r.Network == listener.UDP {
		b = append(b, '/')
		b = strconv.AppendUint(b, r.DatagramsIn, 10)
	}
	b = append(b, " out="...)
	b = strconv.AppendUint(b, r.BytesOut, 10)
	if r.Network == listener.UDP {
		b = append(b, '/')
		b = strconv.AppendUint(b, r.DatagramsOut, 10)
	}
	b = append(b, " duration="...)
	b = appendMillis(b, r.Duration)
	b = append(b, "ms connect="...)
	b = appendMillis(b, r.Connect)
	b = append(b, "ms retries="...)
	b = strconv.AppendInt(b, int64(r.Retries), 10)
	b = append(b, ' ')
	b = append(b, r.End.String()...)
	b = append(b, " in "...)
	b = append(b, r.Phase.String()...)
	if r.Err != nil {
		b = append(b, ": "...)
		b = appendEscaped(b, r.Err.Error(), maxError)
	}
	return append(b, '\n')
}

func appendMember(b []byte, key, s string, limit int) []byte {
	if s == "" {
		return b
	}
	b = append(b, key...)
	return appendQuoted(b, s, limit)
}

func appendQuoted(b []byte, s string, limit int) []byte {
	b = append(b, '"')
	b = appendEscaped(b, s, limit)
	return append(b, '"')
}

// appendBare appends a text as one word: quoted only where it would not be
// one otherwise, a dash where there is none.
func appendBare(b []byte, s string, limit int) []byte {
	if s == "" {
		return append(b, '-')
	}
	for i := range len(s) {
		if s[i] == ' ' || !plain[s[i]] {
			return appendQuoted(b, s, limit)
		}
	}
	return appendEscaped(b, s, limit)
}

// plain holds the bytes that stand for themselves in a JSON string
// (RFC 8259 section 7), ASCII only.
var plain = func() (t [256]bool) {
	for c := byte(' '); c < 0x7f; c++ {
		t[c] = c != '"' && c != '\\'
	}
	return t
}()

const hexDigits = "0123456789abcdef"

// appendEscaped appends s as the inside of a JSON string. Bytes that are not
// UTF-8 become U+FFFD; what is longer than limit is cut and ends in "…".
func appendEscaped(b []byte, s string, limit int) []byte {
	cut := len(s) > limit
	if cut {
		for limit > 0 && !utf8.RuneStart(s[limit]) {
			limit--
		}
		s = s[:limit]
	}
	start := 0 // of what is not yet appended
	for i := 0; i < len(s); {
		c := s[i]
		if plain[c] {
			i++
			continue
		}
		size := 1
		if c >= utf8.RuneSelf {
			var r rune
			r, size = utf8.DecodeRuneInString(s[i:])
			// U+0080–U+009F control terminals; U+2028 and U+2029 end lines in
			// JavaScript. All of them may stand as they are, but do no good.
			if (r != utf8.RuneError || size > 1) && r > 0x9f && r != 0x2028 && r != 0x2029 {
				i += size
				continue
			}
			b = append(b, s[start:i]...)
			b = append(b, '\\', 'u', hexDigits[r>>12&15], hexDigits[r>>8&15], hexDigits[r>>4&15], hexDigits[r&15])
		} else {
			b = append(b, s[start:i]...)
			switch c {
			case '"', '\\':
				b = append(b, '\\', c)
			case '\n':
				b = append(b, '\\', 'n')
			case '\r':
				b = append(b, '\\', 'r')
			case '\t':
				b = append(b, '\\', 't')
			default:
				b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			}
		}
		i += size
		start = i
	}
	b = append(b, s[start:]...)
	if cut {
		b = append(b, "…"...)
	}
	return b
}

func appendID(b []byte, id uint64) []byte {
	for shift := 60; shift >= 0; shift -= 4 {
		b = append(b, hexDigits[id>>shift&15])
	}
	return b
}

// appendMillis appends a duration in milliseconds, to the microsecond.
func appendMillis(b []byte, d time.Duration) []byte {
	us := int(max(d, 0) / time.Microsecond)
	b = strconv.AppendInt(b, int64(us/1000), 10)
	return append(b, '.', digit(us/100), digit(us/10), digit(us))
}

// appendAddrPort appends an address without the quotes around it. IPv4 in
// IPv6, as dual-stack sockets give it, is shown as IPv4.
func appendAddrPort(b []byte, a netip.AddrPort) []byte {
	if a.Addr().Zone() != "" { // an interface's name: any bytes
		return appendEscaped(b, a.String(), maxName)
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()).AppendTo(b)
}
