package config

import (
	"net/netip"
	"slices"
	"strings"

	"edgeproxy/internal/sniff"
	"edgeproxy/listener"
)

// shadows finds routes that are never reached, because earlier ones take all
// of their sessions. It may miss some; those it finds are sure.
type shadows struct {
	byName  map[string][]shadow // matches with sni, else host, by each of their patterns
	unnamed []shadow
	work    int            // comparisons left: without names they are quadratic
	hello   sniff.Protocol // what has names and ALPN

	// again are the tls blocks of routes by client_name. Sessions that get to
	// such a route are routed a second time once the certificate is known, and
	// then only by routes of the same block.
	again map[string]bool
}

// shadow is what an earlier match takes.
type shadow struct {
	route *routeNode
	match *listener.Match
}

const maxComparisons = 2_000_000

func newShadows(n listener.Network) *shadows {
	hello := sniff.TLS
	if n == listener.UDP {
		hello = sniff.QUIC
	}
	return &shadows{hello: hello, byName: make(map[string][]shadow), work: maxComparisons, again: make(map[string]bool)}
}

func (s *shadows) add(r *routeNode) {
	for _, m := range r.matches {
		if m.has("client_name") {
			s.again[r.tls] = true
		}
		if m.bad || m.partial {
			continue
		}
		sh := shadow{r, &m.match}
		names, kind := nameKeys(sh.match)
		for _, n := range names {
			s.byName[kind+n] = append(s.byName[kind+n], sh)
		}
		if kind == "" {
			s.unnamed = append(s.unnamed, sh)
		}
	}
}

// sure reports that sessions which match both do not get to the later route.
func (s *shadows) sure(earlier, later *routeNode) bool {
	return earlier.tls == later.tls || later.tls == "" || !s.again[later.tls]
}

// nameKeys are the names that a match goes by in the index; kind is "" if it
// has none.
func nameKeys(m *listener.Match) (names []string, kind string) {
	switch {
	case len(m.SNI) > 0:
		return m.SNI, "sni "
	case len(m.Host) > 0:
		return m.Host, "host "
	}
	return nil, ""
}

// covering returns an earlier route that has to do with r being unreachable,
// or nil if r may be reached.
func (s *shadows) covering(r *routeNode) (by *routeNode) {
	for _, m := range r.matches {
		if m.bad || m.partial || s.work <= 0 {
			return nil
		}
		names, kind := nameKeys(&m.match)
		if kind == "" {
			if by = s.scan(s.unnamed, r, &m.match); by == nil {
				return nil
			}
			continue
		}
		// Each name may be taken by another route.
		for _, n := range names {
			one := m.match
			if kind == "sni " {
				one.SNI = []string{n}
			} else {
				one.Host = []string{n}
			}
			if by = s.named(kind, n, r, &one); by == nil {
				return nil
			}
		}
	}
	return by
}

func (s *shadows) named(kind, name string, r *routeNode, m *listener.Match) *routeNode {
	if by := s.scan(s.byName[kind+name], r, m); by != nil {
		return by
	}
	for rest := strings.TrimPrefix(name, "*."); ; {
		_, parent, ok := strings.Cut(rest, ".")
		if !ok {
			break
		}
		if by := s.scan(s.byName[kind+"*."+parent], r, m); by != nil {
			return by
		}
		rest = parent
	}
	return s.scan(s.unnamed, r, m)
}

func (s *shadows) scan(list []shadow, r *routeNode, m *listener.Match) *routeNode {
	for _, sh := range list {
		if s.work--; s.work < 0 {
			return nil
		}
		if s.sure(sh.route, r) && s.covers(sh.match, m, sh.route.tls == r.tls) {
			return sh.route
		}
	}
	return nil
}

// covers reports that a holds whenever b does. Names in certificates are those
// of one way of verifying them, so they compare only where TLS is the same.
func (s *shadows) covers(a, b *listener.Match, sameTLS bool) bool {
	within := func(outer, inner []string, takes func(o, i string) bool) bool {
		return len(outer) == 0 || len(inner) > 0 && !slices.ContainsFunc(inner, func(i string) bool {
			return !slices.ContainsFunc(outer, func(o string) bool { return takes(o, i) })
		})
	}
	equal := func(o, i string) bool { return o == i }
	return within(a.SNI, b.SNI, patternTakes) &&
		within(a.Host, b.Host, patternTakes) &&
		within(a.Path, b.Path, func(o, i string) bool { return strings.HasPrefix(i, o) }) &&
		within(a.ALPN, b.ALPN, equal) &&
		(len(a.ClientName) == 0 || sameTLS && within(a.ClientName, b.ClientName, equal)) &&
		s.coversProtocol(a, b) && coversSource(a.Source, b.Source) && coversPort(a.Port, b.Port)
}

// patternTakes reports that every name of pattern i is one of pattern o.
func patternTakes(o, i string) bool {
	below, wildcard := strings.CutPrefix(o, "*")
	return o == i || wildcard && strings.HasSuffix(strings.TrimPrefix(i, "*"), below)
}

func (s *shadows) coversProtocol(a, b *listener.Match) bool {
	if len(a.Protocol) == 0 {
		return true
	}
	inner := b.Protocol
	switch {
	case len(inner) > 0:
	case len(b.SNI)+len(b.ALPN) > 0:
		inner = []sniff.Protocol{s.hello}
	case len(b.Host)+len(b.Path) > 0:
		inner = []sniff.Protocol{sniff.HTTP}
	}
	return len(inner) > 0 && !slices.ContainsFunc(inner, func(p sniff.Protocol) bool { return !slices.Contains(a.Protocol, p) })
}

func coversSource(outer, inner []netip.Prefix) bool {
	return len(outer) == 0 || len(inner) > 0 && !slices.ContainsFunc(inner, func(i netip.Prefix) bool {
		return !slices.ContainsFunc(outer, func(o netip.Prefix) bool { return o.Bits() <= i.Bits() && o.Contains(i.Addr()) })
	})
}

func coversPort(outer, inner []listener.PortRange) bool {
	return len(outer) == 0 || len(inner) > 0 && !slices.ContainsFunc(inner, func(i listener.PortRange) bool {
		return !slices.ContainsFunc(outer, func(o listener.PortRange) bool { return o.From <= i.From && i.To <= o.To })
	})
}
