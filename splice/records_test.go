package splice

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"edgeproxy/internal/tlsrecord"
)

// peer is the far end of a TLS side, whose handshake has been.
type peer struct {
	stream
	in, out *tlsrecord.Conn // one for each direction, as they run in goroutines of their own
	mu      sync.Mutex      // guards out
	have    []byte          // read, not opened
	plain   []byte          // opened, not taken
	sizes   []int           // of the records with data that have come
	updates int             // KeyUpdates that have come
}

// suiteOf is a suite of a version.
var suiteOf = map[uint16]uint16{
	tls.VersionTLS12: tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	tls.VersionTLS13: tls.TLS_AES_256_GCM_SHA384,
}

// agreed is what a handshake leaves to both ends: us, and our peer.
func agreed(t testing.TB, version uint16, us, them tlsrecord.Role) (*tlsrecord.Conn, *peer) {
	t.Helper()
	secrets := [4][]byte{make([]byte, 48), make([]byte, 48), make([]byte, 32), make([]byte, 32)}
	for i := range secrets {
		rand.NewChaCha8([32]byte{byte(i), byte(version)}).Read(secrets[i])
	}
	conn := func(role tlsrecord.Role) *tlsrecord.Conn {
		var c *tlsrecord.Conn
		var err error
		if version == tls.VersionTLS12 {
			c, err = tlsrecord.New12(role, suiteOf[version], secrets[0], secrets[2], secrets[3], 1, 1)
		} else if role == us {
			c, err = tlsrecord.New13(role, suiteOf[version], secrets[0], secrets[1], 0, 0)
		} else {
			c, err = tlsrecord.New13(role, suiteOf[version], secrets[1], secrets[0], 0, 0)
		}
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	return conn(us), &peer{in: conn(them), out: conn(them)}
}

// secure is a bench with TLS of a version on either side; 0: none.
func secure(t *testing.T, client, server uint16) *bench {
	t.Helper()
	var c, s TLS
	var cp, sp *peer
	if client != 0 {
		c.Conn, cp = agreed(t, client, tlsrecord.Server, tlsrecord.Client)
	}
	if server != 0 {
		s.Conn, sp = agreed(t, server, tlsrecord.Client, tlsrecord.Server)
	}
	b := newSecureBench(t, "tcp", 10, nil, c, s)
	if cp != nil {
		cp.stream, b.client = b.client, cp
	}
	if sp != nil {
		sp.stream, b.server = b.server, sp
	}
	return b
}

// record seals and sends one record.
func (p *peer) record(typ byte, text []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	buf := make([]byte, p.out.Header()+len(text)+p.out.Trailer())
	copy(buf[p.out.Header():], text)
	_, err := p.stream.Write(p.out.Seal(typ, buf, len(text)))
	return err
}

func (p *peer) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		m := min(len(b), 1+rand.IntN(tlsrecord.MaxPlaintext))
		if err := p.record(tlsrecord.ApplicationData, b[:m]); err != nil {
			return n, err
		}
		n += m
		b = b[m:]
	}
	return n, nil
}

// keyUpdate changes the keys of what p sends.
func (p *peer) keyUpdate(request byte) error {
	err := p.record(tlsrecord.Handshake, []byte{24, 0, 0, 1, request})
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out.AppendKeyUpdate(nil)
	return err
}

// CloseWrite sends close_notify, and leaves TCP open.
func (p *peer) CloseWrite() error { return p.record(tlsrecord.Alert, []byte{1, 0}) }

var errBare = errors.New("the end without close_notify")

func (p *peer) Read(b []byte) (int, error) {
	buf := make([]byte, 64<<10)
	for len(p.plain) == 0 {
		size, err := p.in.Size(p.have)
		if err != nil {
			return 0, err
		}
		if size == 0 || size > len(p.have) {
			n, err := p.stream.Read(buf)
			if err == io.EOF {
				err = errBare
			}
			if err != nil {
				return 0, err
			}
			p.have = append(p.have, buf[:n]...)
			continue
		}
		typ, text, err := p.in.Open(make([]byte, size), p.have[:size])
		if err != nil {
			return 0, err
		}
		p.have = p.have[size:]
		if typ == tlsrecord.ApplicationData {
			p.plain = text
			p.sizes = append(p.sizes, len(text))
			continue
		}
		ev, err := p.in.Control(typ, text)
		switch {
		case err != nil:
			return 0, err
		case ev == tlsrecord.Closed:
			return 0, io.EOF
		case ev == tlsrecord.Rekeyed:
			p.updates++
		}
	}
	n := copy(b, p.plain)
	p.plain = p.plain[n:]
	return n, nil
}

