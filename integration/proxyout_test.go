package integration

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
)

// readProxyHeader reads a header of the PROXY protocol, version 1 (section 2.1)
// or 2 (section 2.2), and returns what it says; TLVs as "type:value".
func readProxyHeader(r io.Reader) (string, error) {
	head := make([]byte, 12)
	if _, err := io.ReadFull(r, head); err != nil {
		return "", err
	}
	if string(head) != "\r\n\r\n\x00\r\nQUIT\n" {
		for b := make([]byte, 1); !strings.HasSuffix(string(head), "\r\n"); head = append(head, b[0]) {
			if _, err := io.ReadFull(r, b); err != nil || len(head) > 107 {
				return "", fmt.Errorf("no end of the line after %q: %v", head, err)
			}
		}
		return "v1 " + strings.TrimSuffix(strings.TrimPrefix(string(head), "PROXY "), "\r\n"), nil
	}
	var h [4]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return "", err
	}
	body := make([]byte, binary.BigEndian.Uint16(h[2:]))
	if _, err := io.ReadFull(r, body); err != nil {
		return "", err
	}
	says := fmt.Sprintf("v2 %#x %#x", h[0], h[1])
	if size := map[byte]int{0x11: 4, 0x21: 16}[h[1]]; size > 0 && len(body) >= 2*size+4 {
		src, _ := netip.AddrFromSlice(body[:size])
		dst, _ := netip.AddrFromSlice(body[size : 2*size])
		ports := body[2*size:]
		says += fmt.Sprintf(" %v %v %d %d", src, dst, binary.BigEndian.Uint16(ports), binary.BigEndian.Uint16(ports[2:]))
		body = ports[4:]
	}
	for len(body) > 0 {
		if len(body) < 3 || len(body) < 3+int(binary.BigEndian.Uint16(body[1:])) {
			return says, fmt.Errorf("TLVs end with %x", body)
		}
		end := 3 + int(binary.BigEndian.Uint16(body[1:]))
		says += fmt.Sprintf(" %#02x:%q", body[0], body[3:end])
		body = body[end:]
	}
	return says, nil
}

// A server with proxy_protocol is told who the client is, before its bytes.
func TestProxyProtocolToServers(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"v1", "v2"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			s := Serve(t, func(c Conn) {
				h, err := readProxyHeader(c)
				if err != nil {
					h = err.Error()
				}
				fmt.Fprintln(c, h)
				echo(c)
			})
			sock := filepath.Join(shortTempDir(t), "e.sock")
			body := oneUpstream("", fmt.Sprintf("proxy_protocol = %q", version), s.Addr())
			p := Start(t, strings.Replace(body, `"127.0.0.1:0"`, fmt.Sprintf(`["127.0.0.1:0", "[::1]:0", "unix:%s"]`, sock), 1))
			for i, addr := range p.Addrs("edge") {
				c := Dial(t, addr)
				var want []string
				if tcp, ok := c.LocalAddr().(*net.TCPAddr); ok {
					remote := c.RemoteAddr().(*net.TCPAddr)
					family := map[string][2]string{"v1": {"TCP4", "TCP6"}, "v2": {"0x21 0x11", "0x21 0x21"}}[version][i]
					want = []string{fmt.Sprintf("%s %s %v %v %d %d", version, family, tcp.IP, remote.IP, tcp.Port, remote.Port)}
				} else {
					// Nothing is known of the client: UNKNOWN; LOCAL, or PROXY
					// with an unspecified or unix family.
					want = []string{"v1 UNKNOWN", "v2 0x20 0x0", "v2 0x21 0x0", "v2 0x21 0x31"}
				}
				got := ReadLine(t, c)
				if !strings.Contains("|"+strings.Join(want, "|")+"|", "|"+got+"|") {
					t.Errorf("%s: header %q, want one of %q", addr, got, want)
				}
				RoundTrip(t, c, "after the header")
				c.Close()
				if e := p.AccessLog(i + 1)[i]; e.BytesIn != int64(len("after the header")) {
					t.Errorf("%d bytes in: the header is none of the client's bytes", e.BytesIn)
				}
			}
		})
	}
}
