package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/quic-go/quic-go"

	"edgeproxy/internal/testcert"
)

// nat is an address translator between one client and an address.
type nat struct {
	t     testing.TB
	front *net.UDPConn // to the client
	to    netip.AddrPort

	mu     sync.Mutex
	back   *net.UDPConn // as whom the client is known
	client netip.AddrPort
	wg     sync.WaitGroup
}

func newNAT(t testing.TB, to string) *nat {
	t.Helper()
	n := &nat{t: t, front: loopbackUDP(t), to: netip.MustParseAddrPort(to)}
	n.rebind()
	n.wg.Go(n.outward)
	t.Cleanup(func() {
		n.front.Close()
		n.back.Close()
		n.wg.Wait()
	})
	return n
}

func (n *nat) addr() string { return n.front.LocalAddr().String() }

// rebind gives the client another port. What is sent to the old one is lost.
func (n *nat) rebind() {
	back := loopbackUDP(n.t)
	back.SetReadBuffer(4 << 20)
	n.mu.Lock()
	old := n.back
	n.back = back
	n.mu.Unlock()
	n.wg.Go(func() { n.inward(back) })
	if old != nil {
		old.Close()
	}
}

func (n *nat) outward() {
	n.front.SetReadBuffer(4 << 20)
	buf := make([]byte, 1<<16)
	for {
		size, from, err := n.front.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		n.mu.Lock()
		n.client = from
		n.back.WriteToUDPAddrPort(buf[:size], n.to)
		n.mu.Unlock()
	}
}

func (n *nat) inward(back *net.UDPConn) {
	buf := make([]byte, 1<<16)
	for {
		size, err := back.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		n.mu.Lock()
		client := n.client
		n.mu.Unlock()
		n.front.WriteToUDPAddrPort(buf[:size], client)
	}
}

// h3Fleet is several HTTP/3 servers of one name, of which each session gets
// one by chance.
type h3Fleet struct {
	ca      *testcert.CA
	servers []*h3Server
	body    string // of the configuration
	p       *Proxy
}

// serverIDs says whether and how edgeproxy learns which server a connection id
// is of.
type serverIDs int

const (
	seenOnly   serverIDs = iota // servers put no ids there: edgeproxy remembers the connection ids it has seen
	learned                     // servers do, and edgeproxy learns which is whose
	configured                  // … and knows beforehand
)

func newH3Fleet(t *testing.T, ids serverIDs) *h3Fleet {
	f := &h3Fleet{ca: testcert.NewCA(t, "HTTP/3")}
	pair := f.ca.Server(t, "fleet.test")
	var upstream strings.Builder
	for i := range 4 {
		id, line := "", ""
		if ids != seenOnly {
			id = string([]byte{0xc0, byte(i), 0xfe})
		}
		if ids == configured {
			line = fmt.Sprintf("\n quic_server_id = \"%x\"", id)
		}
		name := fmt.Sprintf("s%d", i)
		s := newH3Server(t, loopbackUDP(t), name, pair, id, nil)
		f.servers = append(f.servers, s)
		fmt.Fprintf(&upstream, " server %q {\n address = %q%s\n }\n", name, s.addr, line)
	}
	listener := "timeouts { idle = \"3s\" }\n"
	if ids != seenOnly {
		listener += "quic { server_id_length = 3 }\n"
	}
	f.body = udpListener(listener, "balance = \"random\"\n"+upstream.String(), []string{fmt.Sprintf("127.0.0.1:%d", freeUDPPort(t))})
	f.p = Start(t, f.body)
	return f
}

// freeUDPPort is for listeners that are to be opened again at the same port.
func freeUDPPort(t testing.TB) int {
	t.Helper()
	for range 20 {
		port := FreePorts(t, 1)
		if c, err := net.ListenUDP("udp", &net.UDPAddr{Port: port}); err == nil {
			c.Close()
			return port
		}
	}
	t.Fatal("no free ports")
	return 0
}

func (f *h3Fleet) client(t *testing.T, addr string) *h3Client {
	return newH3Client(t, f.ca, loopbackUDP(t), addr, "fleet.test", quic.Version1)
}

