package tlsterm

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// HAProxy CVE-2024-49214: early data bypassed a check. No ticket offers it,
// and a client that sends it nevertheless is refused (RFC 8446, section 4.2.10).
func TestEarlyDataIsOff(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c := l.context(t, l.options())
	client := l.client()
	client.MinVersion = tls.VersionTLS13
	cache := &lastSession{ClientSessionCache: client.ClientSessionCache}
	client.ClientSessionCache = cache
	mustMeet(t, c.Template(), client)
	if _, ss, err := cache.last.ResumptionState(); err != nil || ss == nil || ss.EarlyData {
		t.Errorf("a ticket for early data: %v, %v", ss, err)
	}

	for name, early := range map[string]bool{"without": false, "with": true} {
		a, b := memoryPipe()
		go func() {
			tls.Client(b, client).Handshake()
		}()
		hello := readRecord(t, a)
		b.Close()
		if early {
			hello = withEarlyData(t, hello)
		}
		a, b = memoryPipe()
		b.Write(hello)
		if early {
			b.Write([]byte("\x17\x03\x03\x00\x20" + strings.Repeat("e", 32)))
		}
		done := make(chan error, 1)
		go func() {
			done <- tls.Server(a, c.Template()).Handshake()
		}()
		answer := readRecord(t, b)
		if alert := answer[0] == 21 && answer[6] == 110; alert != early {
			t.Errorf("%s early data: answered % x", name, answer[:7])
		}
		b.Close()
		if err := <-done; err == nil {
			t.Errorf("%s early data: the handshake has ended well", name)
		}
	}
}

type lastSession struct {
	tls.ClientSessionCache
	last *tls.ClientSessionState
}

func (c *lastSession) Put(key string, s *tls.ClientSessionState) {
	c.last = s
	c.ClientSessionCache.Put(key, s)
}

func readRecord(t *testing.T, r io.Reader) []byte {
	t.Helper()
	head := make([]byte, 5)
	if _, err := io.ReadFull(r, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint16(head[3:]))
	if _, err := io.ReadFull(r, body); err != nil {
		t.Fatal(err)
	}
	return append(head, body...)
}

// withEarlyData puts the extension early_data, which is empty, in front of the
// others of a ClientHello in one record.
func withEarlyData(t *testing.T, hello []byte) []byte {
	t.Helper()
	const random = 5 + 4 + 2 + 32 // record and message header, version, random
	at := random + 1 + int(hello[random])
	at += 2 + int(binary.BigEndian.Uint16(hello[at:]))
	at += 1 + int(hello[at]) // now at the extensions' length
	ext := []byte{0, 42, 0, 0}
	out := slices.Concat(hello[:at+2], ext, hello[at+2:])
	grow := func(p []byte) { binary.BigEndian.PutUint16(p, binary.BigEndian.Uint16(p)+uint16(len(ext))) }
	grow(out[3:])
	grow(out[7:]) // the lower two of three bytes
	grow(out[at:])
	return out
}

// openssl s_client keeps sessions in files: a real peer, and one that does not
// share our library's idea of a ticket.
func TestOpenSSLResumes(t *testing.T) {
	t.Parallel()
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatal("openssl is needed: apt-get install openssl")
	}
	l := newLab(t)
	c := l.context(t, l.mutual())
	alice, aliceKey := l.alice.Write(t, l.dir, "alice")
	ca := l.servers.Write(t, l.dir, "servers")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	states := make(chan tls.ConnectionState, 1)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				s := tls.Server(conn, c.Template())
				if s.Handshake() == nil {
					states <- s.ConnectionState()
					fmt.Fprintln(s, "hello")
					s.Close()
				}
			}()
		}
	}()
	run := func(args ...string) tls.ConnectionState {
		args = append([]string{"s_client", "-connect", ln.Addr().String(), "-servername", "a.example.com", "-verify_return_error",
			"-CAfile", ca, "-cert", alice, "-key", aliceKey, "-ign_eof"}, args...)
		out, err := exec.CommandContext(t.Context(), openssl, args...).CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("hello")) {
			t.Fatalf("openssl %q: %v\n%s", args, err, out)
		}
		return <-states
	}
	for vname, flag := range map[string]string{"TLS 1.2": "-tls1_2", "TLS 1.3": "-tls1_3"} {
		sess := filepath.Join(t.TempDir(), "session")
		if cs := run(flag, "-sess_out", sess); cs.DidResume {
			t.Errorf("%s: resumed what?", vname)
		}
		cs := run(flag, "-sess_in", sess)
		if id := IdentityOf(cs); !cs.DidResume || id == nil || id.CommonName != "alice" {
			t.Errorf("%s: resumed %v, client %+v", vname, cs.DidResume, id)
		}
		if cs := run(flag, "-sess_in", sess, "-servername", "b.example.com"); cs.DidResume {
			t.Errorf("%s: resumed for another name", vname)
		}
	}
}
