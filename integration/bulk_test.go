package integration

import (
	"fmt"
	"io"
	"testing"
	"time"
)

// bulk is 1 GB, and what the race detector copes with in the same time.
func bulk() int64 {
	if raceEnabled {
		return 256 << 20
	}
	return 1 << 30
}

// Every byte of 1 GB arrives, both ways at the same time on one connection,
// and splice(2) moved most of them.
func TestBulkBothWays(t *testing.T) {
	n := bulk()
	up, down := newStream(1), newStream(2)
	verified := make(chan error, 1)
	s := Serve(t, func(c Conn) {
		sent := make(chan error, 1)
		go func() {
			err := down.Send(c, n)
			c.CloseWrite()
			sent <- err
		}()
		err := up.Verify(c, n)
		if e := <-sent; err == nil {
			err = e
		}
		verified <- err
	})
	p := Start(t, oneUpstream("", "", s.Addr()))
	c := Dial(t, p.Addr("edge"))
	begin := time.Now()
	sent := make(chan error, 1)
	go func() {
		err := up.Send(c, n)
		c.CloseWrite()
		sent <- err
	}()
	if err := down.Verify(c, n); err != nil {
		t.Errorf("server to client: %v", err)
	}
	if err := <-sent; err != nil {
		t.Errorf("client: %v", err)
	}
	if err := <-verified; err != nil {
		t.Errorf("client to server: %v", err)
	}
	t.Logf("2 × %d MB in %v, %v of CPU", n>>20, time.Since(begin), cpuTime(t, p.Pid()))
	c.Close()
	if e := p.AccessLog(1)[0]; e.BytesIn != n || e.BytesOut != n {
		t.Errorf("logged %d bytes in, %d out, want %d", e.BytesIn, e.BytesOut, n)
	}
	m := p.Metrics()
	if got := m.Sum("edgeproxy_bytes_total", "listener", "edge"); got != float64(2*n) {
		t.Errorf("edgeproxy_bytes_total is %v, want %d", got, 2*n)
	}
	if got := m.Sum("edgeproxy_spliced_bytes_total", "listener", "edge"); got < float64(n) {
		t.Errorf("edgeproxy_spliced_bytes_total is %v of %d: splice was not used for bulk", got, 2*n)
	}
}

// Bytes are intact when reads and writes of many sizes meet a slow reader, so
// that the relay goes back and forth between copying, splicing and waiting.
func TestBulkThroughAllSizes(t *testing.T) {
	t.Parallel()
	const n = 64 * streamBlock
	content := newStream(3)
	s := Serve(t, echo)
	p := Start(t, oneUpstream("", "", s.Addr()))
	addr := p.Addr("edge")
	for _, size := range []int{1000, 4096, 16 << 10, 65537, 1 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			c := Dial(t, addr)
			sent := make(chan error, 1)
			go func() {
				r, w := io.Pipe()
				go func() { w.CloseWithError(content.Send(w, n)) }()
				_, err := io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{r}, make([]byte, size))
				c.CloseWrite()
				sent <- err
			}()
			if err := content.Verify(&unevenReader{c, 0}, n); err != nil {
				t.Error(err)
			}
			if err := <-sent; err != nil {
				t.Error(err)
			}
		})
	}
}

// unevenReader reads a few bytes now, many then.
type unevenReader struct {
	r io.Reader
	i int
}

func (u *unevenReader) Read(p []byte) (int, error) {
	sizes := [...]int{1 << 20, 100, 4096, 1 << 16, 7, 300_000}
	u.i++
	return u.r.Read(p[:min(len(p), sizes[u.i%len(sizes)])])
}
