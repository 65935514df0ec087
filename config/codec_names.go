package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/zclconf/go-cty/cty"
	"golang.org/x/net/idna"

	"edgeproxy/internal/sniff"
	"edgeproxy/listener"
)

// maxDNSName is that of RFC 1035, section 2.3.4, without the final dot.
const maxDNSName = 253

// patterns takes host names as clients send them in `what`, the attribute's
// name, and "*.example.com"; they come out in lower case, in A-labels, without
// a trailing dot. That is the one form that the routing table knows.
func patterns() codec[[]string] {
	return codec[[]string]{
		typ: "a name or a list of them",
		rng: `"example.com", or "*.example.com" for every name below it`,
		read: func(v *value) ([]string, bool) {
			list, ok := each(v, func(elem int, c cty.Value) (string, bool) {
				s, ok := v.text(elem, c)
				if !ok {
					return "", false
				}
				if plain(s) {
					return s, true
				}
				name, why, hint := hostPattern(s, v.a.name == "host")
				if why != "" {
					v.fail(elem, hint, "%s %s", show(c), why)
					return "", false
				}
				return name, true
			})
			return unique(list), v.some(list, ok)
		},
	}
}

// plain recognises most of the names there are, which need no conversion.
func plain(s string) bool {
	if len(s) > maxDNSName {
		return false
	}
	label, letters := 0, false
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z':
			letters = true
			label++
		case c >= '0' && c <= '9':
			label++
		case c == '-' && label > 0 && i+1 < len(s) && s[i+1] != '.':
			label++
		case c == '.' && label > 0:
			label, letters = 0, false
		default:
			return false
		}
		if label > 63 {
			return false
		}
	}
	return label > 0 && letters // a last label without letters may be an IPv4 address
}

// hostPattern normalises a name or wildcard, or tells what is wrong with it.
func hostPattern(s string, addresses bool) (name, why, hint string) {
	if s == "*" {
		if addresses {
			return "", "stands for nothing", `Leave host out; to take every HTTP/1 request write protocol = ["http"].`
		}
		return "", "stands for nothing", `Leave sni out; to take every TLS session write protocol = ["tls"].`
	}
	if strings.Contains(s, "://") {
		return "", "is a URL", "Write the host name alone."
	}
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		switch {
		case !addresses:
			return "", "is an IP address", "Clients send no server name for an address (RFC 6066, section 3); use port, or source."
		default:
			return a.String(), "", ""
		}
	}
	if host, port, ok := strings.Cut(s, ":"); ok {
		return "", "has a port", fmt.Sprintf("Write \"%s\", and port = [%s] beside it if need be.", host, port)
	}
	base, wildcard := strings.CutPrefix(s, "*.")
	switch {
	case strings.Contains(base, "*"):
		return "", "has its * where none can be", "It can only be the whole first label: \"*.example.com\" stands for every name below example.com, at any depth."
	case strings.HasPrefix(base, "."):
		return "", "begins with a dot", fmt.Sprintf("For every name below it write \"*%s\".", base)
	}
	base, why = dnsName(base)
	if why != "" {
		return "", why, ""
	}
	if wildcard {
		base = "*." + base
	}
	return base, "", ""
}

// dnsName is the name in lower case A-labels without a trailing dot, or what
// is wrong with it. Underscores are not for host names, but clients send them.
func dnsName(s string) (name, why string) {
	s = strings.TrimSuffix(s, ".")
	if s == "" {
		return "", "is empty"
	}
	if strings.IndexFunc(s, func(r rune) bool { return r >= 0x80 }) >= 0 {
		a, err := idna.Lookup.ToASCII(s)
		if err != nil {
			return "", "is not a host name"
		}
		s = a
	}
	s = lowerASCII(s)
	if len(s) > maxDNSName {
		return "", "is longer than 253 bytes"
	}
	if last := s[strings.LastIndexByte(s, '.')+1:]; strings.Trim(last, "0123456789") == "" {
		return "", "is not a host name" // RFC 1123, section 2.1
	}
	for label := range strings.SplitSeq(s, ".") {
		switch {
		case len(label) > 63:
			return "", "has a label of more than 63 bytes"
		case label == "" || label[0] == '-' || label[len(label)-1] == '-',
			strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "":
			return "", "is not a host name"
		}
	}
	return s, ""
}

// clientNames takes what certificates of clients are named by: anything but
// nothing. Case is ASCII's: Unicode would fold letters that no authority has
// looked at.
func clientNames() codec[[]string] {
	return codec[[]string]{
		typ: "a name or a list of them",
		rng: `a DNS name, e-mail address, URI or common name; "*.example.com" for every name below it`,
		read: func(v *value) ([]string, bool) {
			list, ok := each(v, func(elem int, c cty.Value) (string, bool) {
				s, ok := v.text(elem, c)
				if !ok {
					return "", false
				}
				name := lowerASCII(strings.TrimSuffix(s, "."))
				base, _ := strings.CutPrefix(name, "*.")
				switch {
				case name == "*":
					v.fail(elem, "Leave client_name out: mode = \"require\" lets no session through without a verified certificate.", "%s stands for nothing", show(c))
				case base == "":
					v.fail(elem, "", "%s is empty", show(c))
				case strings.Contains(base, "*"):
					v.fail(elem, "It can only be the whole first label.", "%s has its * where none can be", show(c))
				case len(name) > 1024 || strings.ContainsAny(name, "\r\n\x00"):
					v.fail(elem, "", "%s is not a name", show(c))
				default:
					return name, true
				}
				return "", false
			})
			return unique(list), v.some(list, ok)
		},
	}
}