// combinations are which sides have TLS, of which version.
var combinations = [][2]uint16{
	{tls.VersionTLS12, 0}, {tls.VersionTLS13, 0}, {0, tls.VersionTLS12}, {0, tls.VersionTLS13},
	{tls.VersionTLS13, tls.VersionTLS13}, {tls.VersionTLS12, tls.VersionTLS13},
}

func sealedBenches(t *testing.T, test func(t *testing.T, b *bench)) {
	for _, c := range combinations {
		t.Run(fmt.Sprintf("%x to %x", c[0], c[1]), func(t *testing.T) { test(t, secure(t, c[0], c[1])) })
	}
}

func TestSealedBytesArriveIntactBothWays(t *testing.T) {
	for _, small := range []bool{false, true} {
		sealedBenches(t, func(t *testing.T, b *bench) {
			n := 6 << 20
			if small {
				// So that hardly a write is taken whole.
				n = 1 << 20
				b.loop.Do(func() {
					for _, fd := range []int32{b.relay.client.fd, b.relay.server.fd} {
						unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 8<<10)
					}
				})
			}
			type result struct {
				sum [32]byte
				n   int64
				err error
			}
			sent, got := [2]chan result{make(chan result, 1), make(chan result, 1)}, [2]chan result{make(chan result, 1), make(chan result, 1)}
			for i, s := range []stream{b.client, b.server} {
				go func() {
					sum, err := pour(s, uint64(i), n)
					sent[i] <- result{sum, int64(n), err}
				}()
				go func() {
					sum, n, err := drink(s)
					got[1-i] <- result{sum, n, err}
				}()
			}
			for i := range 2 {
				if s, g := <-sent[i], <-got[i]; s != g {
					t.Errorf("direction %d: sent %+v, got %+v", i, s, g)
				}
			}
			if c := b.end(); c != ClientClosed && c != ServerClosed {
				t.Errorf("ended by %d, error %v", c, b.err)
			}
			if in, out := b.count.In.Load(), b.count.Out.Load(); in != uint64(n) || out != uint64(n) {
				t.Errorf("counted %d in, %d out of %d", in, out, n)
			}
			if b.count.Spliced.Load() != 0 {
				t.Error("spliced")
			}
		})
	}
}

func TestSealedHalfCloseTravels(t *testing.T) {
	sealedBenches(t, func(t *testing.T, b *bench) {
		io.WriteString(b.client, "request")
		b.client.CloseWrite()
		if got, err := io.ReadAll(b.server); err != nil || string(got) != "request" {
			t.Fatalf("got %q, %v", got, err)
		}
		io.WriteString(b.server, "late answer")
		b.server.CloseWrite()
		if got, err := io.ReadAll(b.client); err != nil || string(got) != "late answer" {
			t.Fatalf("got %q, %v", got, err)
		}
		if c := b.end(); c != ClientClosed {
			t.Errorf("ended by %d (%v)", c, b.err)
		}
	})
}

// Records are small enough for a segment until a transfer is under way, and
// again after a pause, whatever the other direction did meanwhile.
func TestSealedRecordSizes(t *testing.T) {
	for version := range suiteOf {
		b := secure(t, version, 0)
		far := b.client.(*peer)
		send := func(n int) []int {
			t.Helper()
			far.sizes = nil
			go b.server.Write(make([]byte, n))
			if _, err := io.ReadFull(far, make([]byte, n)); err != nil {
				t.Fatal(err)
			}
			return far.sizes
		}
		begins := func(sizes []int, when string) {
			t.Helper()
			for i, n := range sizes[:smallRecords] {
				if n > smallRecord {
					t.Fatalf("%s: record %d has %d bytes", when, i, n)
				}
			}
			if most := slices.Max(sizes[smallRecords:]); most != tlsrecord.MaxPlaintext {
				t.Errorf("%s: the longest record has %d bytes", when, most)
			}
		}
		begins(send(4<<20), "at first")
		if sizes := send(4 << 20); slices.Max(sizes[:20]) < 4*smallRecord || len(sizes) > 2000 {
			t.Errorf("%d records under way, the first %v", len(sizes), sizes[:20])
		}
		for range 2 { // from bulk, and from copying
			b.loop.Do(func() { b.relay.client.tls.sealedAt -= 2 * pauseCoarse })
			RoundTrip(t, b.client, b.server, "a request just before")
			begins(send(4<<20), "after a pause")
		}
		b.loop.Do(func() { b.relay.Close(true) })
	}
}

