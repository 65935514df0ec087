package ktls

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"edgeproxy/internal/tlsrecord"
)

const keyUpdate = "\x18\x00\x00\x01\x00"

func testKeyUpdate(t *testing.T, sup Support) {
	t.Run("coalesced with a ticket", func(t *testing.T) {
		s := newSession(t)
		next := newSealer()
		keys := next.keys
		s.arrive(s.in.seal(Handshake, "\x04\x00\x00\x01\x00"+keyUpdate), next.seal(Data, "new"))
		s.want("recv", "10/22")
		s.rekey(sup, RX, keys)
		s.want("recv", map[bool]string{true: "3/23", false: "EBADMSG"}[sup.Rekey])
	})
	t.Run("many", func(t *testing.T) {
		s := newSession(t)
		if !sup.Rekey {
			s.arrive(s.in.seal(Handshake, keyUpdate))
			s.want("recv", "5/22")
			s.rekey(sup, RX, newSealer().keys)
			s.rekey(sup, TX, newSealer().keys)
			s.want("alert fatal", "ok ok") // the peer can still be told
			return
		}
		for range 50 {
			next := newSealer()
			keys := next.keys
			s.arrive(s.in.seal(Data, "old"), s.in.seal(Handshake, keyUpdate))
			s.want("splice splice recv recv", "3 EINVAL 5/22 EKEYEXPIRED")
			s.emptyPipe()
			s.rekey(sup, RX, keys)
			s.in = next
			if errno := Send(s.near, Handshake, []byte(keyUpdate)); errno != 0 {
				t.Fatal(errno)
			}
			want := s.out.seal(Handshake, keyUpdate)
			s.out = newSealer()
			s.rekey(sup, TX, s.out.keys)
			s.want("write", "5")
			want = append(want, s.out.seal(Data, "hello")...)
			if got, err := s.p.read(s.far, len(want)); err != nil || string(got) != string(want) {
				t.Fatalf("%x, %v, not %x", got, err, want)
			}
		}
	})
	t.Run("while a record is half read", func(t *testing.T) {
		if !sup.Rekey {
			return // as in "many": keys are refused
		}
		s := newSession(t)
		next := newSealer()
		keys := next.keys
		s.arrive(s.in.seal(Data, "abcdef"), next.seal(Data, "new"))
		if n, typ, errno := Recv(s.near, make([]byte, 3)); n != 3 || typ != Data || errno != 0 {
			t.Fatal(n, typ, errno)
		}
		s.rekey(sup, RX, keys)
		s.want("recv recv", "6/23 EAGAIN")
	})
}

func (s *session) rekey(sup Support, d Direction, k tlsrecord.Keys) {
	s.t.Helper()
	err := SetKeys(s.near, d, k)
	if sup.Rekey && err != nil || !sup.Rekey && !errors.Is(err, ErrNoRekey) {
		s.t.Fatalf("new keys: %v", err)
	}
}

// Edge-triggered epoll tells of whole records, of those that new keys make
// readable, and of a bad header.
func testEdges(t *testing.T, sup Support) {
	s := newSession(t)
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	s.p.fds = append(s.p.fds, ep)
	const edge = 1 << 31
	if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, s.near, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | edge}); err != nil {
		t.Fatal(err)
	}
	await := func(want uint32, what string, calls, results string) {
		t.Helper()
		ev := make([]unix.EpollEvent, 1)
		n, err := 0, error(nil)
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
			if n, err = unix.EpollWait(ep, ev, 10000); err != unix.EINTR {
				break
			}
		}
		if n != 1 || ev[0].Events&want != want {
			t.Errorf("%s: %d events, %#x, %v", what, n, ev[0].Events, err)
		}
		s.want(calls, results)
	}
	write := func(b []byte) {
		t.Helper()
		if err := s.p.write(s.far, b); err != nil {
			t.Fatal(err)
		}
	}
	whole := s.in.seal(Data, "hello")
	write(whole[:9])
	s.want("recv", "EAGAIN")
	write(whole[9:])
	await(unix.EPOLLIN, "the second half of a record", "recv recv", "5/23 EAGAIN")
	write(append(s.in.seal(Data, "a"), s.in.seal(Alert, "\x01\x00")...))
	await(unix.EPOLLIN, "two records", "recv recv recv", "1/23 2/21 EAGAIN")
	if sup.Rekey {
		next := newSealer()
		keys := next.keys
		write(append(s.in.seal(Handshake, keyUpdate), next.seal(Data, "new")...))
		await(unix.EPOLLIN, "KeyUpdate", "recv recv", "5/22 EKEYEXPIRED")
		s.rekey(sup, RX, keys)
		s.in = next
		await(unix.EPOLLIN, "a record behind the KeyUpdate", "recv recv", "3/23 EAGAIN")
	}
	write([]byte{Data, 9, 9, 0, 32, 0})
	await(unix.EPOLLERR, "a bad header", "recv recv", "EINVAL EAGAIN")
}

