package demo

import (
	"io"
	"net"
)

const maxDatagram = 65507 // RFC 768: 65535 less the headers of IPv4 and UDP

// StartPing starts a UDP server that answers each datagram with its name and
// what was in it.
func StartPing(name string) (*Backend, error) {
	b := &Backend{name: name}
	return b.start(func(address string) (net.Addr, io.Closer, error) {
		conn, err := net.ListenPacket("udp", address)
		if err != nil {
			return nil, nil, err
		}
		go pong(conn, "pong from "+name+": ")
		return conn.LocalAddr(), conn, nil
	})
}

// pong answers until conn is closed.
func pong(conn net.PacketConn, greeting string) {
	buf := append([]byte(greeting), make([]byte, maxDatagram)...)
	for {
		n, from, err := conn.ReadFrom(buf[len(greeting):])
		if err != nil {
			return // closed: what a client refuses is not told to an unconnected socket
		}
		// An answer that does not fit, or that nobody waits for, is lost, as
		// datagrams may be.
		conn.WriteTo(buf[:min(len(greeting)+n, maxDatagram)], from)
	}
}
