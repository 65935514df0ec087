package integration

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"edgeproxy/internal/testcert"
)

// tlsSizes lie around the limits of records, small and full.
var tlsSizes = []int{0, 1, 1369, 1370, 1371, 16383, 16384, 16385, 100_000, 3 << 20}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n)}).Read(b)
	return b
}

// exchange sends text through an echo and expects it back, then close_notify.
func exchange(t testing.TB, c *tlsClient, text []byte) {
	t.Helper()
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(text)
		sent <- errors.Join(err, c.CloseWrite())
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, text) || c.under.eof.Load() {
		t.Fatalf("%d bytes of %d came back, %v, bare end %v", len(got), len(text), err, c.under.eof.Load())
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

func TestTLSRelayVersionsSuitesAndSizes(t *testing.T) {
	t.Parallel()
	l := newTLSLab(t)
	l.ca.Issue(t, testcert.Template{Names: []string{"app.test"}, RSA: true}).Write(t, l.dir, "rsa")
	p := Start(t, l.edgeWith(l.certificate("rsa"), "", "", Serve(t, echo).Addr()))
	addr := p.Addr("edge")
	ended := 0
	for _, suite := range append([]uint16{0}, suites12...) {
		version := uint16(tls.VersionTLS12)
		if suite == 0 {
			version = tls.VersionTLS13
		}
		for _, n := range tlsSizes {
			c := DialTLS(t, addr, only(l.client(), version, suite))
			exchange(t, c, randomBytes(n))
			c.Close()
			ended++
			e := p.LastEnd(ended, "client_closed", "relay")
			cs := c.ConnectionState()
			if e.BytesIn != int64(n) || e.BytesOut != int64(n) {
				t.Errorf("%s, %d bytes: counted %d in, %d out", tls.CipherSuiteName(cs.CipherSuite), n, e.BytesIn, e.BytesOut)
			}
			if "TLS "+e.TLSVersion != tls.VersionName(version) || e.TLSCipher != tls.CipherSuiteName(cs.CipherSuite) {
				t.Errorf("log says %q %q, negotiated %s %s", e.TLSVersion, e.TLSCipher, tls.VersionName(version), tls.CipherSuiteName(cs.CipherSuite))
			}
		}
	}
}

// crypto/tls does not let clients choose among the suites of TLS 1.3, so
// OpenSSL is the client.
func TestTLSRelaySuitesOfTLS13(t *testing.T) {
	t.Parallel()
	openssl := need(t, "openssl")
	l := newTLSLab(t)
	ca := l.ca.Write(t, l.dir, "ca")
	text := strings.Repeat("0123456789abcdef", 20_000)
	p := Start(t, l.edge(Serve(t, sendAndClose(text)).Addr()))
	for i, suite := range []string{"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"} {
		cmd := exec.CommandContext(t.Context(), openssl, "s_client", "-connect", p.Addr("edge"), "-servername", "app.test",
			"-CAfile", ca, "-verify_return_error", "-tls1_3", "-ciphersuites", suite, "-quiet", "-no_ign_eof")
		in, err := cmd.StdinPipe() // s_client ends with it
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.Output()
		in.Close()
		if err != nil || string(out) != text {
			t.Errorf("%s: %d of %d bytes, %v", suite, len(out), len(text), err)
		}
		if e := p.LastEnd(i+1, "server_closed", "relay"); e.TLSCipher != suite || e.TLSVersion != "1.3" {
			t.Errorf("%+v", e)
		}
	}
}

func TestTLSRelayBulkBothWays(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version uint16) {
		const n = 64 * streamBlock
		l := newTLSLab(t)
		got := make(chan error, 1)
		s := Serve(t, func(c Conn) {
			sent := make(chan struct{})
			go func() {
				newStream(1).Send(c, n)
				c.CloseWrite()
				close(sent)
			}()
			got <- newStream(2).Verify(c, n)
			<-sent
		})
		p := Start(t, l.edge(s.Addr()))
		c := DialTLS(t, p.Addr("edge"), only(l.client(), version, 0))
		go func() {
			newStream(2).Send(c, n)
			c.CloseWrite()
		}()
		if err := newStream(1).Verify(c, n); err != nil {
			t.Error(err)
		}
		if err := <-got; err != nil {
			t.Error("the server:", err)
		}
		if c.under.eof.Load() {
			t.Error("no close_notify")
		}
		if e := p.AccessLog(1)[0]; e.BytesIn != n || e.BytesOut != n {
			t.Errorf("counted %d in, %d out of %d", e.BytesIn, e.BytesOut, n)
		}
	})
}

