package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"time"

	"edgeproxy/internal/proxyproto"
)

// maxRead is how much of an answer is looked at, for a header and for a body
// alike.
const maxRead = 64 << 10

// longAgo is a deadline that ends reading and writing at once.
var longAgo = time.Unix(1, 0)

// exchange is one probe under way.
type exchange struct {
	opts  *Options
	conn  net.Conn
	doing string // completes "timed out after 2s …"
}

// probe runs one check. ctx ends it, by the timeout or because the watch was
// stopped. The error says in words what was wrong.
func probe(ctx context.Context, o *Options, t Target) error {
	network, address, err := o.destination(t)
	if err != nil {
		return err
	}
	x := &exchange{opts: o, doing: "connecting"}
	err = x.run(ctx, network, address, o.hostHeader(t, address))
	if err == nil {
		return nil
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("timed out after %v %s", o.Timeout, x.doing)
	}
	// "dial tcp 10.0.0.1:80: " only repeats what the server is known by.
	if op := (*net.OpError)(nil); errors.As(err, &op) && op.Err != nil {
		if x.doing == "connecting" {
			return op.Err
		}
		return fmt.Errorf("%w while %s", op.Err, x.doing)
	}
	return err
}

// destination applies the options that override the server's address.
func (o *Options) destination(t Target) (network, address string, err error) {
	network = "tcp"
	if o.Kind == UDP {
		network = "udp"
	}
	if t.Network == "unix" {
		switch {
		case o.Address != "" && o.Port != 0:
			return network, net.JoinHostPort(o.Address, strconv.Itoa(o.Port)), nil
		case o.Address != "" || o.Port != 0:
			return "", "", errors.New("the server is a unix socket; a check that goes elsewhere needs both an address and a port")
		case o.Kind == UDP:
			return "", "", errors.New("the server is a unix socket; a udp check of it needs an address and a port")
		}
		return t.Network, t.Address, nil
	}
	host, port, err := net.SplitHostPort(t.Address)
	if err != nil {
		return "", "", err
	}
	if o.Address != "" {
		host = o.Address
	}
	if o.Port != 0 {
		port = strconv.Itoa(o.Port)
	}
	return network, net.JoinHostPort(host, port), nil
}

// hostHeader is the value of the HTTP Host header.
func (o *Options) hostHeader(t Target, probed string) string {
	switch {
	case o.Host != "":
		return o.Host
	case o.Address != "" || t.Host == "":
		return probed
	case o.Port != 0:
		if host, _, err := net.SplitHostPort(t.Host); err == nil {
			return net.JoinHostPort(host, strconv.Itoa(o.Port))
		}
	}
	return t.Host
}

func (x *exchange) run(ctx context.Context, network, address, host string) error {
	silent := x.opts.Kind == TCP && len(x.opts.Send) == 0 && len(x.opts.Expect) == 0 && x.opts.ProxyProtocol == ProxyNone
	d := net.Dialer{KeepAlive: -1, FallbackDelay: -1}
	switch {
	case network == "udp":
		d.Control = reportICMP
	case silent && network == "tcp":
		d.Control = delayACK
	}
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if silent {
		if tcp, ok := conn.(*net.TCPConn); ok {
			tcp.SetLinger(0)
		}
		return nil
	}
	x.conn = conn
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(longAgo) })()
	if x.opts.Kind == UDP {
		return x.udp(ctx)
	}
	if err := x.proxyHeader(); err != nil {
		return err
	}
	if x.opts.Kind == HTTP {
		return x.http(host)
	}
	return x.tcp()
}

// proxyHeader says that what follows is on nobody's behalf. Version 1 cannot:
// it names the ends of this very connection, for "UNKNOWN", which was once
// meant for health checks, is refused by some servers (PROXY protocol, section
// 2.1). A unix socket leaves no choice.
func (x *exchange) proxyHeader() error {
	var header []byte
	switch x.opts.ProxyProtocol {
	case ProxyV1:
		header = proxyproto.AppendV1(nil, addrPort(x.conn.LocalAddr()), addrPort(x.conn.RemoteAddr()))
	case ProxyV2:
		header = proxyproto.AppendV2Local(nil)
	default:
		return nil
	}
	x.doing = "sending the PROXY header"
	_, err := x.conn.Write(header)
	return err
}

func addrPort(a net.Addr) netip.AddrPort {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.AddrPort()
	}
	return netip.AddrPort{}
}

// delayACK makes the kernel keep back the last packet of the handshake for a
// moment, which is enough to learn that the server has answered. Closing with
// SO_LINGER 0 then sends a reset instead of it: the connection is gone before
// the server's application has got it from accept, so that it has nothing to
// log, be it "connection reset" or "client sent no request", and none of the
// thousands of probes leaves a TIME_WAIT behind on this side.
func delayACK(_, _ string, c syscall.RawConn) error {
	// Not vital: at worst the server sees a connection that is reset at once.
	return c.Control(func(fd uintptr) {
		syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_QUICKACK, 0)
	})
}

// tcp sends and expects, and closes in the ordinary way: the server has been
// spoken to, and a reset might destroy what it has not read yet.
func (x *exchange) tcp() error {
	if len(x.opts.Send) > 0 {
		x.doing = "sending"
		if _, err := x.conn.Write(x.opts.Send); err != nil {
			return err
		}
	}
	if len(x.opts.Expect) == 0 {
		return nil
	}
	x.doing = "waiting for the response"
	found, got, err := search(x.conn, x.opts.Expect)
	if found || err != nil && len(got) == 0 && err != io.EOF {
		return err
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("timed out after %v waiting for %s; got %s", x.opts.Timeout, quote(x.opts.Expect), quote(got))
	case err == io.EOF && len(got) == 0:
		return errors.New("connection closed without a response")
	case err == io.EOF:
		return fmt.Errorf("response does not contain %s; got %s", quote(x.opts.Expect), quote(got))
	case err != nil:
		return err
	}
	return fmt.Errorf("the first %d KiB of the response do not contain %s", maxRead>>10, quote(x.opts.Expect))
}

// search reads until want has come, and no more than maxRead bytes. Got is
// what has been read, not all of it if found.
func search(r io.Reader, want []byte) (found bool, got []byte, err error) {
	got = make([]byte, 0, 512)
	from := 0 // where an occurrence may begin that has not been looked for
	for len(got) < maxRead {
		if len(got) == cap(got) {
			got = append(got, 0)[:len(got)]
		}
		n, err := r.Read(got[len(got):min(cap(got), maxRead)])
		got = got[:len(got)+n]
		if bytes.Contains(got[from:], want) {
			return true, got, nil
		}
		from = max(0, len(got)-len(want)+1)
		if err != nil {
			return false, got, err
		}
	}
	return false, got, nil
}

const maxQuote = 64

// quote shows the beginning of what may be long and binary. Each byte is shown
// for itself: an id that happens to be valid UTF-8 is to be recognised.
func quote(b []byte) string {
	end := `"`
	if len(b) > maxQuote {
		b, end = b[:maxQuote], `"…`
	}
	q := []byte{'"'}
	for i := range b {
		one := strconv.Quote(string(b[i : i+1]))
		q = append(q, one[1:len(one)-1]...)
	}
	return string(q) + end
}