// stays asserts that do goes well within one connection, and thus with the
// server that had it before.
func (f *h3Fleet) stays(t *testing.T, c *h3Client, do func() error) {
	t.Helper()
	before, err := c.get("/name")
	if err != nil {
		t.Fatal(err)
	}
	conn := c.conn
	if err := do(); err != nil {
		t.Fatalf("%v\n%v", err, f.p.Metrics().Drops("edge"))
	}
	after, err := c.get("/name")
	if err != nil || after != before || c.conn != conn {
		t.Errorf("the connection began with server %s and is now with %s, %v", before, after, err)
	}
	c.close() // its signs of life would keep the session
}

// A translator forgets a client and gives it another port: the connection goes
// on with its server, whichever way the bytes go, and also if the client waits
// and all that it sends is a sign of life.
func TestRealQUICRebinding(t *testing.T) {
	t.Parallel()
	for name, ids := range map[string]serverIDs{"ids seen": seenOnly, "ids learned": learned, "ids configured": configured} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newH3Fleet(t, ids)
			// Now and then a client takes another connection id into use: quic-go's
			// after 5000 datagrams at the earliest. Without server ids it must not do
			// so together with the rebinding.
			n := int64(16 * streamBlock) // 4 MB
			if ids != seenOnly {
				n *= 2
			}
			transfers := map[string]func(c *h3Client, nat *nat) error{
				"down": func(c *h3Client, nat *nat) error { return c.download(n, rebindings(n, nat)) },
				"up":   func(c *h3Client, nat *nat) error { return c.upload(n, rebindings(n, nat)) },
				"waiting": func(c *h3Client, nat *nat) error {
					requests := f.requests()
					done := make(chan error)
					go func() {
						_, err := c.get("/slow?ms=700")
						done <- err
					}()
					eventually(t, func() bool { return f.requests() > requests }, func() string { return "the request is there" })
					nat.rebind()
					return <-done
				},
			}
			for way, transfer := range transfers {
				nat := newNAT(t, f.p.Addr("edge"))
				c := f.client(t, nat.addr())
				f.stays(t, c, func() error {
					if err := transfer(c, nat); err != nil {
						return fmt.Errorf("%s: %w", way, err)
					}
					return nil
				})
			}
		})
	}
}

func (f *h3Fleet) requests() (n int64) {
	for _, s := range f.servers {
		n += s.requests.Load()
	}
	return n
}

// rebindings are four during a transfer.
func rebindings(n int64, nat *nat) func(int64) {
	steps := []func(int64){}
	for i := range int64(4) {
		steps = append(steps, once((i+1)*n/6, nat.rebind))
	}
	return func(at int64) {
		for _, step := range steps {
			step(at)
		}
	}
}

// A client moves to another address of its own accord, with connection ids
// that nobody has seen (RFC 9000, section 9): the server ids in them lead to
// its server.
func TestRealQUICMigration(t *testing.T) {
	t.Parallel()
	for name, ids := range map[string]serverIDs{"ids learned": learned, "ids configured": configured} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newH3Fleet(t, ids)
			const n = 40 * streamBlock // 10 MB
			for way, transfer := range map[string]func(*h3Client, int64, func(int64)) error{"down": (*h3Client).download, "up": (*h3Client).upload} {
				c := f.client(t, f.p.Addr("edge"))
				f.stays(t, c, func() error {
					moved := make(chan error, 1)
					if err := transfer(c, n, once(n/6, func() { go func() { moved <- c.move() }() })); err != nil {
						return fmt.Errorf("%s: %w", way, err)
					}
					return <-moved
				})
			}
		})
	}
}

// move goes on from another socket.
func (c *h3Client) move() error {
	tr := &quic.Transport{Conn: loopbackUDP(c.t)}
	c.t.Cleanup(func() { tr.Close() })
	path, err := c.conn.AddPath(tr)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	if err := path.Probe(ctx); err != nil {
		return fmt.Errorf("probing the new path: %w", err)
	}
	return path.Switch()
}

// With server ids in its configuration edgeproxy needs no memory: connections
// go on when it is killed and started again.
func TestRealQUICProxyStartsAgain(t *testing.T) {
	t.Parallel()
	f := newH3Fleet(t, configured)
	const n = 40 * streamBlock
	c := f.client(t, f.p.Addr("edge"))
	f.stays(t, c, func() error {
		return c.download(n, once(n/3, func() {
			f.p.Kill()
			f.p = Start(t, f.body)
		}))
	})
}
