package listener

import (
	"net/netip"
	"strings"

	"edgeproxy/internal/sniff"
)

// facts are what is known of a session when it is routed.
type facts struct {
	source netip.Addr
	port   uint16
	info   *sniff.Info // of the client's first bytes, what it calls Protocol included; nil: they were not looked at
	names  []string    // of the client's verified certificate
	// tls is the name of the tls block that has terminated the session; "":
	// none has, yet. Routes of other blocks, and those that pass sessions
	// through, are none for it any more.
	tls string
}

func (f *facts) protocol() sniff.Protocol {
	switch {
	case f.info != nil:
		return f.info.Protocol
	case f.tls != "":
		return sniff.TLS
	}
	return sniff.Unknown
}

// entry is one match of one route, or a route without any. It holds what is
// asked first: most are told without a look at the match itself, which with
// 100 000 of them is not in the cache.
type entry struct {
	match *Match // nil: every session
	alpn  uint64 // protocols asked for, see alpnBits
	route int32
	where bool // there are conditions on source or port
	more  bool // … on something besides source, port and names
}

// matches tells whether the entry holds, of which SNI and Host are known to
// hold. offered are the alpnBits of the client.
func (t *table) matches(e *entry, f *facts, offered uint64) bool {
	if e.where && !e.match.reaches(f.source, f.port) {
		return false
	}
	if f.tls == "" && !e.more {
		return true
	}
	if f.tls != "" && t.routes[e.route].opts.TLS != f.tls {
		return false
	}
	return !e.more || t.matchesMore(e, f, offered)
}

func (t *table) matchesMore(e *entry, f *facts, offered uint64) bool {
	m := e.match
	if e.alpn != 0 && (offered&e.alpn == 0 || t.alpn.shared && !offers(f.info.ALPN, m.ALPN)) {
		return false
	}
	if len(m.Path) > 0 && (f.info == nil || !hasPrefix(f.info.Path, m.Path)) {
		return false
	}
	if len(m.Protocol) > 0 && !containsProtocol(m.Protocol, f.protocol()) {
		return false
	}
	switch {
	case len(m.ClientName) == 0:
		return true
	case f.tls == "": // provisionally: the handshake will tell
		return t.routes[e.route].opts.TLS != ""
	}
	return bears(f.names, m.ClientName)
}

// reaches applies the conditions on addresses.
func (m *Match) reaches(source netip.Addr, port uint16) bool {
	if len(m.Source) > 0 && !contains(m.Source, source) {
		return false
	}
	if len(m.Port) == 0 {
		return true
	}
	for _, r := range m.Port {
		if port >= r.From && port <= r.To {
			return true
		}
	}
	return false
}

// sniffs returns what the client's first bytes must be searched for to tell
// whether m holds.
func (m *Match) sniffs() (want sniff.Set) {
	if len(m.SNI) > 0 || len(m.ALPN) > 0 {
		want = want.With(sniff.TLS)
	}
	if len(m.Host) > 0 || len(m.Path) > 0 {
		want |= sniff.Head
	}
	for _, p := range m.Protocol {
		want = want.With(p)
	}
	return want
}

func containsProtocol(ps []sniff.Protocol, p sniff.Protocol) bool {
	for _, q := range ps {
		if p == q {
			return true
		}
	}
	return false
}

func hasPrefix(path []byte, prefixes []string) bool {
	for _, p := range prefixes {
		if len(path) >= len(p) && string(path[:len(p)]) == p {
			return true
		}
	}
	return false
}

func offers(l sniff.ALPNList, any []string) bool {
	for p := range l.All() {
		for _, q := range any {
			if string(p) == q {
				return true
			}
		}
	}
	return false
}

// alpnBits gives each protocol that some route asks for a bit, so that a
// client's list, which may have 30 000 entries, is read once.
type alpnBits struct {
	bits   map[string]uint64
	shared bool // more protocols than bits: equal bits prove nothing
}

func (a *alpnBits) add(names []string) (mask uint64) {
	for _, n := range names {
		bit, ok := a.bits[n]
		if !ok {
			if a.bits == nil {
				a.bits = map[string]uint64{}
			}
			a.shared = len(a.bits) >= 64
			bit = 1 << (len(a.bits) % 64)
			a.bits[n] = bit
		}
		mask |= bit
	}
	return mask
}

func (a *alpnBits) offered(i *sniff.Info) (mask uint64) {
	if i == nil || len(a.bits) == 0 {
		return 0
	}
	for p := range i.ALPN.All() {
		mask |= a.bits[string(p)]
	}
	return mask
}

// bears reports whether a certificate with these names meets one of the
// patterns.
func bears(names, patterns []string) bool {
	for _, n := range names {
		for _, p := range patterns {
			if bearsOne(n, p) {
				return true
			}
		}
	}
	return false
}

// bearsOne compares without regard to the case of ASCII letters, and to no
// other: Unicode folds letters into ASCII ones that no authority has looked at.
// "*." stands for labels of a DNS name only, not for an e-mail address or URI
// that ends alike.
func bearsOne(name, pattern string) bool {
	if equalFold(name, pattern) {
		return true
	}
	parent, ok := strings.CutPrefix(pattern, "*")
	if !ok || len(name) <= len(parent) || !strings.HasPrefix(parent, ".") {
		return false
	}
	labels := name[:len(name)-len(parent)]
	for i := range len(labels) {
		switch c := labels[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.', c == '*':
		default:
			return false
		}
	}
	return equalFold(name[len(labels):], parent)
}

func equalFold(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		c |= 0x20
	}
	return c
}
