package integration

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"edgeproxy/internal/testcert"
)

// Addresses within a tunnel.
const tunnelServer, tunnelClient = "10.8.0.1", "10.8.0.2"

// needTun is for programs that make a network interface of their own.
func needTun(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		missing(t, "/dev/net/tun")
	}
	f.Close()
}

// awaitTunnel waits until a datagram gets through, and asserts that then none
// is lost.
func (h *threeHosts) awaitTunnel() {
	t := h.client.t
	t.Helper()
	ping := need(t, "ping")
	out := ""
	eventually(t, func() (ok bool) {
		var err error
		out, err = h.client.try(ping, "-c", "1", "-W", "1", tunnelServer)
		return err == nil
	}, func() string { return "an answer through the tunnel\n" + out })
	if out, err := h.client.try(ping, "-c", "10", "-i", "0.02", "-W", "3", tunnelServer); err != nil || !strings.Contains(out, " 0% packet loss") {
		t.Errorf("%v\n%s", err, out)
	}
}

// transfer sends bytes through the tunnel, by TCP, both ways at once. It calls
// halfway when half of them have come to the client.
func (h *threeHosts) transfer(n int64, halfway func()) {
	t := h.client.t
	t.Helper()
	var ln net.Listener
	if err := h.server.do(func() (err error) {
		ln, err = net.Listen("tcp", tunnelServer+":0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	content := newStream(8)
	served := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err == nil {
			served <- bothWays(c, content, n, nil)
		} else {
			served <- err
		}
	}()
	var c net.Conn
	if err := h.client.do(func() (err error) {
		c, err = net.Dial("tcp", ln.Addr().String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(bothWays(c, content, n, once(n/2, halfway)), <-served); err != nil {
		t.Fatal(err)
	}
}

// bothWays sends n bytes and takes as many.
func bothWays(c net.Conn, content *stream, n int64, at func(int64)) error {
	defer c.Close()
	c.SetDeadline(soon().Add(patience))
	sent := make(chan error, 1)
	go func() {
		err := content.Send(c, n)
		sent <- errors.Join(err, c.(*net.TCPConn).CloseWrite())
	}()
	return errors.Join(content.Verify(&watched{r: c, at: at}, n), <-sent)
}

// A tunnel of OpenVPN goes on over reloads, and comes back when its server was
// started again.
func TestNetnsOpenVPN(t *testing.T) {
	t.Parallel()
	needTun(t)
	openvpn := need(t, "openvpn")
	h := newThreeHosts(t)
	ca := testcert.NewCA(t, "tunnel")
	dir := shortTempDir(t)
	ca.Write(t, dir, "ca")
	ca.Server(t, "server").Write(t, dir, "server")
	ca.Client(t, "client").Write(t, dir, "client")
	peer := func(n *namespace, name, args string) *daemon {
		return n.daemon(openvpn, append(strings.Fields(args), "--dev", "tun0", "--dev-type", "tun", "--proto", "udp4", "--disable-dco",
			"--ca", filepath.Join(dir, "ca.pem"), "--cert", filepath.Join(dir, name+".crt"), "--key", filepath.Join(dir, name+".key"),
			"--ping", "1", "--persist-tun", "--verb", "3")...)
	}
	serve := func() *daemon {
		d := peer(h.server, "server", fmt.Sprintf("--tls-server --dh none --local %s --port 1194 --ifconfig %s %s", server4, tunnelServer, tunnelClient))
		d.await("UDPv4 link remote: [AF_UNSPEC]")
		return d
	}
	server := serve()
	body := udpListener(`timeouts { idle = "3s" }`, "", []string{clientEdge4 + ":1194"}, server4+":1194")
	p := Start(t, body, WithStart(h.edge.start))
	client := peer(h.client, "client", fmt.Sprintf("--tls-client --remote %s 1194 --nobind --connect-retry 1 1 --ping-restart 2 --ifconfig %s %s", clientEdge4, tunnelClient, tunnelServer))
	client.await("Initialization Sequence Completed")
	h.awaitTunnel()
	sessions := p.Metrics().Sum("edgeproxy_sessions_total", "listener", "edge")
	h.transfer(16*streamBlock, func() {
		for i := range 5 {
			p.Reload(body + fmt.Sprintf("listener \"tcp\" \"other\" {\n address = \"127.0.0.1:%d\"\n upstream = upstream.app\n}\n", 8000+i))
		}
		p.Reload(body)
	})
	if n := p.Metrics().Sum("edgeproxy_sessions_total", "listener", "edge") - sessions; n != 0 {
		t.Errorf("%v sessions began during the reloads", n)
	}
	server.stop()
	serve()
	h.awaitTunnel()
	h.transfer(4*streamBlock, nil)
	client.stop()
	if drops := p.Metrics().Drops("edge"); drops["too_big"]+drops["limited"] > 0 {
		t.Errorf("dropped: %v", drops)
	}
}

// A tunnel of WireGuard, whose sessions are told by their keys: it goes on
// over reloads, and when edgeproxy is killed and started again.
func TestNetnsWireGuard(t *testing.T) {
	t.Parallel()
	needTun(t)
	wireguard, wg := need(t, "wireguard-go"), need(t, "wg")
	h := newThreeHosts(t)
	dir := shortTempDir(t)
	var public []string
	for _, name := range []string{"server", "client"} {
		key, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		testcert.WriteFile(t, dir, name, []byte(base64.StdEncoding.EncodeToString(key.Bytes())))
		public = append(public, base64.StdEncoding.EncodeToString(key.PublicKey().Bytes()))
	}
	// wg(8) finds an interface by a socket that is named after it, whatever the
	// network it is in.
	tun := func(n *namespace, name, addr, peer string, args ...string) {
		dev := fmt.Sprintf("%s%d", name[:1], n.number())
		d := n.daemon(wireguard, "-f", dev)
		socket := "/var/run/wireguard/" + dev + ".sock"
		eventually(t, func() bool { _, err := os.Stat(socket); return err == nil }, d.output)
		n.run(wg, append([]string{"set", dev, "private-key", filepath.Join(dir, name), "peer", peer, "allowed-ips", "10.8.0.0/24"}, args...)...)
		if name == "server" {
			n.run(wg, "set", dev, "listen-port", "51820")
		}
		n.ip("addr add " + addr + "/24 dev " + dev)
		n.ip("link set " + dev + " up")
	}
	tun(h.server, "server", tunnelServer, public[1])
	body := udpListener(`timeouts { idle = "3s" }`, "", []string{clientEdge4 + ":51820"}, server4+":51820")
	p := Start(t, body, WithStart(h.edge.start))
	tun(h.client, "client", tunnelClient, public[0], "endpoint", clientEdge4+":51820")
	h.awaitTunnel()
	sessions := p.Metrics().Sum("edgeproxy_sessions_total", "listener", "edge")
	h.transfer(16*streamBlock, func() {
		for range 5 {
			p.Reload(body)
		}
	})
	if n := p.Metrics().Sum("edgeproxy_sessions_total", "listener", "edge") - sessions; n != 0 {
		t.Errorf("%v sessions began during the reloads", n)
	}
	p.Kill()
	p = Start(t, body, WithStart(h.edge.start))
	h.awaitTunnel()
	h.transfer(4*streamBlock, nil)
}

// number is one that no other namespace has.
func (n *namespace) number() int {
	var tid int
	if _, err := fmt.Sscanf(n.path[strings.Index(n.path, "/task/"):], "/task/%d", &tid); err != nil {
		n.t.Fatal(err)
	}
	return tid
}
