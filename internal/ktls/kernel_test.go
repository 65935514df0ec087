package ktls

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// kernelTests need kernel TLS. With EDGEPROXY_KTLS=1, as in the virtual
// machines of .ci/vm, they have to run; without it they run where they can.
var kernelTests = []struct {
	name string
	test func(t *testing.T, s Support)
}{
	{"probe", testProbe},
	{"results", testResults},
	{"header errors reach sends", testHeaderErrorsReachSends},
	{"MAC errors reach sends", testMACErrorsReachSends},
	{"reset", testReset},
	{"key update", testKeyUpdate},
	{"edges", testEdges},
	{"keys only once, of one suite", testKeysOnce},
	{"attach after FIN", testAttachAfterFIN},
	{"attached without keys", testWithoutKeys},
	{"splice into TLS", testSpliceInto},
	{"MSG_MORE", testMore},
	{"close_notify keeps the tail", testTail},
	{"padding", testPadding},
	{"no allocation", testAllocations},
}

func TestKernel(t *testing.T) {
	s := Probe()
	required := os.Getenv("EDGEPROXY_KTLS") == "1"
	if !s.Available {
		if required {
			t.Fatalf("EDGEPROXY_KTLS=1, but: %s", s.Reason)
		}
		if s.Reason == "" {
			t.Error("kernel TLS is not available, and no reason is given")
		}
		return
	}
	for _, k := range kernelTests {
		t.Run(k.name, func(t *testing.T) { k.test(t, s) })
	}
}

// session is a socket under test, near, with keys, and its far end, which
// seals and opens in user space.
type session struct {
	t         *testing.T
	p         *prober
	far, near int
	in, out   *sealer
	pipe      [2]int
}

