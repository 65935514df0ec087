package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// socketMode is that of the unix socket: its user and group may use the API.
const socketMode = 0o660

// binding is a listening socket.
type binding struct {
	net.Listener
	path string // of a unix socket in the file system
	info fs.FileInfo
}

// bind opens an address. It may overlap with that of old, which goes on
// listening: 0.0.0.0:9901 while 127.0.0.1:9901 is still open.
func bind(address string, old *binding) (*binding, error) {
	var b *binding
	var err error
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		b, err = bindUnix(path)
	} else {
		b, err = bindTCP(address, old)
	}
	if err != nil {
		return nil, fmt.Errorf("admin address %q: %w", address, err)
	}
	return b, nil
}

func bindTCP(address string, old *binding) (*binding, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(context.Background(), "tcp", address)
	if errors.Is(err, unix.EADDRINUSE) && old != nil && old.path == "" {
		l, err = bindBeside(address, old)
	}
	if err == nil {
		return &binding{Listener: l}, nil
	}
	// The address is in the message already.
	if e, ok := errors.AsType[*os.SyscallError](err); ok {
		err = e.Err
	}
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		err = fmt.Errorf("%w; stop the program that listens there (\"ss -ltnp\" names it), or choose another port", err)
	case errors.Is(err, unix.EACCES):
		err = fmt.Errorf("%w; choose a port from 1024, run as root, or grant CAP_NET_BIND_SERVICE", err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		err = fmt.Errorf("%w; this machine does not have it (\"ip address\" lists those it has)", err)
	}
	return nil, err
}

// bindBeside binds although old is in the way, by making both sockets share
// their port for a moment. A second daemon started by mistake is still refused,
// as it does not ask for sharing at first.
func bindBeside(address string, old *binding) (net.Listener, error) {
	conn, ok := old.Listener.(syscall.Conn)
	if !ok {
		return nil, unix.EADDRINUSE
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	if err := share(raw, true); err != nil {
		return nil, err
	}
	defer share(raw, false)
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error { return share(raw, true) }}
	l, err := lc.Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, err
	}
	if raw, err = l.(syscall.Conn).SyscallConn(); err == nil {
		err = share(raw, false)
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func share(raw syscall.RawConn, on bool) error {
	value := 0
	if on {
		value = 1
	}
	var err error
	if e := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, value)
	}); e != nil {
		return e
	}
	return err
}

func bindUnix(path string) (*binding, error) {
	abstract := strings.HasPrefix(path, "@")
	if !abstract {
		if err := removeStale(path); err != nil {
			return nil, err
		}
	}
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		if e := raw.Control(func(fd uintptr) {
			// The file bind(2) makes gets this mode, less the umask, so that
			// it is at no time open to more than it should be.
			err = unix.Fchmod(int(fd), socketMode)
		}); e != nil {
			return e
		}
		return err
	}}
	l, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		if e, ok := errors.AsType[*os.SyscallError](err); ok {
			err = e.Err
		}
		switch {
		case errors.Is(err, fs.ErrNotExist):
			err = fmt.Errorf("%w; create the directory %s, writable for the user edgeproxy runs as", err, filepath.Dir(path))
		case errors.Is(err, fs.ErrPermission):
			err = fmt.Errorf("%w; make the directory %s writable for the user edgeproxy runs as", err, filepath.Dir(path))
		}
		return nil, err
	}
	if abstract {
		return &binding{Listener: l}, nil
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // unlink looks whose file it is
	b := &binding{Listener: l, path: path}
	if err = os.Chmod(path, socketMode); err == nil {
		b.info, err = os.Lstat(path)
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return b, nil
}

// removeStale removes a socket file that nobody listens on any more.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("there is a file of that name that is no socket; remove it, or choose another path")
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return errors.New("another process listens there; stop it, or choose another path")
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the socket an earlier process has left: %w", err)
	}
	return nil
}

// name returns the address really bound, in the form of the configuration.
func (b *binding) name() string {
	if b.Addr().Network() == "unix" {
		return "unix:" + b.Addr().String()
	}
	return b.Addr().String()
}

// intact reports whether clients can still find the socket.
func (b *binding) intact() bool {
	if b.path == "" {
		return true
	}
	info, err := os.Lstat(b.path)
	return err == nil && os.SameFile(info, b.info)
}

// unlink removes the socket's file, unless another has taken its place.
func (b *binding) unlink() {
	if b.path != "" && b.intact() {
		os.Remove(b.path)
	}
}

// bounded accepts no more than so many connections at one time; others wait.
type bounded struct {
	net.Listener
	slots  chan struct{}
	closed chan struct{}
	close  func()
}

func newBounded(l net.Listener, n int) *bounded {
	b := &bounded{Listener: l, slots: make(chan struct{}, n), closed: make(chan struct{})}
	b.close = sync.OnceFunc(func() { close(b.closed) })
	return b
}

func (b *bounded) Accept() (net.Conn, error) {
	select {
	case b.slots <- struct{}{}:
	case <-b.closed:
		return nil, net.ErrClosed
	}
	c, err := b.Listener.Accept()
	if err != nil {
		<-b.slots
		return nil, err
	}
	return &boundedConn{c, sync.OnceFunc(func() { <-b.slots })}, nil
}

func (b *bounded) Close() error {
	b.close()
	return b.Listener.Close()
}

type boundedConn struct {
	net.Conn
	release func()
}

func (c *boundedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}
