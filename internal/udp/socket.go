package udp

import "golang.org/x/sys/unix"

// Socket is what a [Sender] sends through, and what it has learned about it.
type Socket struct {
	FD int
	V6 bool // an IPv6 socket, dual-stack or not
	// NoSegments: datagrams go one by one, since this kernel or this socket
	// refuses UDP_SEGMENT. To be set in advance where [Probe] says so: kernels
	// before 4.18 do not refuse it, they send a train as one datagram.
	NoSegments bool
	// SegmentMax, if not 0: trains of larger datagrams go one by one, since the
	// path's MTU is smaller and UDP_SEGMENT never fragments. Learned by
	// connected sockets; peers of an unconnected one have paths of their own.
	SegmentMax int

	refusals uint8 // of UDP_SEGMENT in a row, to peers of an unconnected socket
}

// refusalsInARow is when an unconnected socket stops trying: one peer's path
// may refuse (IPsec, an interface without checksums) what others take.
const refusalsInARow = 16

// Bytes before a datagram's payload, RFC 768 behind RFC 791 or RFC 8200.
const (
	headersIPv4 = 20 + 8
	headersIPv6 = 40 + 8
)

// refused notes that UDP_SEGMENT was refused for datagrams of so many bytes,
// which then went well one by one.
func (s *Socket) refused(errno unix.Errno, size int, connected bool) {
	if !connected {
		// EMSGSIZE says nothing about other peers, nor about smaller datagrams.
		if errno != unix.EMSGSIZE {
			if s.refusals++; s.refusals >= refusalsInARow {
				s.NoSegments = true
			}
		}
		return
	}
	// Linux before 6.9 says EINVAL for a segment that is larger than the MTU, too.
	if errno == unix.EMSGSIZE || errno == unix.EINVAL {
		if room := s.room(); 0 < room && room < size {
			s.SegmentMax = room
			return
		}
		if errno == unix.EMSGSIZE {
			s.SegmentMax = size - 1
			return
		}
	}
	s.NoSegments = true
}

// room is the longest datagram that a connected socket's path takes in one
// piece; 0: not known.
func (s *Socket) room() int {
	level, option, headers := unix.IPPROTO_IP, unix.IP_MTU, headersIPv4
	if s.V6 {
		level, option, headers = unix.IPPROTO_IPV6, unix.IPV6_MTU, headersIPv6
	}
	mtu, err := unix.GetsockoptInt(s.FD, level, option)
	if err != nil {
		return 0
	}
	return mtu - headers
}
