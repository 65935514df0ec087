package config

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/hashicorp/hcl/v2"

	"edgeproxy/health"
	"edgeproxy/listener"
)

// check looks at what no single attribute can tell, and completes the Config.
func (l *loader) check() {
	cfg := &l.root.cfg
	used := make(map[string]bool)
	ov := newOverlaps()
	for _, n := range l.root.listeners {
		n.opts.Name = n.name
		n.opts.Addresses = n.bound.list
		l.checkRoutes(n, used)
		l.checkOverlaps(ov, n)
		cfg.Listeners = append(cfg.Listeners, n.opts)
	}
	if a := l.root.admin; a != nil && a.admin.Address != "" {
		if list, err := listener.ParseAddress(a.admin.Address); err == nil {
			l.checkOverlaps(ov, &listenerNode{node: a.node, bound: boundAddresses{list: list, text: []string{a.admin.Address}, ends: []int{1}}})
		}
	}
	for _, n := range l.root.upstreams {
		l.checkUpstream(n)
		cfg.Upstreams = append(cfg.Upstreams, n.opts)
	}
	if l.d.HasErrors() {
		return // what is in error may have been its user
	}
	for _, n := range l.root.upstreams {
		if !used[n.name] {
			l.d.warnf(n.header, "It is still set up, and its servers are checked.", "upstream %q is not used by any listener", n.name)
		}
	}
}

func (l *loader) checkRoutes(n *listenerNode, used map[string]bool) {
	switch {
	case n.partial:
	case n.has("upstream") && len(n.routes) > 0:
		l.d.errorf(n.at("upstream"), "Put it into a last route without match: route \"rest\" { upstream = … }",
			"listener %q has both an upstream and routes", n.name)
	case !n.has("upstream") && len(n.routes) == 0:
		l.d.errorf(n.header, "Write upstream = upstream.NAME to send all sessions there, or route blocks.",
			"listener %q has neither an upstream nor routes", n.name)
	}
	if len(n.routes) == 0 {
		if n.upstream != "" {
			used[n.upstream] = true
			n.opts.Routes = []listener.RouteOptions{{Splits: []listener.Split{{Upstream: n.upstream, Weight: 1}}}}
		}
		return
	}
	var catchAll *routeNode
	for _, r := range n.routes {
		if catchAll != nil {
			l.d.warnf(r.header, "Routes are tried in the order of the file, the first that matches wins.",
				"route %q is never reached: route %q at %s takes every session", r.name, catchAll.name, place(catchAll.header))
		} else if r.matchesAll() {
			catchAll = r
		}
		n.opts.Routes = append(n.opts.Routes, l.route(r, used))
	}
}

func (r *routeNode) matchesAll() bool {
	for _, m := range r.matches {
		if !m.partial && !m.has("source") && !m.has("port") {
			return true
		}
	}
	return len(r.matches) == 0 && !r.partial
}

func (l *loader) route(r *routeNode, used map[string]bool) listener.RouteOptions {
	out := listener.RouteOptions{Name: r.name, Reject: r.reject}
	for _, m := range r.matches {
		// An empty list is a mistake rather than "matches nothing".
		for _, a := range []string{"source", "port"} {
			if m.has(a) && l.emptyList(m.attrs[a].Expr, len(m.match.Source)+len(m.match.Port)) {
				l.d.errorf(m.at(a), "Leave the attribute out to match all.", "%s: the list is empty", a)
			}
		}
		out.Match = append(out.Match, m.match)
	}
	ways := btoi(r.has("upstream")) + btoi(len(r.splits) > 0) + btoi(r.reject)
	switch {
	case r.partial:
	case ways == 0 && !r.bad:
		l.d.errorf(r.header, "Write one of: upstream = upstream.NAME, split { … } blocks, reject = true.",
			"route %q does not say where its sessions go", r.name)
	case ways > 1:
		l.d.errorf(r.header, "Keep one of upstream, split and reject.", "route %q says more than once where its sessions go", r.name)
	}
	if r.upstream != "" {
		used[r.upstream] = true
		out.Splits = []listener.Split{{Upstream: r.upstream, Weight: 1}}
	}
	sum := 0
	for _, s := range r.splits {
		used[s.split.Upstream] = true
		sum += s.split.Weight
		out.Splits = append(out.Splits, s.split)
	}
	if len(r.splits) > 0 && sum == 0 {
		l.d.errorf(r.splits[0].header, "Give at least one of them a weight above 0.", "the splits of route %q all have weight 0", r.name)
	}
	return out
}

func (l *loader) emptyList(expr hcl.Expression, decoded int) bool {
	if decoded > 0 {
		return false
	}
	list, diags := hcl.ExprList(expr)
	return !diags.HasErrors() && len(list) == 0
}

