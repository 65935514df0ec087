package config

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/zclconf/go-cty/cty"

	"edgeproxy/health"
	"edgeproxy/listener"
	"edgeproxy/upstream"
)

// codec reads one type of value. Its words serve messages and the reference.
type codec[F any] struct {
	typ  string // "a duration"
	rng  string // "1ms to 1h", or "" if every value of the type will do
	read func(v *value) (F, bool)
}

func boolean() codec[bool] {
	return codec[bool]{typ: "true or false", read: func(v *value) (bool, bool) {
		s, ok := v.text(-1, v.v)
		if !ok {
			return false, false
		}
		switch s {
		case "true":
			return true, true
		case "false":
			return false, true
		}
		v.fail(-1, "", "%s is neither true nor false", show(v.v))
		return false, false
	}}
}

// negated is boolean for a field that means the opposite.
func negated() codec[bool] {
	c := boolean()
	read := c.read
	c.read = func(v *value) (bool, bool) {
		b, ok := read(v)
		return !b, ok
	}
	return c
}

func whole(low, high int) codec[int] {
	return codec[int]{typ: "a whole number", rng: span(low, high), read: func(v *value) (int, bool) {
		f, ok := v.number(-1, v.v)
		if !ok {
			return 0, false
		}
		n, acc := f.Int64()
		switch {
		case !f.IsInt():
			v.fail(-1, "", "%s is not a whole number", show(v.v))
			return 0, false
		case acc != 0 || n < int64(low) || n > int64(high):
			v.fail(-1, "", "%s is out of range", show(v.v))
			return 0, false
		}
		return int(n), true
	}}
}

// retries is whole, and points out what 0 means: not what many will think.
func retries(def, high int) codec[int] {
	c := whole(-1, high)
	read := c.read
	c.read = func(v *value) (int, bool) {
		n, ok := read(v)
		if ok && n == 0 {
			v.warn(-1, "0 is the default, as for other attributes. Write -1 for no further attempt.", "0 means %d", def)
		}
		return n, ok
	}
	return c
}

func span(low, high int) string { return fmt.Sprintf("%s to %s", thousands(low), thousands(high)) }

// text is a string of one line.
func text() codec[string] {
	return codec[string]{typ: "a string", read: func(v *value) (string, bool) {
		s, ok := v.text(-1, v.v)
		if ok && strings.ContainsAny(s, "\r\n\x00") {
			v.fail(-1, "", "line breaks and NUL bytes cannot stand here")
			return "", false
		}
		return s, ok
	}}
}

// payload is any string, as bytes.
func payload() codec[[]byte] {
	return codec[[]byte]{typ: "a string", rng: `with escapes such as \r, \n and \u0000, up to 64 KiB`, read: func(v *value) ([]byte, bool) {
		s, ok := v.text(-1, v.v)
		if ok && len(s) > 64<<10 {
			v.fail(-1, "", "%d bytes are too many", len(s))
			return nil, false
		}
		return []byte(s), ok
	}}
}

func hexBytes() codec[[]byte] {
	return codec[[]byte]{typ: "a string of hexadecimal digits", rng: "spaces between bytes are ignored, up to 64 KiB", read: func(v *value) ([]byte, bool) {
		s, ok := v.text(-1, v.v)
		if !ok {
			return nil, false
		}
		b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
		if err != nil || len(b) > 64<<10 {
			v.fail(-1, "", "%s is not up to 64 KiB in hexadecimal digits, two for each byte", show(v.v))
			return nil, false
		}
		return b, true
	}}
}

// quicServerID is 1 to 15 bytes, as a string of them.
func quicServerID() codec[string] {
	return codec[string]{typ: "a string of hexadecimal digits", rng: "1 to 15 bytes, spaces between them are ignored", read: func(v *value) (string, bool) {
		s, ok := v.text(-1, v.v)
		if !ok {
			return "", false
		}
		b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
		if err != nil || len(b) < 1 || len(b) > maxQUICServerID {
			v.fail(-1, "", "%s is not 1 to 15 bytes in hexadecimal digits, two for each", show(v.v))
			return "", false
		}
		return string(b), true
	}}
}

