package traffic

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net/netip"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
)

// QUIC is the one thing that neither end does by itself: both are quic-go, as it
// comes, with a goroutine for each stream. A request is a stream of its own.

const quicProtocol = "bench"

func quicConfig() *quic.Config {
	return &quic.Config{
		HandshakeIdleTimeout: 5 * time.Second,
		MaxIdleTimeout:       stalled,
	}
}

// ServeQUIC answers requests on address until the process ends.
func ServeQUIC(address netip.AddrPort, certFile, keyFile string) error {
	l, err := listenQUIC(address, certFile, keyFile)
	if err != nil {
		return err
	}
	return serveQUIC(l)
}

func listenQUIC(address netip.AddrPort, certFile, keyFile string) (*quic.Listener, error) {
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	l, err := quic.ListenAddr(address.String(), &tls.Config{
		Certificates:     []tls.Certificate{pair},
		MinVersion:       tls.VersionTLS13,
		CurvePreferences: []tls.CurveID{tls.X25519},
		NextProtos:       []string{quicProtocol},
	}, quicConfig())
	if err != nil {
		return nil, fmt.Errorf("backend: QUIC on %s: %w", address, err)
	}
	return l, nil
}

func serveQUIC(l *quic.Listener) error {
	for {
		c, err := l.Accept(context.Background())
		if err != nil {
			return fmt.Errorf("backend: %w", err)
		}
		go func() {
			for {
				s, err := c.AcceptStream(context.Background())
				if err != nil {
					return // the client has gone
				}
				go func() {
					if err := answerStream(s); err != nil && c.Context().Err() == nil {
						log.Print("backend: ", err) // the client sees the stream end
					}
				}()
			}
		}()
	}
}

func answerStream(s *quic.Stream) error {
	defer s.Close()
	b, err := io.ReadAll(io.LimitReader(s, maxRequest))
	if err != nil {
		return err
	}
	h, whole, err := parseRequest(b)
	if err == nil && !whole {
		err = io.ErrUnexpectedEOF
	}
	for pos := int64(0); err == nil && pos < int64(h.answer); {
		var n int
		n, err = s.Write(patternAt(h.offset, pos)[:min(chunk, int64(h.answer)-pos)])
		pos += int64(n)
	}
	return err
}

// quicClient makes requests over QUIC, one at a time on each connection.
type quicClient struct {
	target string
	conns  []*quic.Conn

	mu     sync.Mutex
	result *Result
	last   time.Time // when the last answer was whole
}

func newQUICClient(target netip.AddrPort) *quicClient {
	return &quicClient{target: target.String()}
}

func (c *quicClient) close() {
	for _, conn := range c.conns {
		conn.CloseWithError(0, "")
	}
}

func (c *quicClient) open(n int, request int, answer int64) error {
	for range n {
		ctx, cancel := context.WithTimeout(context.Background(), stalled)
		conn, err := quic.DialAddr(ctx, c.target, quicClientConfig(), quicConfig())
		cancel()
		if err != nil {
			return fmt.Errorf("QUIC handshake: %w", err)
		}
		c.conns = append(c.conns, conn)
		if err := askStream(conn, request, answer, make([]byte, chunk)); err != nil {
			return err
		}
	}
	return nil
}

func quicClientConfig() *tls.Config {
	config := ClientConfig()
	config.NextProtos = []string{quicProtocol}
	return config
}

func (c *quicClient) do(r Run) (*Result, error) {
	if r.Rate > 0 {
		return nil, errors.New("requests over QUIC are never paced")
	}
	c.result = &Result{}
	began := time.Now()
	c.last = began
	var all sync.WaitGroup
	for _, conn := range c.conns {
		all.Go(func() {
			buf := make([]byte, chunk)
			for first := true; first || time.Since(began) < r.Duration; first = false {
				at := time.Now()
				if err := askStream(conn, r.Request, r.Answer, buf); err != nil {
					c.mu.Lock()
					defer c.mu.Unlock()
					c.result.Errors++
					c.result.FirstError = err.Error()
					return
				}
				c.answered(time.Since(at), r.Answer)
			}
		})
	}
	all.Wait()
	c.result.Elapsed = c.last.Sub(began)
	return c.result, nil
}

func (c *quicClient) answered(took time.Duration, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = time.Now()
	c.result.Requests++
	c.result.Bytes += uint64(bytes)
	c.result.Latency.Record(took)
}

// askStream makes one request and compares every sixteenth read of the answer.
func askStream(conn *quic.Conn, request int, answer int64, buf []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), stalled)
	defer cancel()
	s, err := conn.OpenStreamSync(ctx)
	if err != nil {
		return err
	}
	h := header{size: uint32(request), answer: uint64(answer), offset: uint32(answer % patternPeriod)}
	if _, err := s.Write(appendRequest(nil, h)); err != nil {
		return err
	}
	if err := s.Close(); err != nil {
		return err
	}
	got := int64(0)
	for reads := 0; ; reads++ {
		n, err := s.Read(buf)
		if reads%16 == 0 && !bytes.Equal(buf[:n], patternAt(h.offset, got)[:n]) {
			return fmt.Errorf("an answer has wrong bytes between %d and %d", got, got+int64(n))
		}
		got += int64(n)
		switch {
		case err == io.EOF && got == answer:
			return nil
		case err != nil || got > answer:
			return fmt.Errorf("after %d of %d bytes: %w", got, answer, err)
		}
	}
}

// AskQUIC makes one request over a new QUIC connection.
func AskQUIC(address string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn, err := quic.DialAddr(ctx, address, quicClientConfig(), quicConfig())
	if err != nil {
		return err
	}
	defer conn.CloseWithError(0, "")
	return askStream(conn, 100, 256, make([]byte, 1024))
}