// What the log and the metrics say of a session.
func TestTLSRelayLogAndMetrics(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version uint16) {
		l := newTLSLab(t)
		p := Start(t, l.edgeWith(`alpn = ["echo", "http/1.1"]`, "", "", Serve(t, echo).Addr()))
		cfg := only(l.client(), version, 0)
		cfg.NextProtos = []string{"other", "echo"}
		c := DialTLS(t, p.Addr("edge"), cfg)
		RoundTrip(t, c, strings.Repeat("plain", 1000))
		if n := p.tlsSessions(); n != 1 {
			t.Errorf("%v TLS sessions, want 1", n)
		}
		c.CloseWrite()
		expectNotify(t, c)
		c.Close()
		e := p.LastEnd(1, "client_closed", "relay")
		want := strings.TrimPrefix(tls.VersionName(version), "TLS ")
		if e.Protocol != "tls" || e.SNI != "app.test" || e.ALPN != "echo" || e.TLSVersion != want ||
			e.TLSCipher != tls.CipherSuiteName(c.ConnectionState().CipherSuite) || e.TLSMS == nil || *e.TLSMS <= 0 || *e.TLSMS > e.DurationMS || e.ClientName != "" {
			t.Errorf("%+v", e)
		}
		m := p.Metrics()
		if n := m.Sum("edgeproxy_tls_sessions"); n != 0 {
			t.Errorf("%v TLS sessions are left", n)
		}
		for _, direction := range []string{"in", "out"} {
			if n := m.Sum("edgeproxy_bytes_total", "listener", "edge", "direction", direction); n != 5000 {
				t.Errorf("edgeproxy_bytes_total{direction=%q} is %v, want the 5000 of plain text", direction, n)
			}
		}
		if n := m.Sum("edgeproxy_tls_handshakes_total", "listener", "edge", "version", want, "result", "full"); n != 1 {
			t.Errorf("%v full handshakes of %s", n, want)
		}
		if n := m.Sum("edgeproxy_tls_handshake_seconds_count"); n != 1 {
			t.Errorf("%v handshakes were timed", n)
		}
		if !m.Has("edgeproxy_certificate_expiry_timestamp_seconds", "tls", "public") {
			t.Error("no expiry of the certificate")
		}
	})
}

// close_notify is the half-close of TLS: it becomes a FIN, and a FIN becomes
// close_notify, while the other direction goes on.
func TestTLSRelayHalfClose(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version uint16) {
		t.Run("client first", func(t *testing.T) {
			l := newTLSLab(t)
			p := Start(t, l.edge(Serve(t, func(c Conn) {
				n, _ := io.Copy(io.Discard, c)
				fmt.Fprintf(c, "you sent %d bytes", n)
				time.Sleep(moment)
				io.WriteString(c, ", thanks")
			}).Addr()))
			c := DialTLS(t, p.Addr("edge"), only(l.client(), version, 0))
			Send(t, c, "0123456789")
			c.CloseWrite()
			Expect(t, c, "you sent 10 bytes, thanks")
			expectNotify(t, c)
			p.LastEnd(1, "client_closed", "relay")
		})
		t.Run("client first, TCP too", func(t *testing.T) {
			l := newTLSLab(t)
			p := Start(t, l.edge(Serve(t, hello("good morning")).Addr()))
			c := DialTLS(t, p.Addr("edge"), only(l.client(), version, 0))
			c.CloseWrite()
			c.under.CloseWrite()
			Expect(t, c, "good morning")
			expectNotify(t, c)
			p.AccessLog(1)
		})
		t.Run("server first", func(t *testing.T) {
			l := newTLSLab(t)
			got := make(chan string, 1)
			p := Start(t, l.edge(Serve(t, func(c Conn) {
				io.WriteString(c, "all I have to say")
				c.CloseWrite()
				b, err := io.ReadAll(c)
				got <- fmt.Sprint(string(b), err)
			}).Addr()))
			c := DialTLS(t, p.Addr("edge"), only(l.client(), version, 0))
			Expect(t, c, "all I have to say")
			expectNotify(t, c)
			Send(t, c, "much more")
			time.Sleep(moment)
			Send(t, c, " to say")
			c.Close()
			if s := <-got; s != "much more to say<nil>" {
				t.Errorf("the server read %q", s)
			}
			p.LastEnd(1, "server_closed", "relay")
		})
	})
}