func testKeysOnce(t *testing.T, sup Support) {
	pair := func() int {
		p := &prober{deadline: time.Now().Add(time.Minute)}
		t.Cleanup(p.closeAll)
		_, near, err := p.pair()
		if err == nil {
			err = Attach(near)
		}
		if err != nil {
			t.Fatal(err)
		}
		return near
	}
	near := pair()
	if err := Attach(near); !errors.Is(err, unix.EEXIST) {
		t.Errorf("attached twice: %v", err)
	}
	for _, r := range representative {
		near := pair()
		for _, d := range []Direction{TX, RX} {
			if err := SetKeys(near, d, randomKeys(r.version, r.suite)); err != nil {
				t.Errorf("%+v: %v", r, err)
			}
			err := SetKeys(near, d, randomKeys(r.version, r.suite))
			if again := sup.Rekey && r.version == version13; again && err != nil || !again && !errors.Is(err, ErrNoRekey) {
				t.Errorf("%+v: new keys: %v", r, err)
			}
		}
	}
	for _, other := range []tlsrecord.Keys{randomKeys(version13, 0x1302), randomKeys(version12, 0xc02f)} {
		near := pair()
		if err := SetKeys(near, TX, randomKeys(version13, 0x1301)); err != nil {
			t.Fatal(err)
		}
		if err := SetKeys(near, RX, other); !errors.Is(err, unix.EINVAL) {
			t.Errorf("another suite for the other direction: %v", err)
		}
	}
}

func testAttachAfterFIN(t *testing.T, _ Support) {
	p := &prober{deadline: time.Now().Add(time.Minute)}
	t.Cleanup(p.closeAll)
	for _, early := range []bool{false, true} {
		far, near, err := p.pair()
		if err != nil {
			t.Fatal(err)
		}
		if early {
			if err := Attach(near); err != nil {
				t.Fatal(err)
			}
		}
		in := newSealer()
		keys := in.keys
		if err := p.write(far, in.seal(Data, "last words")); err != nil {
			t.Fatal(err)
		}
		unix.Shutdown(far, unix.SHUT_WR)
		if err := p.wait(near, unix.POLLRDHUP); err != nil {
			t.Fatal(err)
		}
		if !early {
			if err := Attach(near); !errors.Is(err, ErrFinished) {
				t.Errorf("after the FIN: %v", err)
			}
			continue
		}
		if err := errors.Join(SetKeys(near, TX, randomKeys(version13, 0x1301)), SetKeys(near, RX, keys)); err != nil {
			t.Fatal(err)
		}
		if err := p.expect(near, Data, "last words"); err != nil {
			t.Error(err)
		}
	}
}

// Until there are keys everything passes as it is, alerts in clear text.
func testWithoutKeys(t *testing.T, _ Support) {
	p := &prober{deadline: time.Now().Add(time.Minute)}
	t.Cleanup(p.closeAll)
	far, near, err := p.pair()
	if err == nil {
		err = Attach(near)
	}
	if err != nil {
		t.Fatal(err)
	}
	if errno := Send(near, Alert, []byte{1, 0}); errno != 0 {
		t.Error(errno)
	}
	if b, err := p.read(far, 2); err != nil || string(b) != "\x01\x00" {
		t.Errorf("%x, %v", b, err)
	}
	if err := p.write(far, []byte("plain")); err != nil {
		t.Fatal(err)
	}
	if err := p.expect(near, 0, "plain"); err != nil {
		t.Error(err)
	}
}
