package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The tests in the files netns_*_test.go need what the loopback does not have:
// several addresses, an MTU, link-local scopes, hosts that go away. Each has
// networks of its own.

// namespace is a network of its own, which is that of one thread. It has no
// name: it ends with the last of its sockets and processes, however the tests
// end.
type namespace struct {
	t    testing.TB
	path string
	work chan func()
}

// newNamespace makes a network that has only a loopback.
func newNamespace(t testing.TB) *namespace {
	t.Helper()
	need(t, "ip")
	n := &namespace{t: t, work: make(chan func())}
	made := make(chan error)
	go n.thread(made)
	err := <-made
	t.Cleanup(func() { close(n.work) })
	if errors.Is(err, unix.EPERM) {
		missing(t, "the right to make network namespaces (CAP_SYS_ADMIN)")
	}
	if err != nil {
		t.Fatal(err)
	}
	n.ip("link set lo up")
	// Addresses are used as soon as they are there.
	n.sysctl("ipv6/conf/default/accept_dad", "0")
	n.sysctl("ipv6/conf/all/accept_dad", "0")
	return n
}

// thread is the one that is in the namespace. It returns to where it was: a
// thread that ends takes the programs with it that it has ever started, also
// those of other tests (PR_SET_PDEATHSIG).
func (n *namespace) thread(made chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	n.path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
	home, err := unix.Open(n.path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.Unshare(unix.CLONE_NEWNET)
	}
	made <- err
	if err != nil {
		unix.Close(home)
		return
	}
	for f := range n.work {
		f()
	}
	if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
		panic(err)
	}
	unix.Close(home)
}

// do runs f on the thread of the namespace: sockets that it makes and programs
// that it starts are inside.
func (n *namespace) do(f func() error) error {
	done := make(chan error)
	n.work <- func() { done <- f() }
	return <-done
}

// start is for [WithStart].
func (n *namespace) start(cmd *exec.Cmd) error { return n.do(cmd.Start) }

func (n *namespace) sysctl(name, value string) {
	n.t.Helper()
	if err := n.do(func() error { return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0) }); err != nil {
		n.t.Fatal(err)
	}
}

// ip runs ip(8) with arguments that are separated by spaces.
func (n *namespace) ip(args string) string {
	n.t.Helper()
	return n.run("ip", strings.Fields(args)...)
}

// run runs a program to its end and returns its output.
func (n *namespace) run(exe string, args ...string) string {
	n.t.Helper()
	out, err := n.try(exe, args...)
	if err != nil {
		n.t.Fatalf("%s %s: %v\n%s", exe, strings.Join(args, " "), err, out)
	}
	return out
}

func (n *namespace) try(exe string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, exe, args...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := n.start(cmd); err != nil {
		return "", err
	}
	err := cmd.Wait()
	return out.String(), err
}

// daemon is a program that runs until it is stopped.
type daemon struct {
	t      testing.TB
	cmd    *exec.Cmd
	log    string
	exited chan struct{}
}

// daemon starts a program and stops it at the latest when the test ends.
func (n *namespace) daemon(exe string, args ...string) *daemon {
	n.t.Helper()
	d := &daemon{t: n.t, cmd: exec.Command(exe, args...), log: filepath.Join(shortTempDir(n.t), "log"), exited: make(chan struct{})}
	out, err := os.Create(d.log)
	if err != nil {
		n.t.Fatal(err)
	}
	defer out.Close()
	d.cmd.Dir = "/"
	d.cmd.Stdout, d.cmd.Stderr = out, out
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := n.start(d.cmd); err != nil {
		n.t.Fatal(err)
	}
	go func() {
		d.cmd.Wait()
		close(d.exited)
	}()
	n.t.Cleanup(func() {
		d.stop()
		if n.t.Failed() {
			n.t.Logf("%s:\n%s", exe, tail(d.output(), 3000))
		}
	})
	return d
}

func (d *daemon) stop() {
	d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.exited:
	case <-time.After(patience):
		d.cmd.Process.Kill()
		<-d.exited
	}
}

func (d *daemon) output() string {
	b, _ := os.ReadFile(d.log)
	return string(b)
}

// await waits until the program has written something.
func (d *daemon) await(what string) {
	d.t.Helper()
	eventually(d.t, func() bool {
		select {
		case <-d.exited:
			d.t.Fatalf("%v: %v\n%s", d.cmd.Args, d.cmd.ProcessState, d.output())
		default:
		}
		return strings.Contains(d.output(), what)
	}, func() string { return fmt.Sprintf("%q in the output of %v:\n%s", what, d.cmd.Args, d.output()) })
}

