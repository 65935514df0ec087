package integration

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"
)

// oneUpstream is the smallest configuration: a listener "edge" in front of
// servers "s0", "s1" … of upstream "app".
func oneUpstream(listener, upstream string, servers ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "listener \"tcp\" \"edge\" {\n address = \"127.0.0.1:0\"\n upstream = upstream.app\n %s\n}\n", listener)
	fmt.Fprintf(&b, "upstream \"app\" {\n %s\n", upstream)
	for i, s := range servers {
		fmt.Fprintf(&b, " server \"s%d\" { address = %q }\n", i, s)
	}
	b.WriteString("}\n")
	return b.String()
}

// addrs are the addresses of servers.
func addrs(servers []*Server) (out []string) {
	for _, s := range servers {
		out = append(out, s.Addr())
	}
	return out
}

func TestRelayEchoAndItsLogLine(t *testing.T) {
	t.Parallel()
	s := Serve(t, echo)
	p := Start(t, oneUpstream("", "", s.Addr()))
	edge := p.Addr("edge")
	c := Dial(t, edge)
	RoundTrip(t, c, "hello")
	RoundTrip(t, c, strings.Repeat("x", 100_000))
	c.CloseWrite()
	ExpectEOF(t, c)

	e := p.LastEnd(1, "client_closed", "relay")
	if e.Listener != "edge" || e.Route != "" || e.Upstream != "app" || e.Server != "s0" {
		t.Errorf("names in %+v", e)
	}
	if e.Source != c.LocalAddr().String() || e.Destination != edge || e.ServerAddress != s.Addr() {
		t.Errorf("addresses in %+v; want source %v, destination %v, server %v", e, c.LocalAddr(), edge, s.Addr())
	}
	if e.BytesIn != 100_005 || e.BytesOut != 100_005 || e.Protocol != "tcp" || e.Retries != 0 || e.Error != "" {
		t.Errorf("counts in %+v", e)
	}
	if at, err := time.Parse(time.RFC3339Nano, e.Time); err != nil || time.Since(at) > time.Minute || time.Since(at) < 0 {
		t.Errorf("time %q: %v", e.Time, err)
	}
	m := p.Metrics()
	for name, want := range map[string]float64{
		"edgeproxy_sessions_total": 1, "edgeproxy_sessions_active": 0, "edgeproxy_session_ends_total": 1,
		"edgeproxy_session_seconds_count": 1, "edgeproxy_connect_seconds_count": 1,
		"edgeproxy_server_sessions_total": 1, "edgeproxy_server_up": 1, "edgeproxy_build_info": 1,
	} {
		if got := m.Sum(name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	for _, direction := range []string{"in", "out"} {
		if got := m.Sum("edgeproxy_bytes_total", "listener", "edge", "direction", direction); got != 100_005 {
			t.Errorf("edgeproxy_bytes_total{direction=%q} is %v", direction, got)
		}
	}
}

func TestRelayManySmallMessages(t *testing.T) {
	t.Parallel()
	p := Start(t, oneUpstream("", "", Serve(t, echo).Addr()))
	addr := p.Addr("edge")
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			c, err := connect(addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			for j := range 300 {
				msg := fmt.Sprintf("%d/%d.", i, j)
				got := make([]byte, len(msg))
				if _, err := io.WriteString(c, msg); err != nil {
					t.Error(err)
					return
				}
				if _, err := io.ReadFull(c, got); err != nil || string(got) != msg {
					t.Errorf("%q, %v; want %q", got, err, msg)
					return
				}
			}
		})
	}
	wg.Wait()
}

// A half-close travels to the other side while the other direction goes on.
func TestRelayHalfClose(t *testing.T) {
	t.Parallel()
	for name, server := range map[string]struct {
		handle func(Conn)
		client func(t *testing.T, c Conn)
		end    string
	}{
		"client first": {
			handle: func(c Conn) {
				n, _ := io.Copy(io.Discard, c)
				fmt.Fprintf(c, "you sent %d bytes", n)
			},
			client: func(t *testing.T, c Conn) {
				Send(t, c, "0123456789")
				c.CloseWrite()
				Expect(t, c, "you sent 10 bytes")
				ExpectEOF(t, c)
			},
			end: "client_closed",
		},
		"server first": {
			handle: func(c Conn) {
				io.WriteString(c, "all I have to say")
				c.CloseWrite()
				discard(c)
			},
			client: func(t *testing.T, c Conn) {
				Expect(t, c, "all I have to say")
				ExpectEOF(t, c)
				Send(t, c, "much more")
				Send(t, c, " to say")
				c.CloseWrite()
			},
			end: "server_closed",
		},
		"client at once": {
			handle: hello("good morning"),
			client: func(t *testing.T, c Conn) {
				c.CloseWrite()
				Expect(t, c, "good morning")
				ExpectEOF(t, c)
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := Start(t, oneUpstream("", "", Serve(t, server.handle).Addr()))
			c := Dial(t, p.Addr("edge"))
			server.client(t, c)
			e := p.AccessLog(1)[0]
			if server.end != "" && e.End != server.end {
				t.Errorf("ended with %q, want %q", e.End, server.end)
			}
			if name == "server first" && (e.BytesIn != 16 || e.BytesOut != 17) {
				t.Errorf("%d bytes in, %d out", e.BytesIn, e.BytesOut)
			}
		})
	}
}

