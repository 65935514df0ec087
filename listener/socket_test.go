package listener

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// descriptors is what the process has open but for the runtime's own: tests
// that count them are not parallel.
func descriptors(t *testing.T) map[string]string {
	t.Helper()
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	open := map[string]string{}
	for _, e := range dir {
		if to, _ := os.Readlink("/proc/self/fd/" + e.Name()); strings.HasPrefix(to, "socket:") {
			open[e.Name()] = to
		}
	}
	return open
}

// noLeak asserts in the end that there are as many sockets as now.
func noLeak(t *testing.T) {
	before := len(descriptors(t))
	t.Cleanup(func() {
		if after := descriptors(t); len(after) != before {
			t.Errorf("%d sockets, %d before: %v", len(after), before, after)
		}
	})
}

func nothingInherited(string) []*os.File { return nil }

func openOne(t *testing.T, address string, n int, o *TCPOptions) (*socket, error) {
	t.Helper()
	ss, err := open(one(t, address), n, o, nothingInherited)
	if err != nil {
		return nil, err
	}
	t.Cleanup(ss[0].close)
	return ss[0], nil
}

func mustOpen(t *testing.T, address string, n int) *socket {
	t.Helper()
	s, err := openOne(t, address, n, &TCPOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(s.fds) != n {
		t.Fatalf("%d descriptors for %d loops", len(s.fds), n)
	}
	return s
}

// reaches reports whether a client gets through to a socket.
func reaches(network, address string) error {
	c, err := net.Dial(network, address)
	if err == nil {
		c.Close()
	}
	return err
}

func TestOpenTCP(t *testing.T) {
	noLeak(t)
	for _, test := range []struct{ address, v4, v6 string }{
		{":0", "yes", "yes"},
		{"0.0.0.0:0", "yes", ""},
		{"[::]:0", "", "yes"},
		{"127.0.0.1:0", "yes", ""},
		{"[::1]:0", "", "yes"},
	} {
		s := mustOpen(t, test.address, 3)
		port := s.local.Port()
		if s.bound != s.local.String() || port == 0 || s.shared {
			t.Errorf("%s: bound to %s, %v", test.address, s.bound, s.local)
		}
		for i, fd := range s.fds {
			if boundTo(fd) != s.local {
				t.Errorf("%s: loop %d has %v, not %v", test.address, i, boundTo(fd), s.local)
			}
		}
		if err := reaches("tcp4", fmt.Sprint("127.0.0.1:", port)); (err == nil) != (test.v4 != "") {
			t.Errorf("%s: over IPv4: %v", test.address, err)
		}
		if err := reaches("tcp6", fmt.Sprint("[::1]:", port)); (err == nil) != (test.v6 != "") {
			t.Errorf("%s: over IPv6: %v", test.address, err)
		}
	}
}

// Accepted sockets inherit what is set here, which saves a call for each.
func TestTune(t *testing.T) {
	noLeak(t)
	get := func(fd, level, opt int) int {
		v, err := unix.GetsockoptInt(fd, level, opt)
		if err != nil {
			t.Error(err)
		}
		return v
	}
	s := mustOpen(t, "127.0.0.1:0", 2)
	for i, test := range []struct {
		o                                 TCPOptions
		nodelay, keepalive, idle, timeout int
	}{
		{TCPOptions{}, 1, 1, 300, 0},
		{TCPOptions{Delay: true, Keepalive: 7 * time.Second, UserTimeout: 1500 * time.Millisecond}, 0, 1, 7, 1500},
		{TCPOptions{Keepalive: -1}, 1, 0, -1, 0}, // and the user timeout is off again
		{TCPOptions{Keepalive: time.Millisecond}, 1, 1, 1, 0},
	} {
		s.retune(&table{opts: &Options{TCP: test.o}})
		c, err := net.Dial("tcp", s.bound)
		if err != nil {
			t.Fatal(err)
		}
		fd := acceptFrom(t, s.fds)
		if got := get(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY); got != test.nodelay {
			t.Errorf("%d: TCP_NODELAY %d", i, got)
		}
		if got := get(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE); got != test.keepalive {
			t.Errorf("%d: SO_KEEPALIVE %d", i, got)
		}
		if got := get(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE); test.idle > 0 && got != test.idle {
			t.Errorf("%d: TCP_KEEPIDLE %d", i, got)
		}
		if got := get(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT); got != test.timeout {
			t.Errorf("%d: TCP_USER_TIMEOUT %d", i, got)
		}
		if get(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE) != 1 {
			t.Errorf("%d: urgent data is taken out of the stream", i)
		}
		unix.Close(fd)
		c.Close()
	}
}

// acceptFrom takes one connection from whichever of the sockets has it.
func acceptFrom(t *testing.T, fds []int) int {
	t.Helper()
	var p []unix.PollFd
	for _, fd := range fds {
		p = append(p, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	for {
		if _, err := unix.Poll(p, -1); err != nil && err != unix.EINTR {
			t.Fatal(err)
		}
		for _, e := range p {
			if e.Revents != 0 {
				fd, _, err := unix.Accept4(int(e.Fd), unix.SOCK_CLOEXEC)
				if err != nil {
					t.Fatal(err)
				}
				return fd
			}
		}
	}
}

// With SO_REUSEPORT alone the kernel would let us share a port with another
// process of the same user, and give each half of the connections.
func TestPortInUse(t *testing.T) {
	noLeak(t)
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", ":0"} {
		other := mustOpen(t, address, 2)
		a := one(t, address)
		a.AddrPort = netip.AddrPortFrom(a.AddrPort.Addr(), other.local.Port())
		_, err := open(a, 2, &TCPOptions{}, nothingInherited)
		if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "ss -ltnp") || !strings.Contains(err.Error(), a.String()) {
			t.Errorf("%s: %v", a, err)
		}
	}
}

func TestBindErrors(t *testing.T) {
	noLeak(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for address, want := range map[string]string{
		"192.0.2.99:0":                  "ip addr",
		"unix:" + dir + "/missing/sock": "create the folder " + dir + "/missing",
		"unix:" + file + "/sock":        file + " is not a folder",
		"unix:" + file:                  "not a socket",
		"unix:" + dir:                   "not a socket",
		"systemd:web":                   "FileDescriptorName=web",
	} {
		if _, err := openOne(t, address, 2, &TCPOptions{}); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), address) {
			t.Errorf("%s: %v, want %q", address, err, want)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("a plain file was replaced: %q, %v", b, err)
	}
}

// What cannot be provoked for every user: the text for each errno.
func TestExplainBind(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		address string
		errno   unix.Errno
		want    string
	}{
		{":443", unix.EACCES, "CAP_NET_BIND_SERVICE"},
		{":443", unix.EPERM, "CAP_NET_BIND_SERVICE"},
		{":443", unix.EADDRINUSE, "ss -ltnp"},
		{":443", unix.EADDRNOTAVAIL, "ip addr"},
		{":443", unix.EMFILE, "LimitNOFILE="},
		{":443", unix.ENFILE, "open files"},
		{":443", unix.EAFNOSUPPORT, "address family"},
		{"unix:/run/e.sock", unix.EACCES, "create files in /run"},
		{"unix:/run/e.sock", unix.EPERM, "create files in /run"},
		{"unix:/run/e.sock", unix.EADDRINUSE, "remove the file"},
		{"unix:/run/e.sock", unix.ENOENT, "create the folder /run"},
		{"unix:/run/e.sock", unix.ENOTDIR, "/run is not a folder"},
		{":443", unix.EIO, "input/output error"},
	} {
		err := explainBind(one(t, test.address), TCP, os.NewSyscallError("bind", test.errno))
		if !errors.Is(err, test.errno) || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), test.address) {
			t.Errorf("%s, %v: %v, want %q", test.address, test.errno, err, test.want)
		}
	}
}

