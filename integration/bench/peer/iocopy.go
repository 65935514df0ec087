package peer

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
)

// halfCloser is what *net.TCPConn and *tls.Conn have in common.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// ioCopy is the proxy one writes in Go in ten minutes: a goroutine for each
// direction and io.Copy, which splices between TCP connections. Its
// configuration has a line for each
//
//	listen ADDRESS
//	listen-tls ADDRESS CERTIFICATE KEY
//	listen-sni ADDRESS NAME
//	listen-udp ADDRESS
//	server ADDRESS
type ioCopy struct {
	servers []string
	failed  chan error
}

// RunIOCopy runs it.
func RunIOCopy(file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	p := &ioCopy{failed: make(chan error)}
	begin := map[net.Listener]func(client *net.TCPConn) (halfCloser, error){}
	var udp []*datagrams
	for line := range strings.Lines(string(b)) {
		words := strings.Fields(line)
		if len(words) < 2 {
			return fmt.Errorf("%s: %q is no listen or server line", file, line)
		}
		if words[0] == "server" {
			p.servers = append(p.servers, words[1])
			continue
		}
		if words[0] == "listen-udp" {
			d, err := listenDatagrams(words[1])
			if err != nil {
				return err
			}
			udp = append(udp, d)
			continue
		}
		l, err := net.Listen("tcp", words[1])
		if err != nil {
			return err
		}
		switch {
		case words[0] == "listen" && len(words) == 2:
			begin[l] = func(client *net.TCPConn) (halfCloser, error) { return client, nil }
		case words[0] == "listen-tls" && len(words) == 4:
			if begin[l], err = terminate(words[2], words[3]); err != nil {
				return err
			}
		case words[0] == "listen-sni" && len(words) == 3:
			begin[l] = func(client *net.TCPConn) (halfCloser, error) { return sniff(client, words[2]) }
		default:
			return fmt.Errorf("%s: %q is no listen or server line", file, line)
		}
	}
	if len(p.servers) == 0 || len(begin)+len(udp) == 0 {
		return fmt.Errorf("%s: needs a listen and a server line", file)
	}
	for l, begin := range begin {
		go p.serve(l, begin)
	}
	for _, d := range udp {
		go func() { p.failed <- d.serve(p.servers) }()
	}
	return <-p.failed
}

func (p *ioCopy) serve(l net.Listener, begin func(client *net.TCPConn) (halfCloser, error)) {
	for {
		client, err := l.Accept()
		if err != nil {
			p.failed <- err
			return
		}
		go func() {
			defer client.Close()
			c, err := begin(client.(*net.TCPConn))
			if err != nil {
				// Listeners are tried by connections that say nothing.
				if !errors.Is(err, io.EOF) {
					fmt.Fprintln(os.Stderr, err)
				}
				return
			}
			p.relay(c)
		}()
	}
}

func (p *ioCopy) relay(client halfCloser) {
	defer client.Close()
	conn, err := net.Dial("tcp", p.servers[rand.IntN(len(p.servers))])
	if err != nil {
		if !errors.Is(err, net.ErrClosed) {
			fmt.Fprintln(os.Stderr, err)
		}
		return
	}
	server := conn.(*net.TCPConn)
	defer server.Close()
	up := make(chan struct{})
	go func() {
		io.Copy(server, client)
		server.CloseWrite()
		close(up)
	}()
	io.Copy(client, server)
	client.CloseWrite()
	<-up
}

// terminate makes a function that begins TLS on a connection.
func terminate(certFile, keyFile string) (func(client *net.TCPConn) (halfCloser, error), error) {
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{
		Certificates:     []tls.Certificate{pair},
		MinVersion:       tls.VersionTLS13,
		CurvePreferences: []tls.CurveID{tls.X25519},
	}
	return func(client *net.TCPConn) (halfCloser, error) {
		c := tls.Server(client, config)
		return c, c.Handshake()
	}, nil
}

// sniff lets crypto/tls read the ClientHello, and gives it back to who reads
// the connection next.
func sniff(client *net.TCPConn, name string) (halfCloser, error) {
	var read bytes.Buffer
	asked := ""
	hello := errors.New("hello")
	err := tls.Server(readOnly{client, io.TeeReader(client, &read)}, &tls.Config{
		GetConfigForClient: func(i *tls.ClientHelloInfo) (*tls.Config, error) {
			asked = i.ServerName
			return nil, hello
		},
	}).Handshake()
	switch {
	case !errors.Is(err, hello):
		return nil, err
	case asked != name:
		return nil, fmt.Errorf("%q is not the name of a route", asked)
	}
	return &replayed{client, &read}, nil
}

// readOnly is a connection on which a handshake reads and says nothing.
type readOnly struct {
	net.Conn
	r io.Reader
}

func (c readOnly) Read(b []byte) (int, error)  { return c.r.Read(b) }
func (c readOnly) Write(b []byte) (int, error) { return len(b), nil }

// replayed is a connection of which some has been read. After that io.Copy may
// splice.
type replayed struct {
	*net.TCPConn
	read *bytes.Buffer
}

func (c *replayed) Read(b []byte) (int, error) {
	if c.read.Len() > 0 {
		return c.read.Read(b)
	}
	return c.TCPConn.Read(b)
}

func (c *replayed) WriteTo(w io.Writer) (int64, error) {
	n, err := c.read.WriteTo(w)
	if err != nil {
		return n, err
	}
	m, err := io.Copy(w, c.TCPConn)
	return n + m, err
}
