package health

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"edgeproxy/internal/proxyproto"
)

// A probe that begins with a PROXY header: section 2.1 of the specification
// wants the addresses of the probe's connection in version 1, section 2.2 the
// command LOCAL in version 2.
func TestProxyHeader(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, network := range []string{"tcp4", "tcp6", "unix"} {
		for _, version := range []ProxyProtocol{ProxyV1, ProxyV2} {
			for _, o := range []Options{{Kind: TCP}, {Kind: TCP, Send: []byte("PING\n")}, {Kind: TCP, Send: []byte("PING\n"), Expect: []byte("+PONG")}, {Kind: HTTP}} {
				name := fmt.Sprintf("%s, v%d, %v, %d bytes for %d", network, version, o.Kind, len(o.Send), len(o.Expect))
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					addr := map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0", "unix": filepath.Join(dir, fmt.Sprint(version, o.Kind, len(o.Send), len(o.Expect)))}[network]
					got := make(chan error, 1)
					addr = serve(t, network, addr, func(c net.Conn) { got <- expectHeader(c, version, &o) })
					o.ProxyProtocol, o.Timeout = version, 20*time.Second
					target := Target{Network: "tcp", Address: addr, Host: "localhost"}
					if network == "unix" {
						target.Network = network
					}
					if err := run(t, o, target); err != nil {
						t.Error(err)
					}
					if err := <-got; err != nil {
						t.Error(err)
					}
				})
			}
		}
	}
}

// expectHeader is a server that answers probes with a header, and wants
// nothing between it and what comes next.
func expectHeader(c net.Conn, version ProxyProtocol, o *Options) error {
	r := bufio.NewReader(c)
	var h proxyproto.Header
	for need := 1; ; {
		b, err := r.Peek(need)
		if err != nil {
			return fmt.Errorf("after %q: %w", b, err)
		}
		n := 0
		if n, need, err = h.Parse(b); err != nil {
			return err
		}
		if n > 0 {
			r.Discard(n)
			break
		}
	}
	src, local := addrPort(c.RemoteAddr()), addrPort(c.LocalAddr())
	if version == ProxyV2 {
		src, local = netip.AddrPort{}, netip.AddrPort{}
	}
	if h.Version != uint8(version) || h.Local != (version == ProxyV2) || h.Source != src || h.Destination != local {
		return fmt.Errorf("%+v; want %v and %v", h, src, local)
	}
	if o.Kind == HTTP {
		if _, err := http.ReadRequest(r); err != nil {
			return err
		}
		_, err := io.WriteString(c, ok)
		return err
	}
	b := make([]byte, len(o.Send))
	if _, err := io.ReadFull(r, b); err != nil || string(b) != string(o.Send) {
		return fmt.Errorf("after the header: %q, %v", b, err)
	}
	if len(o.Expect) > 0 {
		_, err := io.WriteString(c, "+PONG\n")
		return err
	}
	if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
		return fmt.Errorf("%q and %v instead of an orderly end", rest, err)
	}
	return nil
}

// A server that wants no header says so, and the check fails with its words.
func TestProxyHeaderIsNotWanted(t *testing.T) {
	t.Parallel()
	addr := serve(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
			io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
		}
		hang(c)
	})
	o := Options{Kind: HTTP, ProxyProtocol: ProxyV2, Timeout: 20 * time.Second}
	if got, want := text(run(t, o, Target{Network: "tcp", Address: addr})), "status 400, want 200-399"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
