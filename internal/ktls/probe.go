package ktls

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"edgeproxy/internal/tlsrecord"
)

// Support is what the kernel was seen to do.
type Support struct {
	// Available: keys can be set both ways, bytes pass, a record can be
	// spliced, and an empty record is not taken for the end of the stream.
	Available bool
	// Rekey: keys can be replaced while the connection lives, which TLS 1.3
	// lets every peer ask for at any time (KeyUpdate).
	Rekey bool
	// Reason says what is missing, and what to do about it; "" if nothing is.
	Reason string
	// Kernel is the release, as `uname -r` gives it.
	Kernel string

	covered []coverage
}

type coverage struct{ version, cipher uint16 }

// Covers reports whether bytes of this protocol version and cipher suite
// passed.
func (s *Support) Covers(version, suite uint16) bool {
	c, _ := cipherOf(version, suite)
	return c != 0 && slices.Contains(s.covered, coverage{version, c})
}

// representative is a suite of each version for each cipher.
var representative = []struct {
	version, suite uint16
}{
	{version13, 0x1301}, {version13, 0x1302}, {version13, 0x1303},
	{version12, 0xc02f}, {version12, 0xc030}, {version12, 0xcca8},
}

// probeTime bounds all waiting of a probe. Everything happens on loopback: a
// probe that works waits for little but the loading of modules.
const probeTime = 10 * time.Second

// Probe tries what the relay needs on loopback connections of its own. It
// may make the kernel load modules, which takes CAP_NET_ADMIN: call it before
// privileges are dropped.
func Probe() Support {
	var s Support
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		s.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	p := prober{deadline: time.Now().Add(probeTime)}
	if err := p.probe(&s); err != nil {
		s.Reason = reason(s, err)
	}
	return s
}

func reason(s Support, err error) string {
	switch {
	case errors.Is(err, unix.ENOENT) && errors.Is(err, errAttach):
		return "the kernel module tls is not loaded (modprobe tls) or does not exist in this kernel"
	case errors.Is(err, unix.ENOENT):
		return "the kernel has no AES-GCM (modprobe -a gcm ctr aesni_intel): " + err.Error()
	case errors.Is(err, ErrNoRekey):
		return "Linux " + s.Kernel + " cannot replace the keys of a TLS socket, which every TLS 1.3 peer may ask for; Linux 6.14 and later can"
	}
	return err.Error()
}

var errAttach = errors.New("attaching")

type prober struct {
	deadline time.Time
	fds      []int
}

func (p *prober) probe(s *Support) (err error) {
	defer p.closeAll()
	// What has to work is tried with one suite against a far end in user
	// space, so that two equal mistakes cannot cancel out.
	far, near, err := p.pair()
	if err != nil {
		return err
	}
	if err := Attach(near); err != nil {
		return errors.Join(errAttach, err)
	}
	in, out := newSealer(), newSealer()
	if err := errors.Join(SetKeys(near, RX, in.keys), SetKeys(near, TX, out.keys)); err != nil {
		return err
	}
	if err := p.moves(far, near, in, out); err != nil {
		return err
	}
	if err := p.splices(far, near, in); err != nil {
		return err
	}
	s.Available = true
	for _, r := range representative {
		if p.suite(r.version, r.suite) == nil {
			c, _ := cipherOf(r.version, r.suite)
			s.covered = append(s.covered, coverage{r.version, c})
		}
	}
	if err := p.rekeys(far, near, in, out); err != nil {
		return err
	}
	s.Rekey = true
	return nil
}

// moves passes a record each way.
func (p *prober) moves(far, near int, in, out *sealer) error {
	if err := p.write(far, in.seal(Data, "one")); err != nil {
		return err
	}
	if err := p.expect(near, Data, "one"); err != nil {
		return err
	}
	return p.answer(far, near, out, "two")
}

// answer sends from near, and opens in user space what arrives.
func (p *prober) answer(far, near int, out *sealer, text string) error {
	if err := p.write(near, []byte(text)); err != nil {
		return err
	}
	got, err := p.read(far, 5+len(text)+17)
	if err != nil {
		return err
	}
	if want := out.seal(Data, text); !slices.Equal(got, want) {
		return errors.New("kernel TLS sent a wrong record")
	}
	return nil
}

