package listener

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// whyDenied says which of allow and deny refuses the source.
func (x *explaining) whyDenied() string {
	a := x.q.Source.Addr()
	for _, p := range x.t.opts.Deny {
		if contains([]netip.Prefix{p}, a) {
			return fmt.Sprintf("source %v is in %v of deny", a, p)
		}
	}
	return fmt.Sprintf("source %v is in no prefix of allow: %s", a, list(texts(x.t.opts.Allow)))
}

// explainRoute asks of each match of a route whether it holds.
func (x *explaining) explainRoute(n int) RouteExplanation {
	o := x.t.routes[n].opts
	e := RouteExplanation{Name: o.Name}
	if !x.holds(o, Match{}) {
		e.Fails = []string{fmt.Sprintf("the session's TLS is terminated by tls.%s already, not by %s", x.facts.tls, orPassed(o.TLS))}
		return e
	}
	e.Holds = len(o.Match) == 0
	for i := range o.Match {
		why := ""
		for _, c := range conditions(&o.Match[i]) {
			if !x.holds(o, c.Match) {
				why = x.why(c)
				break
			}
		}
		e.Fails = append(e.Fails, why)
		e.Holds = e.Holds || why == ""
	}
	return e
}

// holds asks a table that has the route alone, with this match.
func (x *explaining) holds(o *RouteOptions, m Match) bool {
	alone := Options{Routes: []RouteOptions{{Match: []Match{m}, Reject: true, TLS: o.TLS}}}
	return newTable(&alone, nil).route(&x.facts) == 0
}

func orPassed(tls string) string {
	if tls == "" {
		return "none"
	}
	return "tls." + tls
}

// condition is a match with one condition of another.
type condition struct {
	name string
	Match
}

// conditions takes a match apart, in the order of the reference.
func conditions(m *Match) []condition {
	var all []condition
	add := func(n int, name string, one Match) {
		if n > 0 {
			all = append(all, condition{name, one})
		}
	}
	add(len(m.Source), "source", Match{Source: m.Source})
	add(len(m.Port), "port", Match{Port: m.Port})
	add(len(m.Protocol), "protocol", Match{Protocol: m.Protocol})
	add(len(m.SNI), "sni", Match{SNI: m.SNI})
	add(len(m.ALPN), "alpn", Match{ALPN: m.ALPN})
	add(len(m.Host), "host", Match{Host: m.Host})
	add(len(m.Path), "path", Match{Path: m.Path})
	add(len(m.ClientName), "client_name", Match{ClientName: m.ClientName})
	return all
}

// why says how a condition that does not hold differs from what there is.
func (x *explaining) why(c condition) string {
	f, in := &x.facts, &x.info
	switch c.name {
	case "source":
		return fmt.Sprintf("source %v is not in %s", f.source, list(texts(c.Source)))
	case "port":
		ports := make([]string, len(c.Port))
		for i, r := range c.Port {
			if ports[i] = strconv.Itoa(int(r.From)); r.To != r.From {
				ports[i] += "-" + strconv.Itoa(int(r.To))
			}
		}
		return fmt.Sprintf("port %d is not %s", f.port, list(ports))
	case "protocol":
		return fmt.Sprintf("protocol %v is not %s", f.protocol(), list(texts(c.Protocol)))
	case "sni":
		return absent("sni", string(in.ServerName), "the client names no server", c.SNI)
	case "alpn":
		return absent("alpn", strings.Join(x.q.ALPN, " and "), "the client offers no ALPN", c.ALPN)
	case "host":
		return absent("host", string(in.Host), "no HTTP/1 request names a host", c.Host)
	case "path":
		if len(in.Path) == 0 {
			return absent("path", "", "no HTTP/1 request has a path", c.Path)
		}
		return fmt.Sprintf("path %s does not begin with %s", in.Path, list(c.Path))
	}
	if f.tls == "" {
		return "client_name needs a route with tls"
	}
	return absent("client_name", strings.Join(f.names, " and "), "the client has no certificate", c.ClientName)
}

// absent says that what there is, perhaps nothing, is not what is wanted.
func absent(what, is, isNot string, wanted []string) string {
	if is == "" {
		return fmt.Sprintf("%s: %s, asked for is %s", what, isNot, list(wanted))
	}
	return fmt.Sprintf("%s %s is not %s", what, is, list(wanted))
}

func texts[T fmt.Stringer](list []T) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = s.String()
	}
	return out
}

// list joins what a line has room for.
func list(words []string) string {
	const room = 5
	switch n := len(words); {
	case n == 0:
		return "nothing"
	case n == 1:
		return words[0]
	case n <= room:
		return strings.Join(words[:n-1], ", ") + " or " + words[n-1]
	default:
		return fmt.Sprintf("%s or %d more", strings.Join(words[:room-1], ", "), n-room+1)
	}
}
