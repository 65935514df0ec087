package traffic

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
)

// A request of UDP is one datagram or a train of them, and so is its answer,
// which the backend sends once it has the whole train. Nothing is sent again: a
// train that misses one datagram is lost.

const (
	datagramMagic  = 0x65706475
	datagramHeader = 24
	// A train fits into a word of bits, and into one send with UDP_SEGMENT.
	maxTrain     = 64
	maxTrainSize = 65507

	flagAnswer = 1 << 0 // from the backend
	flagPlain  = 1 << 1 // the answer is to be sent as single datagrams
)

// datagram is the header of one; filler from the pattern follows.
type datagram struct {
	client  uint32
	seq     uint32 // of this client's requests
	process uint16 // whose client it is
	index   uint16 // in its train
	count   uint16 // datagrams of the train
	answers uint16 // datagrams of the answer
	answer  uint16 // bytes of each of them
	flags   uint16
}

// filler is what follows the header of a datagram of n bytes.
func (d *datagram) filler(n int) []byte {
	offset := (d.client*31 + d.seq*7 + uint32(d.flags&flagAnswer)) % patternPeriod
	return patternAt(offset, int64(d.index)*int64(n))[:n-datagramHeader]
}

// put writes the datagram over b.
func (d *datagram) put(b []byte) {
	binary.BigEndian.PutUint32(b, datagramMagic)
	binary.BigEndian.PutUint32(b[4:], d.client)
	binary.BigEndian.PutUint32(b[8:], d.seq)
	binary.BigEndian.PutUint16(b[12:], d.process)
	binary.BigEndian.PutUint16(b[14:], d.index)
	binary.BigEndian.PutUint16(b[16:], d.count)
	binary.BigEndian.PutUint16(b[18:], d.answers)
	binary.BigEndian.PutUint16(b[20:], d.answer)
	binary.BigEndian.PutUint16(b[22:], d.flags)
	copy(b[datagramHeader:], d.filler(len(b)))
}

// parseDatagram reads a header and compares the filler: of trains, that of
// every sixteenth datagram.
func parseDatagram(b []byte) (d datagram, err error) {
	if len(b) < datagramHeader {
		return d, fmt.Errorf("a datagram of %d bytes", len(b))
	}
	if m := binary.BigEndian.Uint32(b); m != datagramMagic {
		return d, fmt.Errorf("a datagram starts with %#x, not %#x", m, datagramMagic)
	}
	d = datagram{
		client:  binary.BigEndian.Uint32(b[4:]),
		seq:     binary.BigEndian.Uint32(b[8:]),
		process: binary.BigEndian.Uint16(b[12:]),
		index:   binary.BigEndian.Uint16(b[14:]),
		count:   binary.BigEndian.Uint16(b[16:]),
		answers: binary.BigEndian.Uint16(b[18:]),
		answer:  binary.BigEndian.Uint16(b[20:]),
		flags:   binary.BigEndian.Uint16(b[22:]),
	}
	switch {
	case d.count == 0 || d.count > maxTrain || d.index >= d.count:
		return d, fmt.Errorf("a datagram claims to be number %d of %d", d.index, d.count)
	case d.flags > flagAnswer|flagPlain:
		return d, fmt.Errorf("a datagram claims flags %#x", d.flags)
	case d.flags&flagAnswer == 0 && !fits(int(d.answers), int(d.answer)):
		return d, fmt.Errorf("a datagram asks for %d of %d bytes", d.answers, d.answer)
	case d.index%16 == 0 && !bytes.Equal(b[datagramHeader:], d.filler(len(b))):
		return d, errors.New("a datagram arrived with other bytes than were sent")
	}
	return d, nil
}

// fits says whether so many datagrams of so many bytes are a train.
func fits(count, size int) bool {
	return count > 0 && count <= maxTrain && size >= datagramHeader && count*size <= maxTrainSize
}

// trainOf is how total bytes are sent in datagrams of at most segment: how many
// there are, and of what size. Segment zero: in one.
func trainOf(total int64, segment int) (count, size int, err error) {
	count, size = 1, int(total)
	if segment > 0 && total > int64(segment) {
		count, size = int(total)/segment, segment
	}
	if !fits(count, size) || int64(count)*int64(size) != total {
		return 0, 0, fmt.Errorf("%d bytes in datagrams of %d are no train", total, segment)
	}
	return count, size, nil
}

// whole is the set of the datagrams of a train.
func whole(count uint16) uint64 { return 1<<count - 1 }

// AskDatagram makes one request over a connected UDP socket.
func AskDatagram(c net.Conn) error {
	request := make([]byte, 100)
	asked := datagram{client: 1, seq: 1, count: 1, answers: 1, answer: 100}
	asked.put(request)
	if _, err := c.Write(request); err != nil {
		return err
	}
	answer := make([]byte, 200)
	n, err := c.Read(answer)
	if err != nil {
		return err
	}
	got, err := parseDatagram(answer[:n])
	if err == nil && (n != 100 || got.flags != flagAnswer || got.client != asked.client || got.seq != asked.seq) {
		err = fmt.Errorf("another answer than was asked for: %d bytes, %+v", n, got)
	}
	return err
}