// splices passes an empty record, after which the stream must go on, and one
// by splice(2).
func (p *prober) splices(far, near int, in *sealer) error {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return err
	}
	p.fds = append(p.fds, fds[:]...)
	if err := p.write(far, in.seal(Data, "")); err != nil {
		return err
	}
	if err := p.wait(near, unix.POLLIN); err != nil {
		return err
	}
	n, err := unix.Splice(near, nil, fds[1], nil, 1<<16, unix.SPLICE_F_NONBLOCK)
	if n > 0 || err != nil && err != unix.EAGAIN {
		return fmt.Errorf("kernel TLS: splicing an empty record: %d, %w", n, err)
	}
	if n, typ, errno := Recv(near, make([]byte, 16)); errno != unix.EAGAIN && (errno != 0 || typ != Data || n != 0) {
		return fmt.Errorf("kernel TLS: an empty record looks like the end of the stream: %d, type %d, %w", n, typ, errno)
	}
	if err := p.write(far, in.seal(Data, "three")); err != nil {
		return err
	}
	if err := p.wait(near, unix.POLLIN); err != nil {
		return err
	}
	if n, err = unix.Splice(near, nil, fds[1], nil, 1<<16, unix.SPLICE_F_NONBLOCK); err != nil || n != 5 {
		return fmt.Errorf("kernel TLS: splicing a record: %d of 5 bytes, %w", n, err)
	}
	got, err := p.read(fds[0], 5)
	if err == nil && string(got) != "three" {
		err = errors.New("kernel TLS spliced the wrong bytes")
	}
	return err
}

// rekeys replaces the keys of both directions, each after a KeyUpdate
// (RFC 8446, section 4.6.3).
func (p *prober) rekeys(far, near int, in, out *sealer) error {
	const update = "\x18\x00\x00\x01\x00"
	if errno := Send(near, Handshake, []byte(update)); errno != 0 {
		return fmt.Errorf("kernel TLS: sending a KeyUpdate: %w", errno)
	}
	if got, err := p.read(far, 5+len(update)+17); err != nil {
		return err
	} else if !slices.Equal(got, out.seal(Handshake, update)) {
		return errors.New("kernel TLS sent a wrong KeyUpdate")
	}
	next := newSealer()
	if err := SetKeys(near, TX, next.keys); err != nil {
		return err
	}
	if err := p.answer(far, near, next, "four"); err != nil {
		return err
	}
	next = newSealer()
	keys := next.keys // before they have sealed anything
	if err := p.write(far, append(in.seal(Handshake, update), next.seal(Data, "five")...)); err != nil {
		return err
	}
	if err := p.expect(near, Handshake, update); err != nil {
		return err
	}
	if err := SetKeys(near, RX, keys); err != nil {
		return err
	}
	return p.expect(near, Data, "five")
}

// suite passes a record from kernel to kernel.
func (p *prober) suite(version, suite uint16) error {
	a, b, err := p.pair()
	if err != nil {
		return err
	}
	k := randomKeys(version, suite)
	if err := errors.Join(Attach(a), Attach(b), SetKeys(a, TX, k), SetKeys(b, RX, k)); err != nil {
		return err
	}
	if err := p.write(a, []byte("suite")); err != nil {
		return err
	}
	return p.expect(b, Data, "suite")
}

func randomKeys(version, suite uint16) tlsrecord.Keys {
	cipher, n := cipherOf(version, suite)
	k := tlsrecord.Keys{Version: version, Suite: suite, Key: make([]byte, n), IV: make([]byte, 12)}
	if version == version12 && cipher != cipherChaCha20 {
		k.IV = k.IV[:4]
	}
	rand.Read(k.Key)
	rand.Read(k.IV)
	return k
}

func (p *prober) expect(fd int, typ byte, text string) error {
	if err := p.wait(fd, unix.POLLIN); err != nil {
		return err
	}
	b := make([]byte, 64)
	n, t, errno := Recv(fd, b)
	if errno != 0 {
		return fmt.Errorf("kernel TLS: receiving: %w", errno)
	}
	if t != typ || string(b[:n]) != text {
		return fmt.Errorf("kernel TLS received %d bytes of type %d instead of %d of type %d", n, t, len(text), typ)
	}
	return nil
}