// udp opens a socket that is closed with the test. An address without a port
// takes any.
func (n *namespace) udp(addr string) *net.UDPConn {
	n.t.Helper()
	if _, err := netip.ParseAddr(addr); err == nil {
		addr = net.JoinHostPort(addr, "0")
	}
	a, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		n.t.Fatal(err)
	}
	var c *net.UDPConn
	err = n.do(func() error {
		c, err = net.ListenUDP("udp", a)
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	c.SetReadBuffer(4 << 20)
	n.t.Cleanup(func() { c.Close() })
	return c
}

// echo answers each datagram with a prefix and itself, until the test ends.
// The socket is for a test that wants the server to end earlier.
func (n *namespace) echo(addr, prefix string) *net.UDPConn {
	n.t.Helper()
	c := n.udp(addr)
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 1<<16)
		for head := copy(buf, prefix); ; {
			size, from, err := c.ReadFromUDPAddrPort(buf[head:])
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				c.WriteToUDPAddrPort(buf[:head+size], from)
			}
		}
	})
	n.t.Cleanup(func() {
		c.Close()
		wg.Wait()
	})
	return c
}

// wire connects two namespaces by a pair of interfaces, each with a name in
// its namespace, and gives them addresses, "10.1.0.1/24 fd01::1/64".
func wire(a *namespace, nameA, addrsA string, b *namespace, nameB, addrsB string) {
	a.t.Helper()
	a.ip(fmt.Sprintf("link add %s type veth peer name %s netns %s", nameA, nameB, b.path))
	for _, end := range []struct {
		n           *namespace
		name, addrs string
	}{{a, nameA, addrsA}, {b, nameB, addrsB}} {
		for addr := range strings.FieldsSeq(end.addrs) {
			end.n.ip(fmt.Sprintf("addr add %s dev %s", addr, end.name))
		}
		end.n.ip(fmt.Sprintf("link set %s up", end.name))
	}
	// IPv6 takes an address into use some time after its interface is up.
	for _, n := range []*namespace{a, b} {
		eventually(a.t, func() bool { return n.ip("-6 addr show tentative") == "" }, func() string { return "addresses in use\n" + n.ip("addr") })
	}
}

// threeHosts is what most of these tests need: a client, the proxy and a
// server host, each in a network of its own, and two wires.
type threeHosts struct {
	client, edge, server *namespace
}

// Addresses of [threeHosts]: .1 and ::1 are those of the proxy.
const (
	clientEdge4, client4 = "10.1.0.1", "10.1.0.2"
	clientEdge6, client6 = "fd01::1", "fd01::2"
	serverEdge4, server4 = "10.2.0.1", "10.2.0.2"
	serverEdge6, server6 = "fd02::1", "fd02::2"
)

func newThreeHosts(t testing.TB) *threeHosts {
	t.Helper()
	h := &threeHosts{client: newNamespace(t), edge: newNamespace(t), server: newNamespace(t)}
	wire(h.client, "edge", client4+"/24 "+client6+"/64", h.edge, "clients", clientEdge4+"/24 "+clientEdge6+"/64")
	wire(h.server, "edge", server4+"/24 "+server6+"/64", h.edge, "servers", serverEdge4+"/24 "+serverEdge6+"/64")
	return h
}

// udpListener is [oneUDP] at several addresses.
func udpListener(listener, upstream string, addresses []string, servers ...string) string {
	return fmt.Sprintf("listener \"udp\" \"edge\" {\n address = [\"%s\"]\n upstream = upstream.app\n %s\n}\n", strings.Join(addresses, `", "`), listener) +
		udpUpstream(upstream, servers...)
}

// sendAndAwait sends a datagram and returns the answer and where it came from. A
// datagram that gets none is not sent again: what is lost is to be seen.
func sendAndAwait(c *net.UDPConn, to netip.AddrPort, payload []byte, within time.Duration) (answer []byte, from netip.AddrPort, err error) {
	if _, err := c.WriteToUDPAddrPort(payload, to); err != nil {
		return nil, from, err
	}
	c.SetReadDeadline(time.Now().Add(within))
	buf := make([]byte, 1<<16)
	n, from, err := c.ReadFromUDPAddrPort(buf)
	return buf[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), err
}
