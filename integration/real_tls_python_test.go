package integration

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// Each check prints its name when it has passed.
const pythonTLS = `
import asyncio, hashlib, os, socket, ssl, sys
port, cut, ca = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

def context(version):
    c = ssl.create_default_context(cafile=ca)
    c.minimum_version = c.maximum_version = version
    return c

def connect(version, to=port):
    s = socket.create_connection(("127.0.0.1", to), 30)
    return context(version).wrap_socket(s, server_hostname="app.test", suppress_ragged_eofs=False)

# unwrap() sends close_notify and awaits that of the other side; the echo's
# server has then read the end and closed.
def unwrap(version):
    s = connect(version)
    s.sendall(b"hello")
    assert s.recv(5, ) == b"hello"
    raw = s.unwrap()
    assert raw.recv(1) == b""
    raw.close()

# The server resets after 100 000 bytes: no clean end must be seen.
def truncation(version):
    s = connect(version, cut)
    s.sendall(b"go")
    n = 0
    try:
        while True:
            b = s.recv(65536)
            n += len(b)
            assert b, "a clean end after %d bytes" % n
    except (ssl.SSLEOFError, ConnectionResetError):
        pass
    s.close()

def small_writes(version):
    s = connect(version)
    for i in range(300):
        s.sendall(bytes([i & 255]) * (i + 1))
    want = sum(range(1, 301))
    got = 0
    while got < want:
        got += len(s.recv(1 + got % 97))
    s.unwrap().close()

async def streams(version):
    async def one(i):
        r, w = await asyncio.open_connection("127.0.0.1", port, ssl=context(version), server_hostname="app.test")
        data = os.urandom(1 << 20)
        async def send():
            for n in range(0, len(data), 50000):
                w.write(data[n:n+50000])
                await w.drain()
        task = asyncio.create_task(send())
        assert await r.readexactly(len(data)) == data
        await task
        w.close()
        await w.wait_closed()
    await asyncio.gather(*[one(i) for i in range(20)])

for version in ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3:
    for check in unwrap, truncation, small_writes:
        check(version)
        print(check.__name__, version.name)
    asyncio.run(streams(version))
    print("streams", version.name)
`

// Python's ssl: blocking and asyncio.
func TestRealTLSPython(t *testing.T) {
	t.Parallel()
	l := newTLSLab(t)
	p := Start(t, l.edge(Serve(t, echo).Addr()))
	cut := Start(t, l.edge(Serve(t, func(c Conn) {
		c.Read(make([]byte, 2))
		c.Write(make([]byte, 100_000))
		reset(c)
	}).Addr()))
	out := tool(t, needPython(t, "ssl"), writeFile(t, "client.py", pythonTLS), splitPort(t, p.Addr("edge")), splitPort(t, cut.Addr("edge")), l.caFile())
	for _, version := range []string{"TLSv1_2", "TLSv1_3"} {
		for _, check := range []string{"unwrap", "truncation", "small_writes", "streams"} {
			want(t, out, check+" "+version)
		}
	}
	p.assertEnds("edge", "client_closed", "server_closed")
	cut.assertEnds("edge", "server_reset")
}

const pythonSockets = `
import asyncio, os, ssl, sys, aiohttp
async def one(session, url, ready, everyone):
    async with session.ws_connect(url, max_msg_size=1 << 26) as ws:
        good = 0
        async def turn(size):
            data = os.urandom(size)
            await ws.send_bytes(data)
            return (await ws.receive_bytes()) == data
        good += await turn(100)
        ready.append(1)
        if len(ready) == n:
            everyone.set()
        await everyone.wait()  # all of them are open at one time
        for size in [0, 1, 125, 65536, 100000] + [200] * 15:
            good += await turn(size)
    return good
async def main():
    everyone, ready = asyncio.Event(), []
    context = ssl.create_default_context(cafile=sys.argv[2])
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context, limit=0)) as session:
        print(sum(await asyncio.gather(*[one(session, sys.argv[1], ready, everyone) for _ in range(n)])))
n = 200
asyncio.run(main())
`

// Web sockets over TLS to applications that know nothing of it: 200 at a time.
func TestRealTLSPythonWebSockets(t *testing.T) {
	t.Parallel()
	for module, source := range map[string]string{"tornado": tornadoServer, "aiohttp": aiohttpServer} {
		t.Run(module, func(t *testing.T) {
			t.Parallel()
			client := needPython(t, "aiohttp")
			port := FreePorts(t, 1)
			startReal(t, local(port), nil, needPython(t, module), writeFile(t, "server.py", source), strconv.Itoa(port))
			l := newTLSLab(t)
			p := Start(t, l.edge(local(port)))
			out := tool(t, client, writeFile(t, "client.py", pythonSockets), fmt.Sprintf("wss://%s/ws", p.Addr("edge")), l.caFile())
			if got := strings.TrimSpace(out); got != "4200" {
				t.Errorf("%s messages came back, want 4200", got)
			}
			p.assertEnds("edge", "client_closed", "server_closed", "client_reset")
		})
	}
}