// RoundTrip sends a text from one end to the other.
func RoundTrip(t *testing.T, from, to io.ReadWriter, text string) {
	t.Helper()
	if _, err := io.WriteString(from, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(to, got); err != nil || string(got) != text {
		t.Fatalf("got %q, %v", got, err)
	}
}

// A KeyUpdate that asks for one in return comes while what is sealed with the
// old key waits to be taken: the answer must stand behind all of that.
func TestKeyUpdateWhileOutputIsBlocked(t *testing.T) {
	b := secure(t, tls.VersionTLS13, 0)
	far := b.client.(*peer)
	const n = 24 << 20
	type result struct {
		sum [32]byte
		err error
	}
	sent := make(chan result, 1)
	go func() {
		sum, err := pour(b.server, 1, n)
		sent <- result{sum, err}
	}()
	blocked := func() (is bool) {
		b.loop.Do(func() { is = b.relay.server.kept != nil })
		return is
	}
	for !blocked() {
		time.Sleep(time.Millisecond)
	}
	for range 3 {
		if err := errors.Join(far.keyUpdate(1), far.keyUpdate(0)); err != nil {
			t.Fatal(err)
		}
	}
	RoundTrip(t, far, b.server, "and it goes on")
	if !blocked() {
		t.Error("nothing is blocked any more")
	}
	sum, got, err := drink(far)
	if s := <-sent; got != n || err != nil || sum != s.sum || s.err != nil {
		t.Errorf("got %d bytes, %v; sent %v", got, err, s.err)
	}
	if far.updates != 1 {
		t.Errorf("%d KeyUpdates for three requests at one time, one is enough (RFC 8446, section 4.6.3)", far.updates)
	}
	far.CloseWrite()
	b.end()
}

// A side's key is changed before it has sealed too much (RFC 8446, section 5.5),
// in small records and in bulk.
func TestKeysAreChanged(t *testing.T) {
	ours, far := agreed(t, tls.VersionTLS13, tlsrecord.Server, tlsrecord.Client)
	ours.RekeyAfter = 50
	b := newSecureBench(t, "tcp", 10, nil, TLS{Conn: ours}, TLS{})
	far.stream, b.client = b.client, far
	const n = 8 << 20
	sent := make(chan [32]byte, 1)
	go func() {
		sum, _ := pour(b.server, 3, n)
		sent <- sum
	}()
	if sum, got, err := drink(far); err != nil || got != n || sum != <-sent {
		t.Errorf("got %d bytes, %v", got, err)
	}
	if least := len(far.sizes)/(50+smallRecords) - 1; far.updates < least {
		t.Errorf("%d KeyUpdates in %d records, want at least %d", far.updates, len(far.sizes), least)
	}
	far.CloseWrite()
	b.end()
}

func TestShedCiphersAreMadeAnew(t *testing.T) {
	sealedBenches(t, func(t *testing.T, b *bench) {
		for i := range 5 {
			RoundTrip(t, b.client, b.server, fmt.Sprint("request ", i))
			RoundTrip(t, b.server, b.client, fmt.Sprint("answer ", i))
			b.loop.Do(func() {
				if i > 0 && b.warmed == 0 {
					t.Error("nobody was told that there are ciphers again")
				}
				b.warmed = 0
				b.relay.Shed()
			})
		}
		b.client.CloseWrite() // shed, too
		if _, err := io.ReadAll(b.server); err != nil {
			t.Error(err)
		}
		b.loop.Do(b.relay.Shed)
		b.server.CloseWrite()
		if _, err := io.ReadAll(b.client); err != nil {
			t.Error(err)
		}
		b.end()
	})
}

// A record that is never completed is held in one buffer, which comes back.
func TestIncompleteRecordIsGivenBack(t *testing.T) {
	for version := range suiteOf {
		b := secure(t, version, 0)
		far := b.client.(*peer)
		RoundTrip(t, far, b.server, "first")
		rec := far.out.Seal(tlsrecord.ApplicationData, make([]byte, far.out.Header()+16000+far.out.Trailer()), 16000)
		far.stream.Write(rec[:len(rec)-1])
		held := func() (n int) {
			b.loop.Do(func() {
				if p := b.relay.client.tls.part; p != nil {
					n = p.to
				}
			})
			return n
		}
		for held() != len(rec)-1 {
			time.Sleep(time.Millisecond)
		}
		b.loop.Do(func() {
			if size := len(b.relay.client.tls.part.buf); size > 16<<10 {
				t.Errorf("%d bytes for a record of %d", size, len(rec))
			}
		})
		far.stream.Close()
		if c := b.end(); c != ClientReset || b.err != ErrTruncated {
			t.Errorf("ended by %d, %v", c, b.err)
		}
		b.loop.Do(func() {
			if b.engine.free < 16<<10 {
				t.Errorf("%d bytes in the free lists: the buffer did not come back", b.engine.free)
			}
		})
		if _, err := b.server.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("the server sees %v: a cut stream looks whole", err)
		}
	}
}