// maxQUICServerID is that of QUIC-LB, section 3.1.
const maxQUICServerID = 15

// word is one of a closed list; values are what the words stand for.
func word[F any](words []string, values []F) codec[F] {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = strconv.Quote(w)
	}
	typ := "one of " + anyOf(quoted, "or")
	if len(words) == 1 {
		typ = quoted[0]
	}
	return codec[F]{typ: typ, read: func(v *value) (F, bool) {
		var zero F
		s, ok := v.text(-1, v.v)
		if !ok {
			return zero, false
		}
		i := slices.Index(words, s)
		if i < 0 {
			v.fail(-1, strings.TrimSpace(didYouMean(s, words)), "%s is not known", show(v.v))
			return zero, false
		}
		return values[i], true
	}}
}

// named is one of a closed list whose indexes are the values.
func named[F ~uint8](words []string) codec[F] {
	values := make([]F, len(words))
	for i := range values {
		values[i] = F(i)
	}
	return word(words, values)
}

func words(list ...string) codec[string] { return word(list, list) }

// prefixes takes networks and single addresses.
func prefixes() codec[[]netip.Prefix] {
	return codec[[]netip.Prefix]{typ: "a list of networks", rng: `"10.0.0.0/8", "2001:db8::/32", or single addresses`, read: func(v *value) ([]netip.Prefix, bool) {
		return each(v, func(elem int, c cty.Value) (netip.Prefix, bool) {
			s, ok := v.text(elem, c)
			if !ok {
				return netip.Prefix{}, false
			}
			if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
				a = a.Unmap()
				return netip.PrefixFrom(a, a.BitLen()), true
			}
			p, err := netip.ParsePrefix(s)
			if err != nil {
				v.fail(elem, "", "%s is not a network", show(c))
				return p, false
			}
			if p.Addr().Is4In6() && p.Bits() >= 96 {
				p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
			}
			if m := p.Masked(); m != p {
				v.warn(elem, fmt.Sprintf("It is taken as %s. Write that, or \"%s\" for the single address.", m, p.Addr()), "%s has bits set behind its prefix length", show(c))
				p = m
			}
			return p, true
		})
	}}
}

func addresses() codec[[]netip.Addr] {
	return codec[[]netip.Addr]{typ: "an IP address or a list of them", read: func(v *value) ([]netip.Addr, bool) {
		seen := make(map[netip.Addr]bool)
		return each(v, func(elem int, c cty.Value) (netip.Addr, bool) {
			s, ok := v.text(elem, c)
			if !ok {
				return netip.Addr{}, false
			}
			a, err := netip.ParseAddr(s)
			switch a = a.Unmap(); {
			case err != nil:
				v.fail(elem, "", "%s is not an IP address", show(c))
			case a.IsUnspecified() || a.IsMulticast():
				v.fail(elem, "", "%s is not an address to connect from", show(c))
			case seen[a]:
				v.fail(elem, "", "%s is in the list twice", show(c))
			default:
				seen[a] = true
				return a, true
			}
			return a, false
		})
	}}
}

// ports takes numbers and "8000-8010".
func ports() codec[[]listener.PortRange] {
	return codec[[]listener.PortRange]{typ: `a port, a range such as "8000-8010", or a list of both`, rng: "1 to 65 535", read: func(v *value) ([]listener.PortRange, bool) {
		return each(v, func(elem int, c cty.Value) (listener.PortRange, bool) {
			from, to, ok := v.interval(elem, c, 1, 65535, "port")
			return listener.PortRange{From: uint16(from), To: uint16(to)}, ok
		})
	}}
}