func TestOpenUnix(t *testing.T) {
	noLeak(t)
	path := filepath.Join(t.TempDir(), "s")
	for _, address := range []string{"unix:" + path, "unix:@edgeproxy-listener-test"} {
		s := mustOpen(t, address, 3)
		if s.bound != address || s.local.IsValid() || !s.shared {
			t.Errorf("%s: bound to %q, %v", address, s.bound, s.local)
		}
		if err := reaches("unix", address[len("unix:"):]); err != nil {
			t.Error(err)
		}
		// A live one stays whose it is.
		if _, err := openOne(t, address, 1, &TCPOptions{}); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("a second time: %v", err)
		}
		if err := reaches("unix", address[len("unix:"):]); err != nil {
			t.Errorf("afterwards: %v", err)
		}
		s.close()
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket's file is left: %v", err)
	}
	// One left over from a process that has gone is replaced.
	old := mustOpen(t, "unix:"+path, 1)
	old.file = ""
	old.close()
	if fi, err := os.Lstat(path); err != nil || fi.Mode().Type() != os.ModeSocket {
		t.Fatal(fi, err)
	}
	mustOpen(t, "unix:"+path, 1)
	if err := reaches("unix", path); err != nil {
		t.Error(err)
	}
	if fi, err := os.Lstat(path); err != nil || fi.Mode().Perm() != 0o666 {
		t.Error(fi.Mode(), err)
	}
}