func (p *prober) write(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err == unix.EAGAIN {
			// Memory for sockets may be short for a moment.
			err = p.wait(fd, unix.POLLOUT)
		}
		if err != nil && err != unix.EINTR {
			return err
		}
		b = b[max(n, 0):]
	}
	return nil
}

// read reads exactly n bytes.
func (p *prober) read(fd, n int) ([]byte, error) {
	b := make([]byte, n)
	for got := 0; got < n; {
		if err := p.wait(fd, unix.POLLIN); err != nil {
			return nil, err
		}
		m, err := unix.Read(fd, b[got:])
		if err == unix.EAGAIN {
			continue
		}
		if err != nil || m == 0 {
			return nil, fmt.Errorf("loopback connection ended: %d, %w", m, err)
		}
		got += m
	}
	return b, nil
}

var errTimeout = errors.New("kernel TLS: no answer on loopback")

func (p *prober) wait(fd int, events int16) error {
	for {
		left := time.Until(p.deadline)
		if left <= 0 {
			return errTimeout
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, int(left.Milliseconds())+1)
		if err == nil && n > 0 {
			return nil
		}
		if err != nil && err != unix.EINTR {
			return err
		}
	}
}

// pair returns the two ends of a loopback connection.
func (p *prober) pair() (a, b int, err error) {
	ln, err := p.socket()
	if err != nil {
		return -1, -1, err
	}
	loopback := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	if err := errors.Join(unix.Bind(ln, loopback), unix.Listen(ln, 1)); err != nil {
		return -1, -1, fmt.Errorf("listening on 127.0.0.1: %w", err)
	}
	addr, err := unix.Getsockname(ln)
	if err != nil {
		return -1, -1, err
	}
	if a, err = p.socket(); err != nil {
		return -1, -1, err
	}
	if err := unix.Connect(a, addr); err != nil && err != unix.EINPROGRESS {
		return -1, -1, fmt.Errorf("connecting to 127.0.0.1: %w", err)
	}
	own, err := unix.Getsockname(a)
	if err != nil {
		return -1, -1, err
	}
	for {
		if err := p.wait(ln, unix.POLLIN); err != nil {
			return -1, -1, err
		}
		fd, peer, err := unix.Accept4(ln, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err == unix.EAGAIN || err == unix.ECONNABORTED {
			continue
		}
		if err != nil {
			return -1, -1, err
		}
		p.fds = append(p.fds, fd)
		// Somebody else may have found the port.
		if peer.(*unix.SockaddrInet4).Port == own.(*unix.SockaddrInet4).Port {
			return a, fd, nil
		}
	}
}

func (p *prober) socket() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err == nil {
		p.fds = append(p.fds, fd)
	}
	return fd, err
}

func (p *prober) closeAll() {
	for _, fd := range p.fds {
		unix.Close(fd)
	}
	p.fds = nil
}

// sealer makes TLS 1.3 records with AES-128-GCM in user space (RFC 8446,
// section 5.2).
type sealer struct {
	keys tlsrecord.Keys
	aead cipher.AEAD
}

func newSealer() *sealer {
	s := &sealer{keys: randomKeys(version13, 0x1301)}
	block, err := aes.NewCipher(s.keys.Key)
	if err == nil {
		s.aead, err = cipher.NewGCM(block)
	}
	if err != nil {
		panic(err) // the length is right
	}
	return s
}

func (s *sealer) seal(typ byte, text string) []byte { return s.sealPadded(typ, text, 0) }

func (s *sealer) sealPadded(typ byte, text string, padding int) []byte {
	inner := append([]byte(text), typ)
	inner = append(inner, make([]byte, padding)...)
	record := binary.BigEndian.AppendUint16([]byte{Data, 3, 3}, uint16(len(inner)+s.aead.Overhead()))
	return s.aead.Seal(record, s.nonce(), inner, record)
}

// nonce is that of the next record (RFC 8446, section 5.3).
func (s *sealer) nonce() []byte {
	nonce := slices.Clone(s.keys.IV)
	for i := range 8 {
		nonce[4+i] ^= byte(s.keys.Seq >> (56 - 8*i))
	}
	s.keys.Seq++
	return nonce
}