func TestRelayEmptyConnection(t *testing.T) {
	t.Parallel()
	p := Start(t, oneUpstream("", "", Serve(t, echo).Addr()))
	c := Dial(t, p.Addr("edge"))
	c.CloseWrite()
	ExpectEOF(t, c)
	c.Close()
	if e := p.LastEnd(1, "client_closed", ""); e.BytesIn != 0 || e.BytesOut != 0 {
		t.Errorf("%+v", e)
	}
}

// The server speaks before the client sends a byte, as SMTP, SSH and MySQL do.
func TestRelayServerFirst(t *testing.T) {
	t.Parallel()
	p := Start(t, oneUpstream("", "", Serve(t, named("220 mail ready")).Addr()))
	c := Dial(t, p.Addr("edge"))
	Expect(t, c, "220 mail ready\n")
	RoundTrip(t, c, "HELO client")
}

func TestRelaySendAndCloseAtOnce(t *testing.T) {
	t.Parallel()
	text := strings.Repeat("all of it must arrive ", 20_000)
	p := Start(t, oneUpstream("", "", Serve(t, sendAndClose(text)).Addr()))
	for i := range 50 {
		c := Dial(t, p.Addr("edge"))
		Expect(t, c, text)
		ExpectEOF(t, c)
		c.Close()
		p.LastEnd(i+1, "server_closed", "relay")
	}
}

// What the other side had sent before a reset may be lost, so it must not look
// complete: a reset travels as a reset.
func TestRelayResetTravels(t *testing.T) {
	t.Parallel()
	t.Run("from the client", func(t *testing.T) {
		t.Parallel()
		got, begun := make(chan error, 1), make(chan struct{})
		s := Serve(t, func(c Conn) {
			io.ReadFull(c, make([]byte, 1))
			close(begun)
			_, err := io.Copy(io.Discard, c)
			got <- err
		})
		p := Start(t, oneUpstream("", "", s.Addr()))
		c := Dial(t, p.Addr("edge"))
		Send(t, c, strings.Repeat("x", 1<<20))
		<-begun // it would be a reset while connecting
		reset(c)
		if err := <-got; err == nil {
			t.Error("the server saw a clean end after the client's reset")
		}
		p.LastEnd(1, "client_reset", "relay")
	})
	t.Run("from the server", func(t *testing.T) {
		t.Parallel()
		s := Serve(t, func(c Conn) {
			io.ReadFull(c, make([]byte, 5))
			reset(c)
		})
		p := Start(t, oneUpstream("", "", s.Addr()))
		c := Dial(t, p.Addr("edge"))
		Send(t, c, "hello")
		ExpectReset(t, c)
		p.LastEnd(1, "server_reset", "relay")
	})
	t.Run("from the server, at once", func(t *testing.T) {
		t.Parallel()
		p := Start(t, oneUpstream("", "", Serve(t, resetAtOnce).Addr()))
		for i := range 30 {
			c := Dial(t, p.Addr("edge"))
			ExpectReset(t, c)
			c.Close()
			// Told before the proxy saw the connection open, it is a failed connect.
			if e := p.AccessLog(i + 1)[i]; e.End != "server_reset" && e.End != "connect_failed" {
				t.Errorf("%+v", e)
			}
		}
	})
	t.Run("mid-transfer, both ways busy", func(t *testing.T) {
		t.Parallel()
		s := Serve(t, func(c Conn) {
			go io.Copy(io.Discard, c)
			newStream(1).Send(c, 256*streamBlock)
		})
		p := Start(t, oneUpstream("", "", s.Addr()))
		for range 30 {
			c := Dial(t, p.Addr("edge"))
			go newStream(2).Send(c, 256*streamBlock)
			if _, err := io.CopyN(io.Discard, c, 3*streamBlock); err != nil {
				t.Fatal(err)
			}
			reset(c)
		}
		for _, e := range p.AccessLog(30) {
			if e.End != "client_reset" || e.Phase != "relay" {
				t.Errorf("%+v, want client_reset", e)
			}
		}
	})
}