// Sockets of other types, and links, are not what an earlier run has left.
func TestForeignFilesAreNotStale(t *testing.T) {
	noLeak(t)
	dir := t.TempDir()
	datagram := filepath.Join(dir, "datagram")
	c, err := net.ListenPacket("unixgram", datagram)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "nowhere"), link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{datagram, link} {
		if _, err := openOne(t, "unix:"+path, 1, &TCPOptions{}); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("%s: %v", path, err)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
	}
}

func TestOpenInherited(t *testing.T) {
	noLeak(t)
	file := func(l any) *os.File {
		f, err := l.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	path := filepath.Join(t.TempDir(), "s")
	ux, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ux.Close()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	files := map[string][]*os.File{"web": {file(tcp), file(ux)}, "bad": {file(tcp), file(udp)}}
	inherited := func(name string) []*os.File { return files[name] }

	ss, err := open(one(t, "systemd:web"), 3, &TCPOptions{}, inherited)
	if err != nil || len(ss) != 2 {
		t.Fatal(ss, err)
	}
	if ss[0].bound != tcp.Addr().String() || ss[0].local.String() != ss[0].bound || ss[1].bound != "unix:"+path || ss[1].local.IsValid() {
		t.Errorf("bound to %q and %q", ss[0].bound, ss[1].bound)
	}
	for _, s := range ss {
		if len(s.fds) != 3 || !s.shared {
			t.Errorf("%+v", s)
		}
		s.close()
	}
	// They are systemd's, and stay open for the next start.
	if err := reaches("unix", path); err != nil {
		t.Error(err)
	}
	if _, err := open(one(t, "systemd:bad"), 3, &TCPOptions{}, inherited); err == nil || !strings.Contains(err.Error(), "ListenStream=") {
		t.Error(err)
	}
}

func TestSourceOf(t *testing.T) {
	t.Parallel()
	var raw [unix.SizeofSockaddrAny]byte
	set := func(family byte, b ...byte) netip.AddrPort {
		clear(raw[:])
		raw[0] = family // below 256, little endian
		copy(raw[2:], b)
		return sourceOf(&raw)
	}
	if got := set(0, 1, 2); got.IsValid() {
		t.Errorf("no family: %v", got)
	}
	if got := set(unix.AF_UNIX, '/', 'x'); got.IsValid() {
		t.Errorf("unix: %v", got)
	}
	if got := set(unix.AF_INET, 0x01, 0xbb, 192, 0, 2, 1); got.String() != "192.0.2.1:443" {
		t.Error(got)
	}
	six := func(prefix []byte, zone byte) netip.AddrPort {
		b := make([]byte, 26)
		b[0], b[1] = 0x01, 0xbb
		copy(b[6:], prefix)
		b[21], b[22] = 1, zone
		return set(unix.AF_INET6, b...)
	}
	if got := six([]byte{0x20, 0x01, 0x0d, 0xb8}, 2); got.String() != "[2001:db8::1]:443" {
		t.Error(got)
	}
	if got := six([]byte{0xfe, 0x80}, 2); got.String() != "[fe80::1%2]:443" {
		t.Error(got)
	}
	if got := six([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0}, 2); got.String() != "10.0.0.1:443" {
		t.Error(got)
	}
}
