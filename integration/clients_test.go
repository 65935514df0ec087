package integration

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// connect opens a connection to an address in the form of the configuration.
func connect(addr string) (Conn, error) { return connectFrom(nil, addr) }

func connectFrom(source net.Addr, addr string) (Conn, error) {
	network := "tcp"
	if p, ok := strings.CutPrefix(addr, "unix:"); ok {
		network, addr = "unix", p
	}
	d := net.Dialer{LocalAddr: source, Timeout: patience}
	c, err := d.Dial(network, addr)
	if errors.Is(err, syscall.ECONNRESET) {
		return stillborn{}, nil
	}
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(2 * patience))
	return c.(Conn), nil
}

// stillborn is a connection that was reset before connect(2) returned. Tests
// need not tell it from one that was reset just after.
type stillborn struct{ net.Conn }

func (stillborn) Read([]byte) (int, error)  { return 0, syscall.ECONNRESET }
func (stillborn) Write([]byte) (int, error) { return 0, syscall.ECONNRESET }
func (stillborn) Close() error              { return nil }
func (stillborn) CloseWrite() error         { return syscall.ECONNRESET }

// Dial opens a connection and closes it when the test ends.
func Dial(t testing.TB, addr string) Conn {
	t.Helper()
	c, err := connect(addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// DialFrom opens a connection from a local address.
func DialFrom(t testing.TB, source, addr string) Conn {
	t.Helper()
	c, err := connectFrom(&net.TCPAddr{IP: net.ParseIP(source)}, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// Send writes a text or fails the test.
func Send(t testing.TB, c Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// Expect reads as many bytes as text has and compares.
func Expect(t testing.TB, c Conn, text string) {
	t.Helper()
	got := make([]byte, len(text))
	n, err := io.ReadFull(c, got)
	if string(got[:n]) != text {
		t.Fatalf("read %q, %v; want %q", got[:n], err, text)
	}
}

// RoundTrip sends a text and expects it back.
func RoundTrip(t testing.TB, c Conn, text string) {
	t.Helper()
	Send(t, c, text)
	Expect(t, c, text)
}

// ReadLine reads up to a newline, byte by byte so that nothing is taken beyond it.
func ReadLine(t testing.TB, c Conn) string {
	t.Helper()
	var line []byte
	for b := make([]byte, 1); ; {
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatalf("after %q: %v", line, err)
		}
		if b[0] == '\n' {
			return string(line)
		}
		line = append(line, b[0])
	}
}

// ExpectEOF asserts that the other side has finished, in good order.
func ExpectEOF(t testing.TB, c Conn) {
	t.Helper()
	if b, err := io.ReadAll(c); err != nil || len(b) > 0 {
		t.Fatalf("read %d bytes, %v; want the end", len(b), err)
	}
}

// ExpectGone asserts that the connection was closed, whichever way, without a
// byte having come.
func ExpectGone(t testing.TB, c Conn) {
	t.Helper()
	b, err := io.ReadAll(c)
	if len(b) > 0 || (err != nil && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE)) {
		t.Fatalf("read %q, %v; want a closed connection", b, err)
	}
}

// ExpectReset asserts that the connection ends with RST.
func ExpectReset(t testing.TB, c Conn) {
	t.Helper()
	if n, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("after %d bytes %v; want a reset", n, err)
	}
}

// ask connects, sends a line, reads one and closes.
func ask(addr, line string) (string, error) {
	c, err := connect(addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		return "", fmt.Errorf("sending: %w", err)
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("receiving: %w", err)
	}
	return strings.TrimSuffix(answer, "\n"), nil
}

// fetch connects and returns the line that a [named] server sends.
func fetch(addr string) (string, error) {
	c, err := connect(addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSuffix(line, "\n"), err
}

// fetchName is [fetch] for tests that expect it to work.
func fetchName(t testing.TB, addr string) string {
	t.Helper()
	name, err := fetch(addr)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// Load sends requests from several clients until it is stopped.
type Load struct {
	requests atomic.Int64
	stop     chan struct{}
	wg       sync.WaitGroup

	mu       sync.Mutex
	failures []error
}

// StartLoad runs clients that each repeat do. It is stopped at the latest
// when the test ends.
func StartLoad(t testing.TB, clients int, do func() error) *Load {
	l := &Load{stop: make(chan struct{})}
	for range clients {
		l.wg.Go(func() {
			for {
				select {
				case <-l.stop:
					return
				default:
				}
				if err := do(); err != nil {
					l.mu.Lock()
					l.failures = append(l.failures, err)
					l.mu.Unlock()
				}
				l.requests.Add(1)
			}
		})
	}
	t.Cleanup(func() { l.Stop() })
	return l
}

// Stop ends the load and returns the failures.
func (l *Load) Stop() []error {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.wg.Wait()
	return l.failures
}

// Requests counts the requests done, well or not.
func (l *Load) Requests() int64 { return l.requests.Load() }

// AwaitRequests waits until n more requests are done.
func (l *Load) AwaitRequests(t testing.TB, n int64) {
	t.Helper()
	want := l.Requests() + n
	eventually(t, func() bool { return l.Requests() >= want },
		func() string { return fmt.Sprintf("%d requests, want %d", l.Requests(), want) })
}

// stream is a deterministic sequence of bytes in which no two pages are equal,
// so that a byte lost, repeated or moved anywhere is seen, and which costs
// next to nothing to make and to compare.
type stream struct{ block []byte }

const streamPage = 4096

func newStream(seed uint64) *stream {
	block := make([]byte, 64*streamPage)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	r.Read(block)
	return &stream{block}
}

// stamp makes buf, a copy of the block, hold what stands at offset.
func (s *stream) stamp(buf []byte, offset int64) {
	for i := 0; i < len(buf); i += streamPage {
		page := uint64(offset+int64(i)) / streamPage
		for j := range 8 {
			buf[i+j] = byte(page >> (8 * j))
		}
	}
}

// Send writes the first n bytes, a multiple of the block.
func (s *stream) Send(w io.Writer, n int64) error {
	buf := bytes.Clone(s.block)
	for off := int64(0); off < n; off += int64(len(buf)) {
		s.stamp(buf, off)
		if _, err := w.Write(buf); err != nil {
			return fmt.Errorf("sending at %d: %w", off, err)
		}
	}
	return nil
}

// Verify reads to the end and asserts that these are the first n bytes.
func (s *stream) Verify(r io.Reader, n int64) error {
	got, want := make([]byte, len(s.block)), bytes.Clone(s.block)
	for off := int64(0); off < n; off += int64(len(got)) {
		if m, err := io.ReadFull(r, got); err != nil {
			return fmt.Errorf("ended at %d of %d: %w", off+int64(m), n, err)
		}
		s.stamp(want, off)
		if !bytes.Equal(got, want) {
			i := 0
			for got[i] == want[i] {
				i++
			}
			return fmt.Errorf("wrong byte at %d", off+int64(i))
		}
	}
	if m, err := io.Copy(io.Discard, r); m > 0 || err != nil {
		return fmt.Errorf("%d bytes too many, %v", m, err)
	}
	return nil
}

// block is the granularity of a stream's length.
const streamBlock = 64 * streamPage

func TestStreamSeesEveryFault(t *testing.T) {
	s := newStream(1)
	var sent bytes.Buffer
	if err := s.Send(&sent, 3*streamBlock); err != nil {
		t.Fatal(err)
	}
	good := sent.Bytes()
	if err := s.Verify(bytes.NewReader(good), 3*streamBlock); err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(good)
	flipped[2*streamBlock+77] ^= 1
	swapped := bytes.Clone(good)
	copy(swapped, good[streamPage:2*streamPage])
	copy(swapped[streamPage:], good[:streamPage])
	faults := map[string][]byte{
		"flipped":   flipped,
		"swapped":   swapped,
		"short":     good[:len(good)-1],
		"long":      append(bytes.Clone(good), 0),
		"page lost": append(bytes.Clone(good[:streamPage]), good[2*streamPage:]...),
		"block twice": append(append(bytes.Clone(good[:streamBlock]), good[:streamBlock]...),
			good[2*streamBlock:]...),
	}
	for name, b := range faults {
		if s.Verify(bytes.NewReader(b), 3*streamBlock) == nil {
			t.Errorf("%s: not seen", name)
		}
	}
}

func TestServersDoWhatTheirNamesSay(t *testing.T) {
	t.Parallel()
	if c, err := net.DialTimeout("tcp", Refused(t), patience); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("Refused: %v %v", c, err)
	}
	if c, err := net.DialTimeout("tcp", Hanging(t), 200*time.Millisecond); err == nil {
		t.Errorf("Hanging: connected from %v", c.LocalAddr())
	}
	ExpectReset(t, Dial(t, Serve(t, resetAtOnce).Addr()))
	c := Dial(t, Serve(t, sendAndClose("x")).Addr())
	Expect(t, c, "x")
	ExpectEOF(t, c)

	s := Serve(t, echo)
	RoundTrip(t, Dial(t, s.Addr()), "a")
	s.Stop()
	if c, err := net.Dial("tcp", s.Addr()); err == nil {
		t.Errorf("stopped: connected from %v", c.LocalAddr())
	}
	s.Restart()
	RoundTrip(t, Dial(t, s.Addr()), "b")
	if s.Accepted() != 2 {
		t.Errorf("accepted %d, want 2", s.Accepted())
	}
}