// The server sees an orderly end only where the client has said so: an
// attacker can forge a FIN.
func TestTLSRelayTruncation(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version uint16) {
		for _, n := range []int{0, 5, 200_000} {
			l := newTLSLab(t)
			got, begun := make(chan error, 1), make(chan struct{})
			p := Start(t, l.edge(Serve(t, func(c Conn) {
				io.ReadFull(c, make([]byte, 1+n))
				close(begun)
				_, err := io.Copy(io.Discard, c)
				got <- err
			}).Addr()))
			c := DialTLS(t, p.Addr("edge"), only(l.client(), version, 0))
			Send(t, c, strings.Repeat("x", 1+n))
			<-begun
			c.bare()
			if err := <-got; !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("after %d bytes the server read %v, want a reset", n, err)
			}
			tlsFault(t, p.LastEnd(1, "client_reset", "relay"), "truncated")
		}
	})
}

// Many a client reads the answer and closes without a word.
func TestTLSRelayBareCloseAfterTheAnswer(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version uint16) {
		l := newTLSLab(t)
		got := make(chan error, 1)
		p := Start(t, l.edge(Serve(t, func(c Conn) {
			io.WriteString(c, "answer")
			c.CloseWrite()
			_, err := io.Copy(io.Discard, c)
			got <- err
		}).Addr()))
		c := DialTLS(t, p.Addr("edge"), only(l.client(), version, 0))
		Expect(t, c, "answer")
		expectNotify(t, c)
		c.bare()
		if e := p.LastEnd(1, "server_closed", "relay"); e.Error != "" {
			t.Errorf("%+v", e)
		}
		if err := <-got; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the server read %v, want a reset: the client's stream may be cut", err)
		}
	})
}

func TestTLSRelayServerReset(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version uint16) {
		l := newTLSLab(t)
		p := Start(t, l.edge(Serve(t, func(c Conn) {
			io.ReadFull(c, make([]byte, 5))
			reset(c)
		}).Addr()))
		c := DialTLS(t, p.Addr("edge"), only(l.client(), version, 0))
		Send(t, c, "hello")
		expectCut(t, c)
		p.LastEnd(1, "server_reset", "relay")
	})
}

func TestTLSRelayClientReset(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version uint16) {
		l := newTLSLab(t)
		got := make(chan error, 1)
		p := Start(t, l.edge(Serve(t, func(c Conn) {
			io.WriteString(c, "x")
			_, err := io.Copy(io.Discard, c)
			got <- err
		}).Addr()))
		c := DialTLS(t, p.Addr("edge"), only(l.client(), version, 0))
		Expect(t, c, "x")
		reset(c.under.Conn)
		if err := <-got; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the server read %v, want a reset", err)
		}
		p.LastEnd(1, "client_reset", "relay")
	})
}

func TestTLSRelaySendAndCloseAtOnce(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version uint16) {
		l := newTLSLab(t)
		text := strings.Repeat("all of it must arrive ", 20_000)
		p := Start(t, l.edge(Serve(t, sendAndClose(text)).Addr()))
		for i := range 15 {
			c := DialTLS(t, p.Addr("edge"), only(l.client(), version, 0))
			Expect(t, c, text)
			expectNotify(t, c)
			c.Close()
			p.LastEnd(i+1, "server_closed", "relay")
		}
	})
}

func TestTLSRelayIdleTimeout(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version uint16) {
		l := newTLSLab(t)
		p := Start(t, l.edgeWith("", `timeouts { idle = "600ms" }`, "", Serve(t, echo).Addr()))
		c := DialTLS(t, p.Addr("edge"), only(l.client(), version, 0))
		for range 10 {
			RoundTrip(t, c, "still here")
			time.Sleep(2 * moment)
		}
		expectCut(t, c)
		took(t, p.LastEnd(1, "idle_timeout", "relay"), 1500*time.Millisecond, 10*time.Second)
	})
}

