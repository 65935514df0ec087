package listener

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Address is one place to listen on.
type Address struct {
	AddrPort netip.AddrPort // valid for TCP; the address is :: for both families
	Dual     bool           // AddrPort.Addr() is ::, and IPv4 is taken as well
	Unix     string         // path of a unix socket; a leading '@' means the abstract namespace
	Systemd  string         // name of an inherited socket (LISTEN_FDNAMES)
}

// ParseAddress reads one address form and returns the addresses it stands
// for, more than one only for a port range:
//
//	":443"  "*:443"          all IPv4 and IPv6 addresses
//	"0.0.0.0:443"            all IPv4 addresses
//	"[::]:443"               all IPv6 addresses
//	"192.0.2.1:8000-8010"    a range of ports, both ends included
//	"unix:/run/e.sock"       a unix socket
//	"unix:@name"             an abstract unix socket
//	"systemd:web"            a socket passed by systemd under that name
func ParseAddress(s string) ([]Address, error) {
	if p, ok := strings.CutPrefix(s, "unix:"); ok {
		switch {
		case p == "" || p == "@":
			return nil, fmt.Errorf("%q names no socket; write \"unix:/run/edge.sock\" or \"unix:@name\"", s)
		case len(p) > 107:
			return nil, fmt.Errorf("unix socket path is %d bytes long; the kernel takes at most 107", len(p))
		case p[0] != '/' && p[0] != '@':
			return nil, fmt.Errorf("unix socket path %q is relative; write an absolute path", p)
		}
		return []Address{{Unix: p}}, nil
	}
	if n, ok := strings.CutPrefix(s, "systemd:"); ok {
		if n == "" {
			return nil, fmt.Errorf("%q names no socket; write the FileDescriptorName= of the socket unit, as in \"systemd:web\"", s)
		}
		return []Address{{Systemd: n}}, nil
	}
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return nil, fmt.Errorf("%q has no port; write \":443\", \"192.0.2.1:443\", \"[2001:db8::1]:443\", \"unix:/path\" or \"systemd:name\"", s)
	}
	host, ports := s[:i], s[i+1:]
	var a Address
	var ip netip.Addr
	switch {
	case host == "" || host == "*":
		ip, a.Dual = netip.IPv6Unspecified(), true
	case host[0] == '[' && host[len(host)-1] == ']':
		v, err := netip.ParseAddr(host[1 : len(host)-1])
		if err != nil || !v.Is6() {
			return nil, fmt.Errorf("%q is not an IPv6 address", host)
		}
		ip = v.Unmap() // the kernel binds no mapped address to a socket of IPv6 alone
	case strings.Contains(host, ":"):
		return nil, fmt.Errorf("an IPv6 address with a port needs brackets: \"[%s]:%s\"", host, ports)
	default:
		v, err := netip.ParseAddr(host)
		if err != nil {
			return nil, fmt.Errorf("%q is not an IP address; a listener cannot listen on a host name", host)
		}
		ip = v
	}
	from, to, err := parsePorts(ports)
	if err != nil {
		return nil, err
	}
	out := make([]Address, 0, int(to)-int(from)+1)
	for p := int(from); p <= int(to); p++ {
		a.AddrPort = netip.AddrPortFrom(ip, uint16(p))
		out = append(out, a)
	}
	return out, nil
}

func parsePorts(s string) (from, to uint16, err error) {
	lo, hi, isRange := strings.Cut(s, "-")
	f, err := strconv.ParseUint(lo, 10, 16)
	if err != nil {
		return 0, 0, fmt.Errorf("port %q is not a number from 0 to 65535", lo)
	}
	if !isRange {
		return uint16(f), uint16(f), nil
	}
	t, err := strconv.ParseUint(hi, 10, 16)
	if err != nil {
		return 0, 0, fmt.Errorf("port %q is not a number from 0 to 65535", hi)
	}
	if f == 0 || t < f {
		return 0, 0, fmt.Errorf("port range %q is empty; write the lower port first, from 1", s)
	}
	return uint16(f), uint16(t), nil
}

func (a Address) String() string {
	switch {
	case a.Unix != "":
		return "unix:" + a.Unix
	case a.Systemd != "":
		return "systemd:" + a.Systemd
	case a.Dual:
		return ":" + strconv.Itoa(int(a.AddrPort.Port()))
	default:
		return a.AddrPort.String()
	}
}

// Overlaps reports whether two addresses would take each other's connections
// or fail to bind side by side. Port 0 (the kernel chooses) overlaps nothing.
func (a Address) Overlaps(b Address) bool {
	if a.Unix != "" || b.Unix != "" {
		return a.Unix == b.Unix
	}
	if a.Systemd != "" || b.Systemd != "" {
		return a.Systemd == b.Systemd
	}
	if a.AddrPort.Port() != b.AddrPort.Port() || a.AddrPort.Port() == 0 {
		return false
	}
	x, y := a.AddrPort.Addr(), b.AddrPort.Addr()
	if x == y {
		return true
	}
	covers := func(w Address, o netip.Addr) bool {
		return w.AddrPort.Addr().IsUnspecified() && (w.Dual || w.AddrPort.Addr().Is4() == o.Is4())
	}
	return covers(a, y) || covers(b, x)
}