func lowerASCII(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, s)
}

func unique(list []string) []string {
	if len(list) < 2 {
		return list
	}
	seen := make(map[string]bool, len(list))
	return slices.DeleteFunc(list, func(s string) bool {
		again := seen[s]
		seen[s] = true
		return again
	})
}

// some refuses an empty list: a mistake rather than "matches nothing".
func (v *value) some(list []string, ok bool) bool {
	if ok && len(list) == 0 {
		v.d.errorf(v.expr.Range(), "Leave the attribute out, or make it null, to match all.", "%s: the list is empty", v.a.name)
		return false
	}
	return ok
}

// requestPaths takes what HTTP/1 request targets begin with.
func requestPaths() codec[[]string] {
	return codec[[]string]{typ: "a path or a list of them", rng: `begins with "/", without spaces, up to 4096 bytes`, read: func(v *value) ([]string, bool) {
		list, ok := each(v, func(elem int, c cty.Value) (string, bool) {
			s, ok := v.text(elem, c)
			if ok && (len(s) > 4096 || !strings.HasPrefix(s, "/") || !visible(s)) {
				v.fail(elem, "", "%s is not the beginning of a path", show(c))
				return "", false
			}
			return s, ok
		})
		return unique(list), v.some(list, ok)
	}}
}

// alpnNames takes protocol names of RFC 7301.
func alpnNames() codec[[]string] {
	return codec[[]string]{
		typ: "a protocol or a list of them",
		rng: `names of the IANA registry such as "h2" and "http/1.1", 1 to 255 bytes`,
		read: func(v *value) ([]string, bool) {
			list, ok := each(v, func(elem int, c cty.Value) (string, bool) {
				s, ok := v.text(elem, c)
				switch {
				case !ok:
				case s == "" || len(s) > 255:
					v.fail(elem, "", "%s is not 1 to 255 bytes", show(c))
					ok = false
				default:
					if right := alpnSpelling[strings.ToLower(s)]; right != "" {
						v.warn(elem, fmt.Sprintf("Did you mean \"%s\"? Names are compared byte by byte.", right), "clients offer no protocol %s", show(c))
					}
				}
				return s, ok
			})
			return unique(list), v.some(list, ok)
		},
	}
}

// alpnSpelling is what people write for the registered names.
var alpnSpelling = map[string]string{
	"http2": "h2", "http/2": "h2", "http/2.0": "h2", "http1": "http/1.1", "http1.1": "http/1.1", "http/1": "http/1.1", "h1": "http/1.1",
}

// serverFirst are protocols whose clients wait for the server's greeting.
var serverFirst = map[string]string{
	"mysql": "MySQL", "mariadb": "MySQL", "smtp": "SMTP", "ftp": "FTP", "pop3": "POP3", "imap": "IMAP", "vnc": "VNC",
}

// protocols takes what the first bytes of a connection can be, or of a
// datagram: that is QUIC and nothing else.
func protocols(n listener.Network) codec[[]sniff.Protocol] {
	names, elsewhere := sniff.Names(), []string{sniff.QUIC.String()}
	names = slices.DeleteFunc(names, func(s string) bool { return s == elsewhere[0] })
	hint := "QUIC comes over UDP: write it in a listener \"udp\", which can have the same port."
	if n == listener.UDP {
		names, elsewhere = elsewhere, names
		hint = "Write it in a listener \"tcp\", which can have the same port. In datagrams only QUIC is told apart."
	}
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = quote(n)
	}
	return codec[[]sniff.Protocol]{typ: "a protocol or a list of them", rng: anyOf(quoted, "or"), read: func(v *value) ([]sniff.Protocol, bool) {
		list, ok := each(v, func(elem int, c cty.Value) (sniff.Protocol, bool) {
			s, ok := v.text(elem, c)
			if !ok {
				return 0, false
			}
			if server := serverFirst[strings.ToLower(s)]; server != "" {
				v.fail(elem, fmt.Sprintf("Give %s a listener of its own.", server), "a %s server speaks first: nothing can be told from the client's first bytes", server)
				return 0, false
			}
			switch {
			case slices.Contains(elsewhere, s):
				v.fail(elem, hint, "%s does not come over %s", show(c), strings.ToUpper(n.String()))
			case !slices.Contains(names, s):
				v.fail(elem, strings.TrimSpace(didYouMean(s, names)), "%s is not known", show(c))
			default:
				return sniff.ParseProtocol(s)
			}
			return 0, false
		})
		if ok && len(list) == 0 {
			v.some(nil, true)
			return nil, false
		}
		slices.Sort(list)
		return slices.Compact(list), ok
	}}
}