// Everything a relay with TLS holds while it is blocked, both ways, comes back.
func TestSealedBackPressureHoldsLittle(t *testing.T) {
	sealedBenches(t, func(t *testing.T, b *bench) {
		for _, s := range []stream{b.client, b.server} {
			s.SetDeadline(time.Now().Add(400 * time.Millisecond))
		}
		var wg sync.WaitGroup
		for _, s := range []stream{b.client, b.server} {
			wg.Go(func() {
				if n, err := s.Write(make([]byte, 128<<20)); err == nil {
					t.Errorf("wrote %d bytes: there is no back-pressure", n)
				}
			})
		}
		wg.Wait()
		b.loop.Do(func() {
			for _, s := range []*side{&b.relay.client, &b.relay.server} {
				if s.kept != nil && len(s.kept.buf) > 256<<10 {
					t.Errorf("%d bytes kept", len(s.kept.buf))
				}
				if s.tls != nil && s.tls.part != nil && len(s.tls.part.buf) > 32<<10 {
					t.Errorf("%d bytes of an incomplete record", len(s.tls.part.buf))
				}
			}
			b.relay.Close(true)
			for _, s := range []*side{&b.relay.client, &b.relay.server} {
				if s.kept != nil || s.pipe != nil || s.tls != nil {
					t.Errorf("%+v is left", *s)
				}
			}
		})
	})
}

// What a stranger sends after a bad record is of no interest.
func TestBadRecordEndsTheRelay(t *testing.T) {
	for version := range suiteOf {
		for _, who := range []Cause{ClientTLS, ServerTLS} {
			versions := [2]uint16{version, 0}
			if who == ServerTLS {
				versions = [2]uint16{0, version}
			}
			b := secure(t, versions[0], versions[1])
			bad, good := b.client, b.server
			if who == ServerTLS {
				bad, good = good, bad
			}
			RoundTrip(t, bad, good, "good")
			p := bad.(*peer)
			rec := p.out.Seal(tlsrecord.ApplicationData, make([]byte, p.out.Header()+5+p.out.Trailer()), 5)
			rec[len(rec)-1] ^= 1
			p.stream.Write(rec)
			var alert *tlsrecord.AlertError
			if _, err := p.Read(make([]byte, 1)); !errors.As(err, &alert) || !alert.Remote || alert.Alert != tlsrecord.AlertBadRecordMAC {
				t.Errorf("the sender reads %v, want the alert", err)
			}
			if c := b.end(); c != who || !errors.As(b.err, &alert) {
				t.Errorf("ended by %d, %v", c, b.err)
			}
			if _, err := good.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("the other side reads %v, want a reset", err)
			}
		}
	}
}

// A request and its answer cost no memory.
func TestSealedRequestsAllocateNothing(t *testing.T) {
	for version := range suiteOf {
		b := secure(t, version, 0)
		far := b.client.(*peer)
		go func() {
			buf := make([]byte, 4096)
			for {
				n, err := b.server.Read(buf)
				if err != nil {
					return
				}
				b.server.Write(buf[:n])
			}
		}()
		head := far.out.Header()
		rec, text := make([]byte, head+100+far.out.Trailer()), bytes.Repeat([]byte("r"), 100)
		in, plain := make([]byte, len(rec)), make([]byte, len(rec))
		request := func() {
			copy(rec[head:], text)
			if _, err := far.stream.Write(far.out.Seal(tlsrecord.ApplicationData, rec, len(text))); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(far.stream, in); err != nil {
				t.Fatal(err)
			}
			if _, p, err := far.in.Open(plain, in); err != nil || !bytes.Equal(p, text) {
				t.Fatal(len(p), err)
			}
		}
		for range 100 {
			request()
		}
		// testing.AllocsPerRun would leave the loop and the test one P to share.
		var before, after runtime.MemStats
		const n = 1000
		runtime.ReadMemStats(&before)
		for range n {
			request()
		}
		runtime.ReadMemStats(&after)
		if allocs := after.Mallocs - before.Mallocs; allocs > n/10 { // of the runtime's own
			t.Errorf("%x: %d allocations in %d requests", version, allocs, n)
		}
		b.loop.Do(func() { b.relay.Close(true) })
	}
}