// What one side does not read stays with the other, sealed or not.
func TestTLSRelayBackPressure(t *testing.T) {
	t.Parallel()
	const sessions, each = 40, 32 << 20
	l := newTLSLab(t)
	stuck, release := ServeNeverReading(t, "unix", filepath.Join(shortTempDir(t), "stuck.sock"))
	flood := Serve(t, func(c Conn) { newStreamShared().Send(c, each) })
	p := Start(t, l.edge(stuck.Addr())+strings.NewReplacer(`"edge"`, `"flooded"`, `"app"`, `"flood"`, "upstream.app", "upstream.flood").
		Replace(oneUpstream("tls = tls.public", "", flood.Addr())))
	t.Cleanup(release)
	up, down := p.Addr("edge"), p.Addr("flooded")
	before := pss(t, p.Pid())
	for range sessions {
		DialTLS(t, down, l.client()) // never reads
		c := DialTLS(t, up, l.client())
		c.under.Conn.(*net.TCPConn).SetWriteBuffer(64 << 10)
		go newStreamShared().Send(c, each)
	}
	last := -1.0
	eventually(t, func() bool {
		was := last
		last = p.Metrics().Sum("edgeproxy_bytes_total")
		if last != was {
			time.Sleep(500 * time.Millisecond)
		}
		return last == was && stuck.Open() == sessions
	}, func() string { return fmt.Sprintf("bytes stop to move at %.0f", last) })
	if last > 2*sessions*each*0.9 {
		t.Errorf("%.0f bytes went through to nobody", last)
	}
	// 256 KiB is the size class of the sealed records that a session keeps.
	if grown := pss(t, p.Pid()) - before; grown > raceFactor*(2*sessions*320<<10+8<<20) {
		t.Errorf("the process grew by %d KB for %d sessions that are stuck", grown>>10, 2*sessions)
	} else {
		t.Logf("%d MB sent, of which the process holds %d KB", int(last)>>20, grown>>10)
	}
	idle := cpuTime(t, p.Pid())
	time.Sleep(time.Second)
	if used := cpuTime(t, p.Pid()) - idle; used > 300*time.Millisecond {
		t.Errorf("%v of CPU in a second in which nothing moved", used)
	}
}

// A slow reader gets all of it in the end.
func TestTLSRelaySlowReader(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version uint16) {
		const n = 16 * streamBlock
		l := newTLSLab(t)
		p := Start(t, l.edge(Serve(t, func(c Conn) { newStreamShared().Send(c, n) }).Addr()))
		c := DialTLS(t, p.Addr("edge"), only(l.client(), version, 0))
		c.under.Conn.(*net.TCPConn).SetReadBuffer(128 << 10)
		time.Sleep(4 * moment)
		if err := newStreamShared().Verify(c, n); err != nil {
			t.Error(err)
		}
		c.Close()
		p.LastEnd(1, "server_closed", "relay")
	})
}

// Limits count plain text.
func TestTLSRelayBandwidth(t *testing.T) {
	t.Parallel()
	const rate = 2 * streamBlock
	for _, direction := range []string{"in", "out"} {
		t.Run(direction, func(t *testing.T) {
			t.Parallel()
			l := newTLSLab(t)
			got := make(chan error, 1)
			p := Start(t, l.edgeWith("", fmt.Sprintf("limits { bandwidth_%s = \"%dB/s\" }", direction, rate), "", Serve(t, func(c Conn) {
				if direction == "in" {
					got <- newStreamShared().Verify(c, 2*rate)
					return
				}
				newStreamShared().Send(c, 2*rate)
			}).Addr()))
			c := DialTLS(t, p.Addr("edge"), l.client())
			begin := time.Now()
			if direction == "in" {
				if err := newStreamShared().Send(c, 2*rate); err != nil {
					t.Fatal(err)
				}
				c.CloseWrite()
			} else {
				got <- newStreamShared().Verify(c, 2*rate)
			}
			if err := <-got; err != nil {
				t.Fatal(err)
			}
			if d := time.Since(begin); d < 1600*time.Millisecond || d > 15*time.Second {
				t.Errorf("two seconds' worth took %v", d)
			}
		})
	}
}

func TestTLSRelayManySessions(t *testing.T) {
	t.Parallel()
	l := newTLSLab(t)
	p := Start(t, l.edge(Serve(t, echo).Addr()))
	addr := p.Addr("edge")
	load := StartLoad(t, 20, func() error {
		c, err := tlsConnect(addr, only(l.client(), tls.VersionTLS12+uint16(rand.IntN(2)), 0))
		if err != nil {
			return err
		}
		defer c.Close()
		text := randomBytes(1 + rand.IntN(60_000))
		for range 1 + rand.IntN(5) {
			if _, err := c.Write(text); err != nil {
				return err
			}
			got := make([]byte, len(text))
			if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, text) {
				return fmt.Errorf("%d bytes came back wrong, %v", len(text), err)
			}
		}
		return nil
	})
	load.AwaitRequests(t, 300)
	if failures := load.Stop(); len(failures) > 0 {
		t.Errorf("%d of %d failed, first %v", len(failures), load.Requests(), failures[0])
	}
	p.Await(0, "edgeproxy_tls_sessions")
}