// statuses takes 200, "200-299" and "200-299,301".
func statuses() codec[[]health.StatusRange] {
	return codec[[]health.StatusRange]{typ: `status codes: a number, a string such as "200-299,301", or a list of both`, rng: "100 to 599", read: func(v *value) ([]health.StatusRange, bool) {
		list, ok := each(v, func(elem int, c cty.Value) ([]health.StatusRange, bool) {
			s, ok := v.text(elem, c)
			if !ok {
				return nil, false
			}
			var out []health.StatusRange
			for part := range strings.SplitSeq(s, ",") {
				from, to, good := v.intervalText(elem, strings.TrimSpace(part), 100, 599, "status code")
				if !good {
					return nil, false
				}
				out = append(out, health.StatusRange{From: from, To: to})
			}
			return out, true
		})
		return slices.Concat(list...), ok
	}}
}

func (v *value) interval(elem int, c cty.Value, low, high int, what string) (from, to int, ok bool) {
	s, ok := v.text(elem, c)
	if !ok {
		return 0, 0, false
	}
	return v.intervalText(elem, s, low, high, what)
}

func (v *value) intervalText(elem int, s string, low, high int, what string) (from, to int, ok bool) {
	a, b, isRange := strings.Cut(s, "-")
	if !isRange {
		b = a
	}
	from, err1 := strconv.Atoi(strings.TrimSpace(a))
	to, err2 := strconv.Atoi(strings.TrimSpace(b))
	switch {
	case err1 != nil || err2 != nil:
		v.fail(elem, "", "%s is not a %s", quote(s), what)
	case min(from, to) < low || max(from, to) > high:
		v.fail(elem, "", "%s is out of range", quote(s))
	case to < from:
		v.fail(elem, "", "%s is empty; the lower one comes first", quote(s))
	default:
		return from, to, true
	}
	return 0, 0, false
}

func serverAddress() codec[upstream.Address] {
	return codec[upstream.Address]{
		typ: "an address",
		rng: `"10.0.0.1:80", "[2001:db8::1]:80", "host.name:80", "unix:/path" or "unix:@abstract"`,
		read: func(v *value) (upstream.Address, bool) {
			s, ok := v.text(-1, v.v)
			if !ok {
				return upstream.Address{}, false
			}
			a, err := upstream.ParseAddress(s)
			if err != nil || strings.ContainsRune(s, 0) {
				v.fail(-1, "", "%s", problem(err))
				return a, false
			}
			return a, true
		},
	}
}

func problem(err error) string {
	if err == nil {
		return "a NUL byte cannot be part of an address"
	}
	return err.Error()
}

// boundAddresses is an address list with the element each address is from.
type boundAddresses struct {
	list []listener.Address
	text []string // per element
	ends []int    // list[ends[i-1]:ends[i]] are those of element i
}

// maxAddresses bounds those of one listener: four times every port.
const maxAddresses = 1 << 18

func listenAddresses(n listener.Network) codec[boundAddresses] {
	forms := `":443", "0.0.0.0:443", "[::1]:443", "192.0.2.1:8000-8010"`
	if n == listener.TCP {
		forms += `, "unix:/path", "unix:@abstract"`
	}
	return codec[boundAddresses]{
		typ: "an address or a list of them",
		rng: forms + ` or "systemd:NAME"`,
		read: func(v *value) (boundAddresses, bool) {
			var out boundAddresses
			_, ok := each(v, func(elem int, c cty.Value) (struct{}, bool) {
				s, list, ok := v.listenAddress(elem, c)
				if ok && n == listener.UDP && list[0].Unix != "" {
					v.fail(elem, "", "%s is a unix socket; UDP is listened for on IP addresses", show(c))
					list, ok = nil, false
				}
				if ok && len(out.list)+len(list) > maxAddresses {
					v.fail(elem, "", "more than %s addresses in one listener", thousands(maxAddresses))
					list, ok = nil, false
				}
				out.list = append(out.list, list...)
				out.text = append(out.text, s)
				out.ends = append(out.ends, len(out.list))
				return struct{}{}, ok
			})
			if ok && len(out.list) == 0 {
				v.fail(-1, "", "the list is empty")
				return out, false
			}
			return out, ok
		},
	}
}

