# Unix sockets on both sides. A leading @ is Linux's abstract namespace, which
# leaves no file behind.

admin {
  address = "unix:/run/edgeproxy/admin.sock"
}

listener "tcp" "front" {
  address  = ["unix:/run/edgeproxy/web.sock", "unix:@edgeproxy-web", "127.0.0.1:8080"]
  upstream = upstream.gunicorn
}

upstream "gunicorn" {
  balance = "round_robin"
  server "a" { address = "unix:/run/app/a.sock" }
  server "b" { address = "unix:/run/app/b.sock" }
  server "c" { address = "unix:@app-c" }
  health "http" {
    host = "app.internal"
    path = "/healthz"
  }
}
