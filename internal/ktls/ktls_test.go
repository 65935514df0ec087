package ktls

import (
	"bytes"
	"errors"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"edgeproxy/internal/tlsrecord"
)

func TestAttachErrors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		errno unix.Errno
		is    error
	}{
		{unix.ENOENT, ErrUnavailable},
		{unix.ENOPROTOOPT, ErrUnavailable},
		{unix.EOPNOTSUPP, ErrUnavailable},
		{unix.ENOTCONN, ErrFinished},
		{unix.EEXIST, nil},
		{unix.EBADF, nil},
	} {
		err := attachError(c.errno)
		if !errors.Is(err, c.errno) {
			t.Errorf("%v does not tell of %v", err, c.errno)
		}
		for _, typed := range []error{ErrUnavailable, ErrFinished} {
			if errors.Is(err, typed) != (typed == c.is) {
				t.Errorf("errors.Is(%v, %v) is %v", err, typed, typed != c.is)
			}
		}
	}
	if err := attachError(nil); err != nil {
		t.Error(err)
	}
}

// A Unix socket and an MPTCP socket cannot have it on any kernel: Go listens
// with MPTCP unless told otherwise.
func TestAttachToOtherSockets(t *testing.T) {
	t.Parallel()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	if err := Attach(pair[0]); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Unix socket: %v", err)
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(true)
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var d net.Dialer
	d.SetMultipathTCP(true)
	c, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		// Where the kernel has no MPTCP, or no TLS, it is plain TCP.
		proto, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PROTOCOL)
		if err != nil {
			t.Error(err)
		} else if err := Attach(int(fd)); proto == unix.IPPROTO_MPTCP && !errors.Is(err, ErrUnavailable) {
			t.Errorf("MPTCP socket: %v", err)
		}
	})
}

// The offsets are those of struct tls12_crypto_info_* in linux/tls.h.
func TestCryptoInfoLayout(t *testing.T) {
	t.Parallel()
	seq := func(n int, first byte) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = first + byte(i)
		}
		return b
	}
	const counter = 0x0102030405060708
	number := []byte{1, 2, 3, 4, 5, 6, 7, 8}
	iv := seq(12, 0xa0)
	for _, c := range []struct {
		name           string
		version, suite uint16
		key, iv        []byte
		cipher         byte
		want           [][]byte
	}{
		{"1.3 AES-128", version13, 0x1301, seq(16, 0), iv, 51, [][]byte{iv[4:], seq(16, 0), iv[:4], number}},
		{"1.3 AES-256", version13, 0x1302, seq(32, 0), iv, 52, [][]byte{iv[4:], seq(32, 0), iv[:4], number}},
		{"1.3 ChaCha20", version13, 0x1303, seq(32, 0), iv, 54, [][]byte{iv, seq(32, 0), number}},
		{"1.2 AES-128", version12, 0xc02f, seq(16, 0), iv[:4], 51, [][]byte{number, seq(16, 0), iv[:4], number}},
		{"1.2 AES-256", version12, 0xc02c, seq(32, 0), iv[:4], 52, [][]byte{number, seq(32, 0), iv[:4], number}},
		{"1.2 ChaCha20", version12, 0xcca9, seq(32, 0), iv, 54, [][]byte{iv, seq(32, 0), number}},
	} {
		var info cryptoInfo
		n, err := info.set(tlsrecord.Keys{Version: c.version, Suite: c.suite, Key: c.key, IV: c.iv, Seq: counter})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		// Little endian, as on every architecture that Go's Linux has but s390x, mips and ppc64.
		want := append([]byte{byte(c.version), byte(c.version >> 8), c.cipher, 0}, bytes.Join(c.want, nil)...)
		if got := info[:n]; !bytes.Equal(got, want) {
			t.Errorf("%s:\n%x, not\n%x", c.name, got, want)
		}
	}
}

