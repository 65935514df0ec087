package integration

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Python's own web server, which says HTTP/1.0 and closes after each answer.
func TestRealPythonHTTPServer(t *testing.T) {
	t.Parallel()
	python := needPython(t, "http.server")
	const n = 32 * streamBlock
	content := newStream(12)
	dir := shortTempDir(t)
	var file bytes.Buffer
	content.Send(&file, n)
	if err := os.WriteFile(filepath.Join(dir, "file"), file.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	port := FreePorts(t, 1)
	startReal(t, local(port), nil, python, "-m", "http.server", "--bind", "127.0.0.1", "--directory", dir, strconv.Itoa(port))
	p := Start(t, oneUpstream("", "health \"http\" {\n path = \"/\"\n interval = \"200ms\"\n }", local(port)))
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 2 * patience}
	for range 5 {
		resp, err := client.Get("http://" + p.Addr("edge") + "/file")
		if err != nil {
			t.Fatal(err)
		}
		if err := content.Verify(resp.Body, n); err != nil {
			t.Error(err)
		}
		resp.Body.Close()
	}
	p.assertEnds("edge", "server_closed", "client_closed", "client_reset")
}

const tornadoServer = `
import sys, tornado.ioloop, tornado.web, tornado.websocket
class Echo(tornado.websocket.WebSocketHandler):
    def on_message(self, message):
        self.write_message(message, binary=isinstance(message, bytes))
app = tornado.web.Application([("/ws", Echo)], websocket_max_message_size=1 << 26)
app.listen(int(sys.argv[1]), "127.0.0.1")
tornado.ioloop.IOLoop.current().start()
`

const aiohttpServer = `
import sys
from aiohttp import web, WSMsgType
async def ws(request):
    s = web.WebSocketResponse(max_msg_size=1 << 26)
    await s.prepare(request)
    async for m in s:
        if m.type == WSMsgType.TEXT:
            await s.send_str(m.data)
        elif m.type == WSMsgType.BINARY:
            await s.send_bytes(m.data)
    return s
app = web.Application()
app.add_routes([web.get("/ws", ws)])
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
`

// The client is aiohttp's; what it prints is the number of messages that came
// back as they were sent.
const aiohttpClient = `
import asyncio, os, sys, aiohttp
async def one(session, url):
    good = 0
    async with session.ws_connect(url, max_msg_size=1 << 26) as ws:
        for size in [0, 1, 125, 126, 65535, 65536, 1 << 20, 5 << 20] + [200] * 100:
            data = os.urandom(size)
            await ws.send_bytes(data)
            good += (await ws.receive_bytes()) == data
        await ws.send_str("grüße")
        good += (await ws.receive_str()) == "grüße"
    return good
async def main():
    async with aiohttp.ClientSession() as session:
        print(sum(await asyncio.gather(*[one(session, sys.argv[1]) for _ in range(10)])))
asyncio.run(main())
`

// Web sockets of Python applications: small and large messages over
// connections that stay open both ways.
func TestRealPythonWebSockets(t *testing.T) {
	t.Parallel()
	for module, source := range map[string]string{"tornado": tornadoServer, "aiohttp": aiohttpServer} {
		t.Run(module, func(t *testing.T) {
			t.Parallel()
			client := needPython(t, "aiohttp")
			port := FreePorts(t, 1)
			script := writeFile(t, "server.py", source)
			startReal(t, local(port), nil, needPython(t, module), script, strconv.Itoa(port))
			p := Start(t, oneUpstream("", "", local(port)))
			out := tool(t, client, writeFile(t, "client.py", aiohttpClient), fmt.Sprintf("http://%s/ws", p.Addr("edge")))
			if got := strings.TrimSpace(out); got != "1090" {
				t.Errorf("%s messages came back, want 1090", got)
			}
			p.assertEnds("edge", "client_closed", "server_closed")
		})
	}
}
