package demo

import (
	"io"
	"net"
	"sync"
)

// StartEcho starts a TCP server that sends back what it gets.
func StartEcho(name string) (*Backend, error) {
	b := &Backend{name: name}
	return b.start(overTCP(func(ln net.Listener) io.Closer {
		e := &echo{ln: ln, conns: make(map[net.Conn]struct{})}
		go e.accept()
		return e
	}))
}

type echo struct {
	ln net.Listener

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	closed bool
}

func (e *echo) accept() {
	for {
		c, err := e.ln.Accept()
		if err != nil {
			return // closed: nothing else fails on a loopback listener for long
		}
		if !e.add(c) {
			c.Close()
			return
		}
		go func() {
			defer e.remove(c)
			io.Copy(c, c) // an error ends the connection, as the end of input does
		}()
	}
}

func (e *echo) add(c net.Conn) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return false
	}
	e.conns[c] = struct{}{}
	return true
}

func (e *echo) remove(c net.Conn) {
	c.Close()
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.conns, c)
}

// Close ends the listener and every connection.
func (e *echo) Close() error {
	err := e.ln.Close()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	for c := range e.conns {
		c.Close()
	}
	return err
}
