package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"edgeproxy/listener"
	"edgeproxy/upstream"
)

// checkDatagrams looks at whether an upstream can be used by the UDP listeners
// that do.
func (l *loader) checkDatagrams(n *upstreamNode, users []*listenerNode) {
	byIDs := l.checkServerIDs(n)
	i := slices.IndexFunc(users, func(u *listenerNode) bool { return u.opts.Network == listener.UDP })
	if i < 0 {
		if byIDs != nil && !l.d.HasErrors() {
			l.d.warnf(byIDs.at("quic_server_id"), "QUIC comes over UDP.", "quic_server_id has no effect: no listener \"udp\" uses upstream %q", n.name)
		}
		return
	}
	by := fmt.Sprintf("listener \"udp\" %q at %s", users[i].name, place(users[i].header))
	for _, s := range n.servers {
		if s.opts.Address.Unix != "" {
			l.d.errorf(s.at("address"), "Give the server an IP address, or TCP an upstream of its own.",
				"server %q is a unix socket, and %s sends datagrams there", s.name, by)
		}
	}
	if t := n.tls; t != nil {
		l.d.errorf(t.header, "Datagrams are passed on as they come, QUIC with the encryption that it has. Give TCP an upstream of its own.",
			"upstream %q encrypts by TLS, and %s sends datagrams there", n.name, by)
	}
	if n.opts.ProxyProtocol == upstream.ProxyV1 {
		l.d.errorf(n.at("proxy_protocol"), "Datagrams can only have version 2: write \"v2\".",
			"version 1 of the PROXY protocol, and %s sends datagrams there", by)
	}
	if byIDs != nil {
		l.checkIDLengths(n, users)
	}
}

// checkServerIDs returns the first server with an id, or nil.
func (l *loader) checkServerIDs(n *upstreamNode) (first *serverNode) {
	seen := make(map[string]*serverNode)
	for _, s := range n.servers {
		id := s.opts.QUICServerID
		if id == "" {
			continue
		}
		if other := seen[id]; other != nil {
			l.d.errorf(s.at("quic_server_id"), "It tells the servers of an upstream apart.",
				"quic_server_id %x is that of server %q at %s, too", id, other.name, place(other.header))
			continue
		}
		seen[id] = s
		if first == nil {
			first = s
		}
	}
	return first
}

func (l *loader) checkIDLengths(n *upstreamNode, users []*listenerNode) {
	for _, u := range users {
		length := u.opts.UDP.QUICServerID
		if u.opts.Network != listener.UDP || u.bad || u.quic != nil && u.quic.bad {
			continue
		}
		for _, s := range n.servers {
			id := s.opts.QUICServerID
			switch {
			case id == "" || len(id) == length:
			case length == 0:
				l.d.warnf(s.at("quic_server_id"), fmt.Sprintf("Write there: quic { server_id_length = %d }", len(id)),
					"quic_server_id has no effect for listener %q at %s, which looks for none", u.name, place(u.header))
			default:
				l.d.errorf(s.at("quic_server_id"), "All servers of a listener have ids of one length.",
					"quic_server_id has %s, and listener %q looks for %s at %s", inBytes(len(id)), u.name, inBytes(length), place(u.quic.at("server_id_length")))
			}
		}
	}
}

// checkServerIDsOf looks at whether the servers of all upstreams of a listener
// can be told apart by their ids.
func (l *loader) checkServerIDsOf(n *listenerNode, upstreams map[string]*upstreamNode) {
	if n.opts.UDP.QUICServerID == 0 {
		return
	}
	type owner struct {
		upstream *upstreamNode
		server   *serverNode
	}
	first := make(map[string]owner)
	seen := make(map[string]bool)
	for _, r := range n.opts.Routes {
		for _, split := range r.Splits {
			u := upstreams[split.Upstream]
			if u == nil || seen[u.name] {
				continue
			}
			seen[u.name] = true
			for _, s := range u.servers {
				id := s.opts.QUICServerID
				switch o, taken := first[id]; {
				case id == "":
				case !taken:
					first[id] = owner{u, s}
				case o.upstream != u && o.server.opts.Address != s.opts.Address:
					l.d.warnf(s.at("quic_server_id"), "A client of this one whose address changes would go on with that one, and fail. Give each server an id of its own.",
						"quic_server_id %x is that of server %q at %s, too, and listener %q uses both", id, o.server.name, place(o.server.header), n.name)
				}
			}
		}
	}
}