func (l *loader) checkUpstream(n *upstreamNode) {
	n.opts.Name = n.name
	if len(n.servers) == 0 && !n.partial {
		l.d.errorf(n.header, `Add one: server "a" { address = "10.0.0.1:8080" }`, "upstream %q has no server", n.name)
	}
	addresses := make(map[string]*serverNode, len(n.servers))
	for _, s := range n.servers {
		s.opts.Name = s.name
		if s.has("weight") && s.opts.Weight == 0 {
			s.opts.Weight = -1
		}
		if a := s.opts.Address.String(); s.opts.Address.Port != 0 || s.opts.Address.Unix != "" || s.opts.Address.AddrPort.IsValid() {
			if first := addresses[a]; first != nil {
				l.d.warnf(s.at("address"), "It is checked twice and chosen twice as often; weight says that more clearly.",
					"%s is also the address of server %q at %s", a, first.name, place(first.header))
			} else {
				addresses[a] = s
			}
		}
		n.opts.Servers = append(n.opts.Servers, s.opts)
	}
	for _, h := range n.health {
		l.checkHealth(h)
		n.opts.Health = append(n.opts.Health, h.opts)
	}
}

func (l *loader) checkHealth(h *healthNode) {
	for _, p := range []struct {
		text string
		hex  []byte
		to   *[]byte
	}{{"send", h.sendHex, &h.opts.Send}, {"expect", h.matchHex, &h.opts.Expect}} {
		switch {
		case h.has(p.text) && h.has(p.text+"_hex"):
			l.d.errorf(h.at(p.text+"_hex"), "Keep one of them.", "%s and %s_hex together", p.text, p.text)
		case h.has(p.text + "_hex"):
			*p.to = p.hex
		}
	}
	if interval := orDefault(h.opts.Interval, health.DefaultInterval); h.opts.Timeout > interval {
		l.d.warnf(h.at("timeout"), "A probe that takes longer than the interval delays the next one.",
			"the timeout of a probe, %s, is longer than the interval, %s", shortDuration(h.opts.Timeout), shortDuration(interval))
	}
}

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

// overlaps finds addresses that collide, as [listener.Address.Overlaps]
// defines it, without comparing all with all: a range alone can be 65 535.
type overlaps struct {
	named map[string]*binder
	exact map[netip.AddrPort]*binder
	ports map[uint16]*port
}

// port says who holds which addresses of one port; the first of each counts.
type port struct{ any4, any6, some4, some6 *binder }

// binder is an element of a listener's address list.
type binder struct {
	n    *listenerNode
	elem int
}

func newOverlaps() *overlaps {
	return &overlaps{named: make(map[string]*binder), exact: make(map[netip.AddrPort]*binder), ports: make(map[uint16]*port)}
}

// add returns who holds an address that overlaps a, or nil after noting a.
func (o *overlaps) add(a listener.Address, by *binder) *binder {
	if a.Unix != "" || a.Systemd != "" {
		k := a.String()
		if first := o.named[k]; first != nil {
			return first
		}
		o.named[k] = by
		return nil
	}
	if a.AddrPort.Port() == 0 {
		return nil
	}
	ip := a.AddrPort.Addr()
	p := o.ports[a.AddrPort.Port()]
	if p == nil {
		p = new(port)
		o.ports[a.AddrPort.Port()] = p
	}
	any4 := a.Dual || ip.IsUnspecified() && ip.Is4()
	any6 := a.Dual || ip.IsUnspecified() && !ip.Is4()
	for _, first := range []*binder{
		o.exact[a.AddrPort],
		pick(ip.Is4() || any4, p.any4), pick(!ip.Is4() || any6, p.any6),
		pick(any4, p.some4), pick(any6, p.some6),
	} {
		if first != nil {
			return first
		}
	}
	o.exact[a.AddrPort] = by
	if any4 {
		p.any4 = by
	}
	if any6 {
		p.any6 = by
	}
	switch {
	case any4 || any6:
	case ip.Is4():
		p.some4 = by
	default:
		p.some6 = by
	}
	return nil
}

func pick(cond bool, b *binder) *binder {
	if cond {
		return b
	}
	return nil
}

// checkOverlaps reports each pair of elements once, however many ports they
// share.
func (l *loader) checkOverlaps(o *overlaps, n *listenerNode) {
	from := 0
	for elem, end := range n.bound.ends {
		by := &binder{n, elem}
		said := make(map[binder]bool)
		for _, a := range n.bound.list[from:end] {
			first := o.add(a, by)
			if first == nil || said[*first] || *first == *by {
				continue
			}
			said[*first] = true
			l.d.errorf(n.elementAt("address", elem), "Each address can be listened on once. \":443\" stands for all IPv4 and IPv6 addresses, \"0.0.0.0:443\" for all IPv4 ones.",
				"address: %q overlaps %q of %s at %s", n.bound.text[elem], first.n.bound.text[first.elem], first.n.owner(), place(first.n.elementAt("address", first.elem)))
		}
		from = end
	}
}

func (n *listenerNode) owner() string {
	if n.name == "" {
		return "the admin server"
	}
	return fmt.Sprintf("listener %q", n.name)
}

func (n *listenerNode) elementAt(attr string, i int) hcl.Range {
	if a := n.attrs[attr]; a != nil {
		return element(a.Expr, i)
	}
	return n.header
}