func newSession(t *testing.T) *session {
	t.Helper()
	s := &session{t: t, p: &prober{deadline: time.Now().Add(time.Minute)}, in: newSealer(), out: newSealer()}
	t.Cleanup(s.p.closeAll)
	var err error
	if s.far, s.near, err = s.p.pair(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Pipe2(s.pipe[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	s.p.fds = append(s.p.fds, s.pipe[:]...)
	if err := Attach(s.near); err != nil {
		t.Fatal(err)
	}
	if err := SetKeys(s.near, RX, s.in.keys); err != nil {
		t.Fatal(err)
	}
	if err := SetKeys(s.near, TX, s.out.keys); err != nil {
		t.Fatal(err)
	}
	return s
}

// arrive writes at the far end and waits until near's socket tells of it.
func (s *session) arrive(b ...[]byte) {
	s.t.Helper()
	if err := s.p.write(s.far, slices.Concat(b...)); err != nil {
		s.t.Fatal(err)
	}
	s.settle()
}

func (s *session) settle() {
	s.t.Helper()
	if err := s.p.wait(s.near, unix.POLLIN|unix.POLLRDHUP); err != nil {
		s.t.Fatal(err)
	}
}

func (s *session) finish() {
	unix.Shutdown(s.far, unix.SHUT_WR)
	s.settle()
}

func (s *session) reset() {
	unix.SetsockoptLinger(s.far, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	s.p.close(s.far)
	s.settle()
}

// do makes calls and returns what they return, in the words of the package
// comment.
func (s *session) do(calls string) string {
	var out []string
	for call := range strings.FieldsSeq(calls) {
		b := make([]byte, 1<<15)
		var n int
		var err error
		switch call {
		case "read":
			n, err = unix.Read(s.near, b)
		case "splice":
			var moved int64
			moved, err = unix.Splice(s.near, nil, s.pipe[1], nil, 1<<16, unix.SPLICE_F_NONBLOCK)
			n = int(moved)
		case "write":
			n, err = unix.SendmsgN(s.near, []byte("hello"), nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		case "alert":
			err = errnoError(Send(s.near, Alert, []byte{1, 0}))
		case "fatal":
			err = errnoError(Fatal(s.near, alertBadRecordMAC))
		case "recv":
			var typ byte
			var errno unix.Errno
			n, typ, errno = Recv(s.near, b)
			if err = errnoError(errno); err == nil {
				out = append(out, fmt.Sprintf("%d/%d", n, typ))
				continue
			}
		default:
			s.t.Fatalf("no such call: %s", call)
		}
		switch {
		case err != nil:
			out = append(out, unix.ErrnoName(err.(unix.Errno)))
		case call == "alert" || call == "fatal":
			out = append(out, "ok")
		default:
			out = append(out, fmt.Sprint(n))
		}
	}
	return strings.Join(out, " ")
}

func (s *session) emptyPipe() { unix.Read(s.pipe[0], make([]byte, 1<<16)) }

func (s *session) want(calls, want string) {
	s.t.Helper()
	if got := s.do(calls); got != want {
		s.t.Errorf("%s: %s, not %s", calls, got, want)
	}
}

func errnoError(errno unix.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

func (p *prober) close(fd int) {
	unix.Close(fd)
	p.fds = slices.DeleteFunc(p.fds, func(f int) bool { return f == fd })
}

func testProbe(t *testing.T, _ Support) {
	// The machines are emulated, some twenty times slower than real ones, on
	// which the probe is to take less than 50 ms.
	began := time.Now()
	s := Probe()
	took := time.Since(began)
	t.Logf("Linux %s: rekey %v, %v, %s", s.Kernel, s.Rekey, took, s.Reason)
	if took > time.Second {
		t.Errorf("the probe took %v", took)
	}
	for _, r := range representative {
		if !s.Covers(r.version, r.suite) {
			t.Errorf("version %#04x, suite %#04x is not covered", r.version, r.suite)
		}
	}
	var major, minor int
	fmt.Sscanf(s.Kernel, "%d.%d", &major, &minor)
	if rekeys := major > 6 || major == 6 && minor >= 14; s.Rekey != rekeys {
		t.Errorf("Linux %s: rekey is %v: %s", s.Kernel, s.Rekey, s.Reason)
	}
}

// The table of the package comment. Each line is tried by each way of reading.
func testResults(t *testing.T, sup Support) {
	plain := func(typ byte, version uint16, length int) []byte {
		return append([]byte{typ, byte(version >> 8), byte(version), byte(length >> 8), byte(length)}, make([]byte, min(length, 64))...)
	}
	const update = "\x18\x00\x00\x01\x00"
	afterUpdate, secondHalf := "5/22 EAGAIN", "3/22 2/22"
	if sup.Rekey {
		afterUpdate, secondHalf = "5/22 EKEYEXPIRED", "3/22 EKEYEXPIRED"
	}
	big := strings.Repeat("x", 5000)
	type answers struct{ read, splice, recv string } // of three calls each
	for _, c := range []struct {
		name string
		far  func(s *session)
		answers
		then string // of two calls of Recv after the first two ways
	}{
		{"data", func(s *session) { s.arrive(s.in.seal(Data, "hello")) },
			answers{"5 EAGAIN EAGAIN", "5 EAGAIN EAGAIN", "5/23 EAGAIN EAGAIN"}, "EAGAIN EAGAIN"},
		{"empty data", func(s *session) { s.arrive(s.in.seal(Data, "")) },
			answers{"EAGAIN EAGAIN EAGAIN", "0 EAGAIN EAGAIN", "EAGAIN EAGAIN EAGAIN"}, "EAGAIN EAGAIN"},
		{"empty data between data", func(s *session) {
			s.arrive(s.in.seal(Data, "ab"), s.in.seal(Data, ""), s.in.seal(Data, "cd"))
		}, answers{"4 EAGAIN EAGAIN", "2 0 2", "4/23 EAGAIN EAGAIN"}, "EAGAIN EAGAIN"},
		{"empty data, FIN", func(s *session) { s.arrive(s.in.seal(Data, "")); s.finish() },
			answers{"0 0 0", "0 0 0", "0/23 0/0 0/0"}, "0/0 0/0"},
		{"FIN", func(s *session) { s.finish() },
			answers{"0 0 0", "0 0 0", "0/0 0/0 0/0"}, "0/0 0/0"},
		{"data and half a record, FIN", func(s *session) {
			s.arrive(s.in.seal(Data, "hello"), s.in.seal(Data, "hello")[:12])
			s.finish()
		}, answers{"5 0 0", "5 0 0", "5/23 0/0 0/0"}, "0/0 0/0"},
		{"three records", func(s *session) { s.arrive(s.in.seal(Data, big), s.in.seal(Data, big), s.in.seal(Data, big)) },
			answers{"15000 EAGAIN EAGAIN", "5000 5000 5000", "15000/23 EAGAIN EAGAIN"}, "EAGAIN EAGAIN"},
		{"alert", func(s *session) { s.arrive(s.in.seal(Alert, "\x01\x00")) },
			answers{"EIO EIO EIO", "EINVAL EINVAL EINVAL", "2/21 EAGAIN EAGAIN"}, "2/21 EAGAIN"},
		{"data, alert, FIN", func(s *session) {
			s.arrive(s.in.seal(Data, "hello"), s.in.seal(Alert, "\x01\x00"))
			s.finish()
		}, answers{"5 EIO EIO", "5 EINVAL EINVAL", "5/23 2/21 0/0"}, "2/21 0/0"},
		{"empty alert", func(s *session) { s.arrive(s.in.seal(Alert, "")) },
			answers{"EIO EIO EIO", "EINVAL EINVAL EINVAL", "0/21 EAGAIN EAGAIN"}, "0/21 EAGAIN"},
		{"empty handshake, data", func(s *session) { s.arrive(s.in.seal(Handshake, ""), s.in.seal(Data, "x")) },
			answers{"EIO EIO EIO", "EINVAL EINVAL EINVAL", "0/22 1/23 EAGAIN"}, "0/22 1/23"},
		{"CCS inside", func(s *session) { s.arrive(s.in.seal(20, "\x01")) },
			answers{"EIO EIO EIO", "EINVAL EINVAL EINVAL", "1/20 EAGAIN EAGAIN"}, "1/20 EAGAIN"},
		{"unknown type inside", func(s *session) { s.arrive(s.in.seal(99, "\x01")) },
			answers{"EIO EIO EIO", "EINVAL EINVAL EINVAL", "1/99 EAGAIN EAGAIN"}, "1/99 EAGAIN"},
		{"no type inside", func(s *session) { s.arrive(s.in.seal(0, "\x00\x00")) },
			answers{"EBADMSG EBADMSG EBADMSG", "EBADMSG EBADMSG EBADMSG", "EBADMSG EBADMSG EBADMSG"}, "EBADMSG EBADMSG"},
		{"wrong MAC", func(s *session) { s.arrive(plain(Data, 0x0303, 32)) },
			answers{"EBADMSG EBADMSG EBADMSG", "EBADMSG EBADMSG EBADMSG", "EBADMSG EBADMSG EBADMSG"}, "EBADMSG EBADMSG"},
		{"replay", func(s *session) { r := s.in.seal(Data, "a"); s.arrive(r, r) },
			answers{"1 EBADMSG EBADMSG", "1 EBADMSG EBADMSG", "1/23 EBADMSG EBADMSG"}, "EBADMSG EBADMSG"},
		{"outer type", func(s *session) { s.arrive(plain(99, 0x0303, 32)) },
			answers{"EBADMSG EBADMSG EBADMSG", "EBADMSG EBADMSG EBADMSG", "EBADMSG EBADMSG EBADMSG"}, "EBADMSG EBADMSG"},
		{"outer type of a record that is authentic", func(s *session) { r := s.in.seal(Data, "hello"); r[0] = 99; s.arrive(r) },
			answers{"5 EAGAIN EAGAIN", "5 EAGAIN EAGAIN", "5/23 EAGAIN EAGAIN"}, "EAGAIN EAGAIN"},
		{"unencrypted alert", func(s *session) { s.arrive([]byte{21, 3, 3, 0, 2, 1, 0}) },
			answers{"EBADMSG EAGAIN EAGAIN", "EBADMSG EAGAIN EAGAIN", "EBADMSG EAGAIN EAGAIN"}, "EAGAIN EAGAIN"},
		{"no length", func(s *session) { s.arrive(plain(Data, 0x0303, 0)) },
			answers{"EBADMSG EAGAIN EAGAIN", "EBADMSG EAGAIN EAGAIN", "EBADMSG EAGAIN EAGAIN"}, "EAGAIN EAGAIN"},
		{"too long", func(s *session) { s.arrive(plain(Data, 0x0303, MaxPlaintext+256)) },
			answers{"EMSGSIZE EAGAIN EAGAIN", "EMSGSIZE EAGAIN EAGAIN", "EMSGSIZE EAGAIN EAGAIN"}, "EAGAIN EAGAIN"},
		{"one byte too long", func(s *session) { s.arrive(s.in.seal(Data, strings.Repeat("x", MaxPlaintext+1))) },
			answers{"EMSGSIZE EAGAIN EAGAIN", "EMSGSIZE EAGAIN EAGAIN", "EMSGSIZE EAGAIN EAGAIN"}, "EAGAIN EAGAIN"},
		{"the longest", func(s *session) { s.arrive(s.in.seal(Data, strings.Repeat("x", MaxPlaintext))) },
			answers{"16384 EAGAIN EAGAIN", "16384 EAGAIN EAGAIN", "16384/23 EAGAIN EAGAIN"}, "EAGAIN EAGAIN"},
		{"version", func(s *session) { s.arrive(plain(Data, 0x0909, 32)) },
			answers{"EINVAL EAGAIN EAGAIN", "EINVAL EAGAIN EAGAIN", "EINVAL EAGAIN EAGAIN"}, "EAGAIN EAGAIN"},
		{"reset", func(s *session) { s.reset() },
			answers{"ECONNRESET 0 0", "ECONNRESET 0 0", "ECONNRESET 0/0 0/0"}, "0/0 0/0"},
		{"data, reset", func(s *session) { s.arrive(s.in.seal(Data, "hello")); s.reset() },
			answers{"5 ECONNRESET 0", "5 ECONNRESET 0", "5/23 ECONNRESET 0/0"}, "0/0 0/0"},
		{"KeyUpdate", func(s *session) { s.arrive(s.in.seal(Handshake, update)) },
			answers{"EIO EIO EIO", "EINVAL EINVAL EINVAL", afterUpdate + " " + strings.Fields(afterUpdate)[1]}, afterUpdate},
		{"KeyUpdate in two records", func(s *session) {
			s.arrive(s.in.seal(Handshake, update[:3]), s.in.seal(Handshake, update[3:]))
		}, answers{"EIO EIO EIO", "EINVAL EINVAL EINVAL", secondHalf + " " + map[bool]string{true: "EKEYEXPIRED", false: "EAGAIN"}[sup.Rekey]}, secondHalf},
		{"ticket", func(s *session) { s.arrive(s.in.seal(Handshake, "\x04\x00\x00\x01\x00")) },
			answers{"EIO EIO EIO", "EINVAL EINVAL EINVAL", "5/22 EAGAIN EAGAIN"}, "5/22 EAGAIN"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for how, want := range map[string]string{"read": c.read, "splice": c.splice, "recv": c.recv} {
				s := newSession(t)
				c.far(s)
				s.want(strings.Repeat(how+" ", 3), want)
				if how != "recv" {
					s.want("recv recv", c.then)
				}
			}
		})
	}
}

// A bad header is told to whoever comes first, and to receivers once.
func testHeaderErrorsReachSends(t *testing.T, _ Support) {
	// The header of TLS 1.2 with AES-GCM has 13 bytes, for the kernel, and it
	// judges only a whole one.
	p := &prober{deadline: time.Now().Add(time.Minute)}
	t.Cleanup(p.closeAll)
	far, near, err := p.pair()
	if err != nil {
		t.Fatal(err)
	}
	keys := randomKeys(version12, 0xc02f)
	if err := errors.Join(Attach(near), SetKeys(near, TX, keys), SetKeys(near, RX, keys)); err != nil {
		t.Fatal(err)
	}
	s := &session{t: t, p: p, far: far, near: near}
	if err := p.write(far, []byte{Data, 9, 9, 0, 64, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		t.Fatal(err)
	}
	s.want("recv", "EAGAIN")
	s.arrive([]byte{0})
	s.want("recv recv", "EINVAL EAGAIN")

	for errno, record := range map[unix.Errno][]byte{
		unix.EINVAL:   {Data, 9, 9, 0, 32, 0},
		unix.EMSGSIZE: {Data, 3, 3, 0x48, 0, 0},
		unix.EBADMSG:  {Alert, 3, 3, 0, 2, 1, 0},
	} {
		name := unix.ErrnoName(errno)
		if AlertOf(errno) == 0 {
			t.Errorf("%s has no alert", name)
		}
		s := newSession(t)
		s.arrive(record)
		s.want("write alert write recv recv write", fmt.Sprintf("%[1]s %[1]s %[1]s %[1]s EAGAIN 5", name))
		s = newSession(t)
		s.arrive(record)
		s.want("write fatal recv", name+" ok EAGAIN")
	}
}

func testMACErrorsReachSends(t *testing.T, _ Support) {
	s := newSession(t)
	s.arrive([]byte{Data, 3, 3, 0, 32}, make([]byte, 32))
	s.want("write alert recv write alert", "5 ok EBADMSG EBADMSG EBADMSG")
	s.want("fatal recv", "ok EBADMSG")
	want := slices.Concat(s.out.seal(Data, "hello"), s.out.seal(Alert, "\x01\x00"), s.out.seal(Alert, "\x02\x14"))
	if got, err := s.p.read(s.far, len(want)); err != nil || !slices.Equal(got, want) {
		t.Errorf("the peer was sent %x, %v, not %x", got, err, want)
	}
}

// What is sent after a reset that was read, or after a shutdown, is taken for
// nothing.
func testReset(t *testing.T, _ Support) {
	s := newSession(t)
	s.reset()
	s.want("write write", "ECONNRESET ECONNRESET")
	s.want("recv write write alert", "ECONNRESET 5 5 ok")
	s = newSession(t)
	unix.Shutdown(s.near, unix.SHUT_WR)
	s.want("write alert", "5 ok")
}
