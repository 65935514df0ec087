package traffic

import (
	"log"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// datagramBackend is one thread of the backend that answers UDP.
type datagramBackend struct {
	*poller
	fd         int32
	in         *inbox
	out        *outbox
	trains     map[trainKey]*train
	complaints int
}

type trainKey struct {
	process uint16
	client  uint32
}

// train is what has come of a request of several datagrams.
type train struct {
	seq uint32
	got uint64
}

const tooManyComplaints = 20

func newDatagramBackend(address netip.AddrPort) (*datagramBackend, error) {
	fd, err := datagramSocket(&unix.SockaddrInet4{Port: int(address.Port()), Addr: address.Addr().As4()})
	if err != nil {
		return nil, err
	}
	p, err := newPoller()
	if err != nil {
		return nil, err
	}
	b := &datagramBackend{poller: p, fd: fd, in: newInbox(), out: newOutbox(fd), trains: map[trainKey]*train{}}
	return b, p.add(fd, unix.EPOLLIN, 0)
}

func (b *datagramBackend) run() error {
	for {
		if _, err := b.wait(-1); err != nil {
			return err
		}
		for {
			e := b.in.receive(b.fd)
			if e == syscall.EAGAIN {
				break
			}
			if e != 0 {
				return e
			}
			for i := range b.in.n {
				from, _, data, segment := b.in.message(i)
				for len(data) > 0 {
					one := data[:min(segment, len(data))]
					data = data[len(one):]
					if err := b.take(from, one); err != nil {
						return err
					}
				}
			}
			if err := b.out.flush(); err != nil {
				return err
			}
		}
	}
}

// take handles one datagram. The client notices what is wrong by its getting no
// answer.
func (b *datagramBackend) take(from *unix.RawSockaddrInet4, data []byte) error {
	d, err := parseDatagram(data)
	if err != nil {
		if b.complaints++; b.complaints <= tooManyComplaints {
			log.Print("backend: ", err)
		}
		return nil
	}
	if d.count > 1 && !b.whole(&d) {
		return nil
	}
	return b.out.train(from, [4]byte{}, datagram{
		client: d.client, seq: d.seq, process: d.process, count: d.answers, flags: flagAnswer,
	}, int(d.answer), d.flags&flagPlain == 0)
}

// whole says whether d was the one that its train was waiting for.
func (b *datagramBackend) whole(d *datagram) bool {
	key := trainKey{d.process, d.client}
	t := b.trains[key]
	if t == nil {
		t = new(train)
		b.trains[key] = t
	}
	if t.seq != d.seq {
		*t = train{seq: d.seq}
	}
	bit := uint64(1) << d.index
	fresh := t.got&bit == 0
	t.got |= bit
	return fresh && t.got == whole(d.count)
}
