package upstream

import (
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"edgeproxy/internal/proxyproto"
	"edgeproxy/internal/reactor"
	"edgeproxy/internal/tlsrecord"
	"edgeproxy/tlsterm"
)

// Outcome is how a dial ended.
type Outcome uint8

const (
	Connected      Outcome = iota
	NoServer               // none is usable: down, full, or of weight 0
	ConnectFailed          // the last attempt failed
	ConnectTimeout         // the last attempt got no answer within connect_timeout
	Overloaded             // this process has no descriptor or memory left for a socket
)

const (
	maxTried = 8
	// retryPause is how long a server that has just failed is left alone when
	// there is no other: a restart takes about as long.
	retryPause = 200 * time.Millisecond
)

// Owner is told how its dial ended, once, on the loop; it may be told before
// [Dialer.Dial] returns. With Connected it owns the descriptor, its token and
// the lease of d.Server, and must take them over before returning; otherwise
// there is nothing to take. The Dial is used again afterwards.
type Owner interface {
	Dialed(d *Dial, o Outcome)
}

// Dial connects one session to a server of a group, trying others when one
// fails:
//
//	picking ──lease──▶ connecting ──▶ Connected
//	   ▲                   │ failed, lease given back
//	   └───────────────────┘ … up to retries times
//
// It is loop-owned.
type Dial struct {
	Server  *Server       // chosen last; nil: none was
	FD      int           // connected socket
	Token   reactor.Token // its registration
	Events  reactor.Events
	Err     error              // of the last attempt
	Retries int                // attempts after the first
	Took    time.Duration      // the last attempt's connect
	TLS     *tlsrecord.Conn    // re-encryption; nil: none, or Bridge
	Kernel  bool               // … by the kernel, which has the keys of TLS
	Ticket  *tlsterm.NewTicket // wants the first record from the server; nil: nothing does
	Bridge  *tlsterm.Bridge    // re-encryption that crypto/tls does; FD is the loop's end

	dialer  *Dialer
	group   *Group
	owner   Owner
	client  Client
	secure  *securing // TLS handshake under way; nil: none
	timer   reactor.Timer
	begun   int64
	leased  bool
	waiting bool // for another attempt on a server that has failed
	panics  bool
	choices []*member
	key     uint64 // of the client, for a table
	tried   [maxTried]*Server
	ntried  int
	next    *Dial
}

// Client is what servers may be told of a session's client.
type Client struct {
	Source netip.AddrPort
	Local  netip.AddrPort   // what it connected to
	SNI    string           // the server name it asks for, for [HashSNI]; "": none
	TLVs   *proxyproto.TLVs // for PROXY v2; nil: none
}

// Dialer connects the sessions of one loop.
type Dialer struct {
	Loop       *reactor.Loop
	Handshakes *tlsterm.Pool // for groups with TLS
	free       *Dial
	datagrams  Dial // what sessions of datagrams pick with
	turn       uint32
}

// Dial begins to connect to a server of g. The result is nil when the owner
// has been told already. On the loop.
func (dl *Dialer) Dial(g *Group, o Owner, client Client) *Dial {
	d := dl.free
	if d == nil {
		d = &Dial{dialer: dl}
		d.timer.Owner = d
	} else {
		dl.free = d.next
	}
	d.group, d.owner, d.client = g, o, client
	d.FD, d.Token = -1, reactor.None
	if d.attempt() {
		return nil
	}
	return d
}

