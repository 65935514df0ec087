package peer

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
)

// RunIOCopy is the proxy one writes in Go in ten minutes: a goroutine for each
// direction, io.Copy, which splices between TCP connections.
func RunIOCopy(file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var servers []string
	failed := make(chan error)
	var listeners []net.Listener
	for line := range strings.Lines(string(b)) {
		word, address, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch word {
		case "listen":
			l, err := net.Listen("tcp", address)
			if err != nil {
				return err
			}
			listeners = append(listeners, l)
		case "server":
			servers = append(servers, address)
		default:
			return fmt.Errorf("%s: %q is neither listen nor server", file, word)
		}
	}
	if len(servers) == 0 || len(listeners) == 0 {
		return fmt.Errorf("%s: needs a listen and a server line", file)
	}
	for _, l := range listeners {
		go func() {
			for {
				client, err := l.Accept()
				if err != nil {
					failed <- err
					return
				}
				go relay(client.(*net.TCPConn), servers[rand.IntN(len(servers))])
			}
		}()
	}
	return <-failed
}

func relay(client *net.TCPConn, address string) {
	defer client.Close()
	conn, err := net.Dial("tcp", address)
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
