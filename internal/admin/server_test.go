package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

func healthy(t *testing.T, address string) {
	t.Helper()
	if res, body := do(t, address, "GET", "/healthz", nil); res.StatusCode != 200 || body != "ok\n" {
		t.Errorf("%s: %d %q", address, res.StatusCode, body)
	}
}

func gone(t *testing.T, address string) {
	t.Helper()
	network := "tcp"
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, address = "unix", path
	}
	if c, err := net.Dial(network, address); err == nil {
		c.Close()
		t.Errorf("%s still answers", address)
	}
}

// retired waits until all addresses that were given up are closed.
func retired(s *Server) { s.retired.Wait() }

func TestAddressChanges(t *testing.T) {
	path := socketPath(t)
	s, _ := start(t, &fake{}, "127.0.0.1:0")
	first := s.Addr()
	healthy(t, first)
	move(t, s, "127.0.0.1:0") // the same: stays
	if s.Addr() != first {
		t.Errorf("an unchanged address has moved from %s to %s", first, s.Addr())
	}
	for _, a := range []string{"unix:" + path, "unix:@edgeproxy-test-" + fmt.Sprint(os.Getpid()), "[::1]:0", "", "unix:" + path} {
		before := s.Addr()
		move(t, s, a)
		retired(s)
		if before != "" {
			gone(t, before)
		}
		if a != "" {
			healthy(t, s.Addr())
		}
	}
	s.Close(t.Context())
	gone(t, "unix:"+path)
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket's file is left: %v", err)
	}
}

// From loopback to all addresses of the same port and back: the new address is
// bound while the old one still listens, and no request finds none.
func TestOverlappingAddresses(t *testing.T) {
	s, logs := start(t, &fake{}, "127.0.0.1:0")
	first := s.Addr()
	_, port, _ := net.SplitHostPort(first)
	for _, a := range []string{"0.0.0.0:" + port, "127.0.0.1:" + port, ":" + port} {
		c, err := s.Prepare(a)
		if err != nil {
			t.Fatal(err)
		}
		healthy(t, first)
		c.Commit()
		retired(s)
		healthy(t, first)
		if l, err := net.Listen("tcp", first); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("%s: another one could bind %s as well: %v", a, first, err)
			l.Close()
		}
	}
	if n := logs.FilterMessageSnippet("from other machines").FilterLevelExact(zap.WarnLevel).Len(); n != 2 {
		t.Errorf("%d warnings of addresses that are not loopback, want 2", n)
	}
}

func TestDiscardedChange(t *testing.T) {
	path := socketPath(t)
	s, _ := start(t, &fake{}, "127.0.0.1:0")
	first := s.Addr()
	for _, a := range []string{"unix:" + path, first[:strings.LastIndexByte(first, ':')] + ":0", "", "0.0.0.0" + first[strings.LastIndexByte(first, ':'):]} {
		c, err := s.Prepare(a)
		if err != nil {
			t.Fatal(err)
		}
		c.Discard()
		retired(s)
		healthy(t, first)
	}
	gone(t, "unix:"+path)
	if _, err := os.Lstat(path); err == nil {
		t.Error("the socket's file is left")
	}
}

// The request that asks for a reload is answered although that reload moves
// the admin server away.
func TestReloadThatMovesTheServer(t *testing.T) {
	f := &fake{}
	s, _ := start(t, f, "127.0.0.1:0")
	first := s.Addr()
	f.reload = func(context.Context) (string, error) {
		c, err := s.Prepare("unix:" + filepath.Join(t.TempDir(), "s"))
		if err != nil {
			return "", err
		}
		c.Commit()
		return "moved", nil
	}
	if res, body := do(t, first, "POST", "/v1/reload", nil); res.StatusCode != 200 || !strings.Contains(body, "moved") {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	healthy(t, s.Addr())
	retired(s)
	gone(t, first)
}

func TestUnixSocket(t *testing.T) {
	path := socketPath(t)
	s, _ := start(t, &fake{}, "unix:"+path)
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o660 {
		t.Errorf("%v, %v, want a socket with mode 0660", info.Mode(), err)
	}

	// Someone listens there: left alone.
	other := New(&fake{}, zap.NewNop())
	if _, err := other.Prepare("unix:" + path); err == nil || !strings.Contains(err.Error(), "another process listens there") {
		t.Errorf("a second server: %v", err)
	}
	healthy(t, s.Addr())

	// The file was removed: the unchanged address is bound anew.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	move(t, s, "unix:"+path)
	retired(s)
	healthy(t, "unix:"+path)
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := socketPath(t)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false) // as if the process had been killed
	l.Close()
	start(t, &fake{}, "unix:"+path)
	healthy(t, "unix:"+path)
}

func TestBindErrors(t *testing.T) {
	dir := t.TempDir()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, _ := start(t, &fake{}, "127.0.0.1:0")
	for _, tt := range []struct{ address, want string }{
		{taken.Addr().String(), "address already in use; stop the program that listens there"},
		{"192.0.2.1:9901", "cannot assign requested address; this machine does not have it"},
		{"unix:" + plain, "no socket; remove it, or choose another path"},
		{"unix:" + dir + "/no/s", "no such file or directory; create the directory " + dir + "/no"},
		{"127.0.0.1", "missing port in address"},
	} {
		if _, err := s.Prepare(tt.address); err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), fmt.Sprintf("admin address %q: ", tt.address)) {
			t.Errorf("%s: %v, want %q", tt.address, err, tt.want)
		}
	}
	healthy(t, s.Addr())
	if b, _ := os.ReadFile(plain); string(b) != "precious" {
		t.Error("a file was overwritten")
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := newBounded(l, 2)
	accepted := make(chan net.Conn)
	go func() {
		defer close(accepted)
		for {
			c, err := b.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	for range 3 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	first := <-accepted
	<-accepted
	if len(b.slots) != 2 {
		t.Errorf("%d slots in use, want 2", len(b.slots))
	}
	select {
	case <-accepted:
		t.Error("a third connection at a bound of two")
	default:
	}
	first.Close()
	first.Close()
	<-accepted
	b.Close() // ends the waiting for a slot
	if _, ok := <-accepted; ok {
		t.Error("accepted after Close")
	}
}