// Cancel gives up: the owner is not told. A server that has accepted already
// sees a reset, not an empty session. On the loop.
func (d *Dial) Cancel() {
	if d.FD >= 0 {
		unix.SetsockoptLinger(d.FD, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	d.abandon()
	d.recycle()
}

// abandon ends the attempt under way.
func (d *Dial) abandon() {
	d.dialer.Loop.StopTimer(&d.timer)
	if d.secure != nil {
		d.Token, d.FD = reactor.None, -1
		d.secure.abandon()
		d.secure = nil
	}
	if d.Token != reactor.None {
		d.dialer.Loop.Close(d.Token)
		d.Token, d.FD = reactor.None, -1
	}
	if d.leased {
		d.leased = false
		d.Server.Release()
	}
}

func (d *Dial) recycle() {
	dl := d.dialer
	*d = Dial{dialer: dl, next: dl.free}
	d.timer.Owner = d
	dl.free = d
}

func (d *Dial) end(o Outcome) bool {
	if o == Connected {
		d.leased = false // the owner's now
	}
	d.owner.Dialed(d, o)
	d.recycle()
	return true
}

// attempt tries servers until one is being connected to (false) or the dial
// has ended (true).
func (d *Dial) attempt() bool {
	loop := d.dialer.Loop
	for {
		m := d.group.pick(d, loop.Index, loop.Now())
		if m == nil {
			return d.noneLeft()
		}
		d.Server, d.leased = m.Server, true
		d.begun = loop.Now()
		fd, errno, local := m.endpoint.Load().open(&d.group.opts, &d.dialer.turn)
		if errno == 0 || errno == unix.EINPROGRESS {
			t, err := loop.Add(fd, reactor.Stream, d)
			if err == nil {
				d.FD, d.Token = fd, t
				if errno == 0 {
					return d.connected(reactor.Writable)
				}
				loop.StartTimer(&d.timer, orDefault(d.group.opts.ConnectTimeout, DefaultConnectTimeout))
				return false
			}
			unix.Close(fd)
			errno, local = unix.ENOMEM, true
		}
		if local {
			d.abandon()
			d.Err = fmt.Errorf("opening a socket for server %q: %w", m.Name, errno)
			return d.end(Overloaded)
		}
		if d.failed(errno) {
			return d.end(outcomeOf(errno))
		}
	}
}

// noneLeft decides what to do when no untried server is usable.
func (d *Dial) noneLeft() bool {
	if d.ntried == 0 {
		if d.Err != nil {
			return d.end(ConnectFailed) // and by now there is none left at all
		}
		d.Err = fmt.Errorf("upstream %q has no usable server", d.group.opts.Name)
		return d.end(NoServer)
	}
	d.ntried = 0
	d.waiting = true
	d.dialer.Loop.StartTimer(&d.timer, retryPause)
	return false
}

// failed counts a failed attempt and reports whether it was the last.
func (d *Dial) failed(errno unix.Errno) (last bool) {
	s := d.Server
	return d.failedFor(reasonOf(errno), fmt.Errorf("connecting to server %q at %s: %w", s.Name, s.Address, errno))
}

func (d *Dial) failedFor(why Reason, err error) (last bool) {
	s := d.Server
	s.failures[why].Add(1)
	d.Err = err
	d.abandon()
	if d.Retries >= d.group.retries {
		return true
	}
	d.Retries++
	if d.ntried < maxTried {
		d.tried[d.ntried] = s
		d.ntried++
	}
	return false
}

func outcomeOf(errno unix.Errno) Outcome {
	if errno == unix.ETIMEDOUT {
		return ConnectTimeout
	}
	return ConnectFailed
}

// Ready implements [reactor.Handler] while the socket connects.
func (d *Dial) Ready(ev reactor.Events) {
	if d.secure != nil {
		d.Events |= ev // of a FIN the relay would not hear again
		d.secure.Wake()
		return
	}
	if ev&(reactor.Failed|reactor.Hangup) != 0 {
		errno := socketError(d.FD)
		if errno == 0 {
			errno = unix.ECONNRESET
		}
		d.retry(errno)
		return
	}
	if ev&reactor.Writable != 0 {
		d.connected(ev)
	}
}

// retry goes on after a failed attempt (false), or ends the dial (true).
func (d *Dial) retry(errno unix.Errno) bool {
	if d.failed(errno) {
		return d.end(outcomeOf(errno))
	}
	return d.attempt()
}

// Expired implements [reactor.Expirer].
func (d *Dial) Expired(*reactor.Timer) {
	if d.waiting {
		d.waiting = false
		d.attempt()
		return
	}
	if d.secure != nil {
		s := d.Server
		if d.failedFor(TimedOut, fmt.Errorf("TLS handshake with server %q at %s: not done within connect_timeout", s.Name, s.Address)) {
			d.end(ConnectTimeout)
			return
		}
		d.attempt()
		return
	}
	d.retry(unix.ETIMEDOUT)
}

// connected goes on with a socket that is connected to its server. It reports
// whether the dial has ended.
func (d *Dial) connected(ev reactor.Events) bool {
	if d.group.opts.ProxyProtocol != ProxyNone {
		if errno := d.sendHeader(); errno != 0 {
			return d.retry(errno)
		}
	}
	d.Events = ev
	if d.group.tls != nil {
		d.secure = d.startTLS()
		return false
	}
	return d.established()
}

// established hands the connection to the owner.
func (d *Dial) established() bool {
	loop := d.dialer.Loop
	loop.StopTimer(&d.timer)
	d.Took = time.Duration(loop.NowExact() - d.begun)
	d.group.connect.Observe(d.Took)
	d.Server.sessions.Add(1)
	d.Err = nil
	return d.end(Connected)
}

// sendHeader sends the PROXY header. A fresh socket takes it whole; if one
// does not, the server is of no use.
func (d *Dial) sendHeader() unix.Errno {
	var buf [256]byte
	h, c := buf[:0], &d.client
	switch {
	case d.group.opts.ProxyProtocol == ProxyV1:
		h = proxyproto.AppendV1(h, c.Source, c.Local)
	case c.TLVs != nil:
		h = proxyproto.AppendV2TLVs(h, c.Source, c.Local, c.TLVs)
	default:
		h = proxyproto.AppendV2(h, c.Source, c.Local)
	}
	n, err := unix.SendmsgN(d.FD, h, nil, nil, unix.MSG_NOSIGNAL)
	if err != nil {
		if errno, ok := err.(unix.Errno); ok {
			return errno
		}
		return unix.EIO
	}
	if n != len(h) {
		return unix.EIO
	}
	return 0
}