func (v *value) listenAddress(elem int, c cty.Value) (string, []listener.Address, bool) {
	s, ok := v.text(elem, c)
	if !ok {
		return "", nil, false
	}
	list, err := listener.ParseAddress(s)
	if err != nil || strings.ContainsRune(s, 0) {
		v.fail(elem, "", "%s", problem(err))
		return s, nil, false
	}
	return s, list, true
}

// adminAddress is one address to listen on that a browser can be pointed at.
func adminAddress() codec[string] {
	return codec[string]{typ: "an address", rng: `"127.0.0.1:9901", "[::1]:9901", ":9901" or "unix:/path"`, read: func(v *value) (string, bool) {
		s, ok := v.text(-1, v.v)
		if !ok {
			return "", false
		}
		if port, isLocal := strings.CutPrefix(s, "localhost:"); isLocal {
			s = "127.0.0.1:" + port
		}
		list, err := listener.ParseAddress(s)
		switch {
		case err != nil || strings.ContainsRune(s, 0):
			v.fail(-1, "", "%s", problem(err))
			return "", false
		case len(list) != 1 || list[0].Systemd != "":
			v.fail(-1, "", "%s is not a single TCP address or unix socket", show(v.v))
			return "", false
		}
		if a := list[0]; a.Unix == "" && !a.AddrPort.Addr().IsLoopback() {
			v.warn(-1, "The admin server asks nobody who they are. Use 127.0.0.1, [::1] or a unix socket, or keep others away from this address by a firewall.",
				"%s can be reached from other machines", show(v.v))
		}
		return s, true
	}}
}

// checked is text that must pass ok; rng says in words what that means.
func checked(rng string, ok func(string) bool) codec[string] {
	c := text()
	read := c.read
	c.rng = rng
	c.read = func(v *value) (string, bool) {
		s, good := read(v)
		if good && !ok(s) {
			v.fail(-1, "", "%s cannot be used", show(v.v))
			return "", false
		}
		return s, good
	}
	return c
}

func httpPath() codec[string] {
	return checked(`begins with "/", without spaces, up to 4096 bytes`, func(s string) bool {
		return len(s) <= 4096 && strings.HasPrefix(s, "/") && visible(s)
	})
}

func httpMethod() codec[string] {
	return checked("letters only", func(s string) bool {
		return s != "" && len(s) <= 32 && strings.Trim(strings.ToUpper(s), "ABCDEFGHIJKLMNOPQRSTUVWXYZ") == ""
	})
}

func httpHost() codec[string] {
	return checked("a host name, with a port if need be", func(s string) bool { return s != "" && len(s) <= 255 && visible(s) })
}

func visible(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f }) < 0
}

// bareHost is an IP address or host name without a port.
func bareHost() codec[string] {
	return checked("an IP address or host name, without a port", func(s string) bool {
		if _, err := netip.ParseAddr(s); err == nil {
			return true
		}
		_, err := upstream.ParseAddress(s + ":1")
		return err == nil && !strings.HasPrefix(s, "unix:") && !strings.HasPrefix(s, "[")
	})
}

func userName() codec[string] {
	return checked("a user's name or number", func(s string) bool { return s != "" && len(s) <= 256 && visible(s) && !strings.Contains(s, ":") })
}

func outputPath() codec[string] {
	return checked(`"stderr", "stdout" or a file's path`, func(s string) bool { return s != "" && len(s) < 4096 })
}

// reference is upstream.NAME or tls.NAME.
func reference(kind *refKind) codec[string] {
	return codec[string]{typ: "a reference to " + kind.noun, read: func(v *value) (string, bool) {
		if !v.v.IsNull() && v.v.Type().Equals(kind.capsule) {
			return *v.v.EncapsulatedValue().(*string), true
		}
		hint := ""
		if !v.v.IsNull() && v.v.Type().IsPrimitiveType() {
			s := kind.name + "." + strings.TrimPrefix(strings.Trim(show(v.v), `"`), kind.name+".")
			hint = fmt.Sprintf("Write %s without quotes; in JSON \"${%s}\".", s, s)
		}
		v.fail(-1, hint, "%s is not %s", show(v.v), kind.noun)
		return "", false
	}}
}
