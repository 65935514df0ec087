package config

import (
	"cmp"
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
	tlsByName := make(map[string]*tlsNode, len(l.root.tls))
	for _, n := range l.root.tls {
		l.checkTLS(n)
		if tlsByName[n.name] == nil {
			tlsByName[n.name] = n
		}
		cfg.TLS = append(cfg.TLS, n.opts)
	}
	used := uses{upstreams: make(map[string][]*listenerNode), tls: make(map[string]bool)}
	bound := map[listener.Network]*overlaps{listener.TCP: newOverlaps(), listener.UDP: newOverlaps()}
	for _, n := range l.root.listeners {
		n.opts.Name = n.name
		n.opts.Addresses = n.bound.list
		l.checkListener(n)
		l.checkRoutes(n, tlsByName, used)
		l.checkOverlaps(bound[n.opts.Network], n)
		cfg.Listeners = append(cfg.Listeners, n.opts)
	}
	if a := l.root.admin; a != nil && a.admin.Address != "" {
		l.checkBinder(bound[listener.TCP], a.node, "the admin server", "address", a.admin.Address)
	}
	l.checkChallenges(bound[listener.TCP])
	for _, n := range l.root.upstreams {
		l.checkUpstream(n)
		l.checkHash(n)
		l.checkDatagrams(n, used.upstreams[n.name])
		cfg.Upstreams = append(cfg.Upstreams, n.opts)
	}
	upstreams := make(map[string]*upstreamNode, len(l.root.upstreams))
	for _, n := range l.root.upstreams {
		upstreams[n.name] = n
	}
	for _, n := range l.root.listeners {
		l.checkServerIDsOf(n, upstreams)
	}
	l.checkLoops(bound[listener.UDP], used)
	if l.d.HasErrors() {
		return // what is in error may have been its user
	}
	for _, n := range l.root.upstreams {
		if used.upstreams[n.name] == nil {
			l.d.warnf(n.header, "It is still set up, and its servers are checked.", "upstream %q is not used by any listener", n.name)
		}
	}
	for _, n := range l.root.tls {
		if !used.tls[n.name] {
			l.d.warnf(n.header, "Its certificates are still loaded and renewed.", "tls %q is not used by any listener", n.name)
		}
	}
}

// uses are the names that listeners refer to, upstreams with those who do.
type uses struct {
	upstreams map[string][]*listenerNode
	tls       map[string]bool
}

func (u uses) upstream(name string, by *listenerNode) {
	list := u.upstreams[name]
	if len(list) == 0 || list[len(list)-1] != by {
		u.upstreams[name] = append(list, by)
	}
}

func (l *loader) checkListener(n *listenerNode) {
	if p := n.proxy; p != nil && p.has("from") && !p.bad && len(*p.from) == 0 {
		l.d.errorf(p.at("from"), "Name who may send PROXY headers, or leave the block out.", "from: the list is empty")
	}
	handshake := orDefault(n.opts.Timeouts.Handshake, listener.DefaultHandshake)
	if t := n.opts.Timeouts.Sniff; t > 0 && handshake > 0 && t >= handshake {
		l.d.warnf(n.timeouts.at("sniff"), "It never comes to that: timeouts.handshake ends the session first.",
			"the sniff timeout, %s, is not shorter than that of the handshake, %s", shortDuration(t), shortDuration(handshake))
	}
	if t := n.opts.Timeouts; n.opts.Network == listener.UDP && t.Idle < 0 && t.Lifetime <= 0 {
		l.d.warnf(n.timeouts.at("idle"), "Nobody says goodbye over UDP: each client that was ever there keeps a descriptor. Set idle, long if need be, or lifetime.",
			"sessions of listener %q may never end", n.name)
	}
}

// checkBinder is checkOverlaps for an address that is not a listener's.
func (l *loader) checkBinder(ov *overlaps, at node, owner, attr, address string) {
	list, err := listener.ParseAddress(address)
	if err != nil {
		return // said by its codec
	}
	l.checkOverlaps(ov, &listenerNode{node: at, owned: owner, attr: attr, bound: boundAddresses{list: list, text: []string{address}, ends: []int{len(list)}}})
}

func (l *loader) checkUpstream(n *upstreamNode) {
	n.opts.Name = n.name
	l.d.blocks["upstream."+n.name] = n.header
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
	l.checkClientTLS(n)
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
			l.d.errorf(n.addressAt(elem), "Each address can be listened on once. \":443\" stands for all IPv4 and IPv6 addresses, \"0.0.0.0:443\" for all IPv4 ones.",
				"%s: %q overlaps %q of %s at %s", n.addressAttr(), n.bound.text[elem], first.n.bound.text[first.elem], first.n.owner(), place(first.n.addressAt(first.elem)))
		}
		from = end
	}
}

func (n *listenerNode) owner() string {
	if n.owned != "" {
		return n.owned
	}
	return fmt.Sprintf("listener %q", n.name)
}

func (n *listenerNode) addressAttr() string { return cmp.Or(n.attr, "address") }

func (n *listenerNode) addressAt(i int) hcl.Range {
	if a := n.attrs[n.addressAttr()]; a != nil {
		return element(a.Expr, i)
	}
	return n.header
}