func inBytes(n int) string {
	if n == 1 {
		return "1 byte"
	}
	return fmt.Sprintf("%d bytes", n)
}

// checkHash looks at whether hash_on can do what it says.
func (l *loader) checkHash(n *upstreamNode) {
	if !n.has("hash_on") || n.bad {
		return
	}
	if !n.opts.Balance.Keyed() {
		l.d.warnf(n.at("hash_on"), "It is the key of balance = \"maglev\" and \"ring_hash\".", "hash_on has no effect with balance = %q", n.opts.Balance.String())
	}
}

// checkLoops refuses UDP listeners whose datagrams would come back to them.
// Two connections would notice; datagrams go round until something drops them.
func (l *loader) checkLoops(bound *overlaps, used uses) {
	type hop struct {
		to     *listenerNode
		server *serverNode
	}
	hops := make(map[*listenerNode][]hop)
	for _, u := range l.root.upstreams {
		for _, s := range u.servers {
			for _, to := range bound.reached(s.opts.Address) {
				for _, from := range used.upstreams[u.name] {
					if from.opts.Network == listener.UDP {
						hops[from] = append(hops[from], hop{to, s})
					}
				}
			}
		}
	}
	state := make(map[*listenerNode]uint8)
	var path []*listenerNode
	var visit func(n *listenerNode)
	visit = func(n *listenerNode) {
		state[n] = onPath
		path = append(path, n)
		for _, h := range hops[n] {
			switch state[h.to] {
			case unvisited:
				visit(h.to)
			case onPath:
				const how = "Each datagram would go round and round. Send them to the address that a server listens on."
				circle := path[slices.Index(path, h.to):]
				if len(circle) == 1 {
					l.d.errorf(h.server.at("address"), how, "server %q is listener %q at %s, which sends its datagrams there", h.server.name, n.name, place(n.header))
					continue
				}
				var names []string
				for _, c := range append(slices.Clone(circle), h.to) {
					names = append(names, fmt.Sprintf("%q at %s", c.name, place(c.header)))
				}
				l.d.errorf(h.server.at("address"), how, "UDP listeners send to each other in a circle: %s", strings.Join(names, " → "))
			}
		}
		path = path[:len(path)-1]
		state[n] = done
	}
	for _, n := range l.root.listeners {
		if state[n] == unvisited && len(hops[n]) > 0 {
			visit(n)
		}
	}
}

// reached returns who holds the address of a server, as far as the file can
// tell: which addresses the machine has is not in it, but for loopback.
func (o *overlaps) reached(a upstream.Address) (by []*listenerNode) {
	targets := []netip.AddrPort{a.AddrPort}
	if a.Host == "localhost" {
		targets = []netip.AddrPort{netip.AddrPortFrom(loopback4, a.Port), netip.AddrPortFrom(netip.IPv6Loopback(), a.Port)}
	}
	for _, t := range targets {
		if !t.IsValid() {
			continue
		}
		if t.Addr().IsUnspecified() { // connecting there is connecting to this machine
			ip := netip.IPv6Loopback()
			if t.Addr().Is4() {
				ip = loopback4
			}
			t = netip.AddrPortFrom(ip, t.Port())
		}
		b := o.exact[t]
		if p := o.ports[t.Port()]; b == nil && p != nil && t.Addr().IsLoopback() {
			if b = p.any6; t.Addr().Is4() {
				b = p.any4
			}
		}
		if b != nil && !slices.Contains(by, b.n) {
			by = append(by, b.n)
		}
	}
	return by
}

var loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})
