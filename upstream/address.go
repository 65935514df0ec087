package upstream

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Address is where a server listens: an IP address and port, a host name and
// port that is looked up again and again, or a unix socket.
type Address struct {
	AddrPort netip.AddrPort // valid for IP addresses
	Host     string         // a host name, with Port
	Port     uint16
	Unix     string // path of a unix socket; a leading '@' means the abstract namespace
}

// ParseAddress reads "10.0.0.1:80", "[::1]:80", "host.name:80", "unix:/path"
// or "unix:@abstract".
func ParseAddress(s string) (Address, error) {
	if p, ok := strings.CutPrefix(s, "unix:"); ok {
		if p == "" || p == "@" {
			return Address{}, fmt.Errorf("%q names no socket; write \"unix:/run/app.sock\" or \"unix:@name\"", s)
		}
		if len(p) > 107 {
			return Address{}, fmt.Errorf("unix socket path is %d bytes long; the kernel takes at most 107", len(p))
		}
		if p[0] != '/' && p[0] != '@' {
			return Address{}, fmt.Errorf("unix socket path %q is relative; write an absolute path", p)
		}
		return Address{Unix: p}, nil
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		if ap.Port() == 0 {
			return Address{}, fmt.Errorf("port 0 cannot be connected to; write 1–65535")
		}
		return Address{AddrPort: netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())}, nil
	}
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return Address{}, fmt.Errorf("%q has no port; write \"%s:8080\"", s, s)
	}
	host, port := s[:i], s[i+1:]
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return Address{}, fmt.Errorf("port %q is not a number from 1 to 65535", port)
	}
	if strings.Contains(host, ":") {
		return Address{}, fmt.Errorf("an IPv6 address with a port needs brackets: \"[%s]:%s\"", strings.Trim(host, "[]"), port)
	}
	if !validHost(host) {
		return Address{}, fmt.Errorf("%q is neither an IP address nor a host name", host)
	}
	return Address{Host: host, Port: uint16(n)}, nil
}

func (a Address) String() string {
	switch {
	case a.Unix != "":
		return "unix:" + a.Unix
	case a.Host != "":
		return a.Host + ":" + strconv.Itoa(int(a.Port))
	default:
		return a.AddrPort.String()
	}
}

// validHost follows RFC 1123 section 2.1, and lets underscores pass, as
// container platforms use them.
func validHost(h string) bool {
	h = strings.TrimSuffix(h, ".")
	if h == "" || len(h) > 253 {
		return false
	}
	digits := true
	for _, label := range strings.Split(h, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := 0; i < len(label); i++ {
			switch c := label[i]; {
			case c >= '0' && c <= '9':
			case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '-', c == '_':
				digits = false
			default:
				return false
			}
		}
	}
	return !digits // "300.1.2.3" is a mistyped address, not a name
}