func TestKeysThatCannotBe(t *testing.T) {
	t.Parallel()
	for _, k := range []tlsrecord.Keys{
		{Version: 0x0302, Suite: 0xc02f, Key: make([]byte, 16), IV: make([]byte, 4)},
		{Version: version12, Suite: 0x1301, Key: make([]byte, 16), IV: make([]byte, 12)},
		{Version: version12, Suite: 0xc013, Key: make([]byte, 16), IV: make([]byte, 12)}, // CBC
		{Version: version13, Suite: 0x1304, Key: make([]byte, 16), IV: make([]byte, 12)}, // CCM
		{},
	} {
		if err := SetKeys(-1, TX, k); !errors.Is(err, ErrSuite) {
			t.Errorf("%+v: %v", k, err)
		}
	}
	for _, k := range []tlsrecord.Keys{
		{Version: version13, Suite: 0x1301, Key: make([]byte, 32), IV: make([]byte, 12)},
		{Version: version13, Suite: 0x1301, Key: make([]byte, 16), IV: make([]byte, 4)},
		{Version: version13, Suite: 0x1302, Key: make([]byte, 16), IV: make([]byte, 12)},
		{Version: version12, Suite: 0xc02f, Key: make([]byte, 16), IV: make([]byte, 12)},
		{Version: version12, Suite: 0xcca8, Key: make([]byte, 32), IV: make([]byte, 4)},
		{Version: version13, Suite: 0x1301},
	} {
		if err := SetKeys(-1, TX, k); err == nil || errors.Is(err, unix.EBADF) {
			t.Errorf("keys of a wrong length: %v", err)
		}
	}
}

// Every suite that our own record layer knows must be one that the kernel is
// tried with.
func TestSuitesOfTheRecordLayer(t *testing.T) {
	t.Parallel()
	for version := uint16(0x0301); version <= version13; version++ {
		for suite := range 1 << 16 {
			c, _ := cipherOf(version, uint16(suite))
			if tlsrecord.Supported(version, uint16(suite)) != (c != 0) {
				t.Errorf("version %#04x, suite %#04x: the kernel's cipher is %d, in our record layer %v",
					version, suite, c, tlsrecord.Supported(version, uint16(suite)))
			}
		}
	}
	for _, r := range representative {
		if c, _ := cipherOf(r.version, r.suite); c == 0 {
			t.Errorf("version %#04x, suite %#04x is no suite", r.version, r.suite)
		}
	}
}

func TestReason(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		want string
	}{
		{errors.Join(errAttach, attachError(unix.ENOENT)), "modprobe tls"},
		{errors.Join(errAttach, attachError(unix.ENOPROTOOPT)), "protocol not available"},
		{unix.ENOENT, "modprobe -a"},
		{ErrNoRekey, "Linux 6.12 cannot replace the keys"},
		{errTimeout, "no answer on loopback"},
	} {
		if got := reason(Support{Kernel: "6.12"}, c.err); !strings.Contains(got, c.want) {
			t.Errorf("%v: %q", c.err, got)
		}
	}
}

// Whatever the kernel has, the probe says so and leaves nothing behind.
func TestProbeLeavesNothing(t *testing.T) {
	s := Probe() // the first may load modules
	before := descriptors(t)
	for range 3 {
		s = Probe()
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors before the probe, %d after it", before, after)
	}
	if s.Kernel == "" {
		t.Error("the probe does not know the kernel's release")
	}
	if whole := s.Available && s.Rekey; whole != (s.Reason == "") {
		t.Errorf("%+v: the reason must say what is missing", s)
	}
	if s.Rekey && !s.Available {
		t.Errorf("%+v", s)
	}
	if !s.Available && (s.Covers(version13, 0x1301) || s.Covers(version12, 0xc02f)) {
		t.Errorf("%+v covers suites without being available", s)
	}
	t.Logf("Linux %s: available %v, rekey %v, %s", s.Kernel, s.Available, s.Rekey, s.Reason)
}

func descriptors(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func TestSendRefusesWhatIsNoRecord(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, MaxPlaintext + 1} {
		if errno := Send(-1, Alert, make([]byte, n)); errno != unix.EMSGSIZE {
			t.Errorf("%d bytes: %v", n, errno)
		}
	}
	if errno := Send(-1, Alert, []byte{1, 0}); errno != unix.EBADF {
		t.Error(errno)
	}
	if _, _, errno := Recv(-1, make([]byte, 1)); errno != unix.EBADF {
		t.Error(errno)
	}
}
