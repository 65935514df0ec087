package upstream

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"edgeproxy/internal/reactor"
)

// theLoop serves all tests, as a loop keeps a descriptor even after its end.
var theLoop = sync.OnceValue(func() *reactor.Loop {
	l, err := reactor.New(0, -1)
	if err != nil {
		panic(err)
	}
	go l.Run()
	return l
})

// settle returns when the loop has closed what it was told to close so far.
func settle() {
	for range 2 {
		theLoop().Do(func() {})
	}
}

// sockets counts the process's sockets.
func sockets(t *testing.T) (n int) {
	t.Helper()
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range dir {
		if to, _ := os.Readlink("/proc/self/fd/" + e.Name()); strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}

// dialing is one dialer on the loop. Tests that use it are not parallel, as
// they count descriptors.
type dialing struct {
	t  *testing.T
	dl *Dialer
	g  *Group
}

// result is what the owner was told, and how often.
type result struct {
	Outcome
	told    int
	server  *Server
	fd      int
	retries int
	took    time.Duration
	err     error
	token   reactor.Token
	done    chan struct{}
}

type deaf struct{}

func (deaf) Ready(reactor.Events) {}

// Dialed implements [Owner].
func (r *result) Dialed(d *Dial, o Outcome) {
	r.told++
	r.Outcome, r.server, r.fd, r.retries, r.took, r.err, r.token = o, d.Server, d.FD, d.Retries, d.Took, d.Err, d.Token
	if o == Connected {
		d.dialer.Loop.SetHandler(d.Token, deaf{})
	}
	close(r.done)
}

// newDialing makes a group, and asserts in the end that no lease, descriptor
// or Dial is left.
func newDialing(t *testing.T, o Options) *dialing {
	settle()
	before := sockets(t)
	d := &dialing{t: t, dl: &Dialer{Loop: theLoop()}, g: newTestGroup(o, 1)}
	t.Cleanup(func() {
		settle()
		if n := d.g.active(); n != 0 {
			t.Errorf("%d leases left", n)
		}
		if n := sockets(t); n != before {
			t.Errorf("%d sockets, %d before", n, before)
		}
		theLoop().Do(func() {
			n := 0
			for f := d.dl.free; f != nil; f = f.next {
				n++
				if f.timer.Active() || f.Server != nil || f.group != nil || f.owner != nil || f.ntried != 0 || f.leased || f.waiting {
					t.Errorf("a Dial in the free list: %+v", f)
				}
			}
			if n != 1 { // one at a time
				t.Errorf("%d Dials in the free list, want 1", n)
			}
		})
	})
	return d
}

var (
	client = netip.MustParseAddrPort("192.0.2.1:1234")
	local  = netip.MustParseAddrPort("192.0.2.9:443")
)

// dial dials and waits for the outcome. The lease and the socket are given
// back when the test ends.
func (d *dialing) dial() *result {
	d.t.Helper()
	r := &result{done: make(chan struct{})}
	theLoop().Do(func() {
		if p := d.dl.Dial(d.g, r, Client{Source: client, Local: local}); (p == nil) != (r.told == 1) {
			d.t.Errorf("Dial returned %p, its owner was told %d times", p, r.told)
		}
	})
	<-r.done
	if r.Outcome == Connected {
		d.t.Cleanup(r.close)
		if n := r.server.Active(); n == 0 {
			d.t.Error("connected without a lease")
		}
	} else if n := d.g.active(); n != 0 {
		d.t.Errorf("%v, and %d leases", r.Outcome, n)
	}
	return r
}

func (r *result) close() {
	theLoop().Do(func() {
		theLoop().Close(r.token)
		r.server.Release()
	})
}

func (o Outcome) String() string {
	return [...]string{"connected", "no server", "connect failed", "connect timeout", "overloaded"}[o]
}

func (d *dialing) expect(r *result, o Outcome, retries int) {
	d.t.Helper()
	if r.Outcome != o || r.retries != retries || r.told != 1 || (r.err == nil) != (o == Connected) {
		d.t.Errorf("%v after %d retries (told %d times, error %v), want %v after %d", r.Outcome, r.retries, r.told, r.err, o, retries)
	}
}

// failures are the servers' non-zero counts, as "name:reason=n".
func (d *dialing) failures() string {
	var out []string
	for _, s := range d.g.Stats().Servers {
		for _, reason := range Reasons {
			if n := s.Failures[reason]; n > 0 {
				out = append(out, fmt.Sprintf("%s:%s=%d", s.Name, reason, n))
			}
		}
	}
	return strings.Join(out, " ")
}

func at(name, address string, tier int) ServerOptions {
	a, err := ParseAddress(address)
	if err != nil {
		panic(err)
	}
	return ServerOptions{Name: name, Address: a, Tier: tier}
}

// listen starts a server, which nobody accepts on but the test.
func listen(t *testing.T, network, address string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func accept(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Error(err) // not Fatal: it would end the loop where that accepts
		return nil
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// closedPort is one that nobody listens on, and that nobody is given while
// the test runs: a bound socket holds it.
func closedPort(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", sa.(*unix.SockaddrInet4).Port)
}

// fullPort listens, but its queue is full: the kernel drops further SYNs.
func fullPort(t *testing.T) string {
	t.Helper()
	address := closedPort(t)
	ap := netip.MustParseAddrPort(address)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	sa := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 2}, Port: int(ap.Port())}
	if err := unix.Bind(fd, sa); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	address = fmt.Sprintf("127.0.0.2:%d", sa.Port)
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	for {
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1); n == 1 {
			return address
		} else if err != unix.EINTR {
			t.Fatal(err)
		}
	}
}
