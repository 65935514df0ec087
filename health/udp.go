package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"edgeproxy/internal/proxyproto"
)

const (
	// attempts is how many times the datagram of a probe is sent, spread over
	// its timeout: one that is lost on the way says nothing about the server.
	attempts = 3

	// maxAnswers is how many datagrams are looked at for the expected bytes.
	maxAnswers = 64

	// maxDatagram is the length of the longest UDP datagram, its header included
	// (RFC 768).
	maxDatagram = 1<<16 - 1
)

var datagrams = sync.Pool{New: func() any { return new([maxDatagram]byte) }}

// reportICMP asks for errors that are not reported of UDP otherwise: that no
// router knows the way to the server's host, or that the host does not answer
// ARP (ip(7), IP_RECVERR). A closed port is reported in any case.
func reportICMP(network, _ string, c syscall.RawConn) error {
	// Not vital: at worst such a server is found out by the timeout.
	return c.Control(func(fd uintptr) {
		if network == "udp6" {
			syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IPV6, syscall.IPV6_RECVERR, 1)
			return
		}
		syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, syscall.IP_RECVERR, 1)
	})
}

// udp sends until there is an answer, or the timeout's end, which is a success
// if nothing is expected: no error has come, which is all that can be known.
func (x *exchange) udp(ctx context.Context) error {
	if x.conn.LocalAddr().String() == x.conn.RemoteAddr().String() {
		// The port was free, and has been taken for this very socket, which
		// would go on to answer itself.
		return refused(syscall.ECONNREFUSED)
	}
	datagram := x.opts.Send
	if x.opts.ProxyProtocol == ProxyV1 {
		return errors.New(`version 1 of the PROXY protocol knows TCP only; set proxy_protocol = "v2" in the udp check, or leave it out`)
	}
	if x.opts.ProxyProtocol == ProxyV2 {
		datagram = append(proxyproto.AppendV2Local(nil), datagram...)
	}
	buffer := datagrams.Get().(*[maxDatagram]byte)
	defer datagrams.Put(buffer)
	var last []byte // of the answers without what is expected, the beginning
	answers := 0
	for sent := 1; sent <= attempts; sent++ {
		x.doing = "sending"
		if _, err := x.conn.Write(datagram); err != nil {
			return refused(err) // of an earlier datagram, maybe
		}
		x.doing = "waiting for the response"
		if sent > 1 {
			x.doing += fmt.Sprintf(" to %d datagrams", sent)
		}
		x.waitUntil(ctx, sent)
		for {
			n, err := x.conn.Read(buffer[:])
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if errors.Is(err, syscall.EMSGSIZE) {
				continue // lost; the kernel has learned the path's MTU, and makes fragments from now on
			}
			if err != nil {
				return refused(err)
			}
			if bytes.Contains(buffer[:n], x.opts.Expect) {
				return nil
			}
			last = append(last[:0], buffer[:min(n, maxQuote+1)]...)
			if answers++; answers == maxAnswers {
				return fmt.Errorf("none of %d datagrams contains %s; got %s", answers, quote(x.opts.Expect), quote(last))
			}
		}
		if ctx.Err() != nil {
			break
		}
	}
	switch err := ctx.Err(); {
	case !errors.Is(err, context.DeadlineExceeded):
		return err
	case len(x.opts.Expect) == 0:
		return nil
	case answers == 0:
		return err
	}
	return fmt.Errorf("timed out after %v waiting for %s; got %s", x.opts.Timeout, quote(x.opts.Expect), quote(last))
}

// waitUntil limits the wait for an answer to what has been sent so often. The
// last wait is as long as ctx.
func (x *exchange) waitUntil(ctx context.Context, sent int) {
	var end time.Time
	if sent < attempts {
		end = time.Now().Add(x.opts.Timeout / attempts)
	}
	x.conn.SetReadDeadline(end)
	if ctx.Err() != nil {
		x.conn.SetReadDeadline(longAgo) // may have been overwritten just now
	}
}

// refused says what "connection refused" means where there is no connection.
func refused(err error) error {
	if errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%w: nothing listens on the server's UDP port, or a firewall rejects it (ICMP port unreachable)", syscall.ECONNREFUSED)
	}
	return err
}
