package peer

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	datagramIdle = 30 * time.Second
	// The longest datagram there is.
	datagramSize = 65507
	// The same as the other peers' listening sockets.
	datagramBuffer = 4 << 20
)

// datagrams is the other proxy one writes in Go in ten minutes: one goroutine
// reads what clients send, and one for each session what its server answers.
type datagrams struct {
	*net.UDPConn
	server netip.AddrPort

	mu       sync.Mutex
	sessions map[netip.AddrPort]*datagramSession
}

type datagramSession struct {
	*net.UDPConn
	last atomic.Int64 // when the client sent, Unix nanoseconds
}

func listenDatagrams(address string) (*datagrams, error) {
	at, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		return nil, err
	}
	c, err := net.ListenUDP("udp", at)
	if err != nil {
		return nil, err
	}
	return &datagrams{UDPConn: c, sessions: map[netip.AddrPort]*datagramSession{}},
		errors.Join(c.SetReadBuffer(datagramBuffer), c.SetWriteBuffer(datagramBuffer))
}

func (d *datagrams) serve(servers []string) error {
	var err error
	if d.server, err = netip.ParseAddrPort(servers[rand.IntN(len(servers))]); err != nil {
		return err
	}
	buf := make([]byte, datagramSize)
	for {
		n, client, err := d.ReadFromUDPAddrPort(buf)
		if err != nil {
			return err
		}
		s, err := d.session(client)
		if err != nil {
			// No descriptors, in a flood: a line for each would be one, too.
			continue
		}
		s.last.Store(time.Now().UnixNano())
		s.Write(buf[:n])
	}
}

func (d *datagrams) session(client netip.AddrPort) (*datagramSession, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := d.sessions[client]; s != nil {
		return s, nil
	}
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(d.server))
	if err != nil {
		return nil, err
	}
	s := &datagramSession{UDPConn: c}
	d.sessions[client] = s
	go d.answer(s, client)
	return s, nil
}

// answer relays what the server says until neither side has said anything for a
// while.
func (d *datagrams) answer(s *datagramSession, client netip.AddrPort) {
	defer func() {
		d.mu.Lock()
		delete(d.sessions, client)
		d.mu.Unlock()
		s.Close()
	}()
	buf := make([]byte, datagramSize)
	for {
		s.SetReadDeadline(time.Now().Add(datagramIdle))
		n, err := s.Read(buf)
		switch {
		case err == nil:
			d.WriteToUDPAddrPort(buf[:n], client)
		case !errors.Is(err, os.ErrDeadlineExceeded):
			fmt.Fprintln(os.Stderr, err)
			return
		case time.Since(time.Unix(0, s.last.Load())) >= datagramIdle:
			return
		}
	}
}
