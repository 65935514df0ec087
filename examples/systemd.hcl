# Sockets opened by systemd: the proxy needs no privileges for port 443, and
# connections queue while it restarts. The unit edgeproxy.socket has
#
#   [Socket]
#   ListenStream=443
#   FileDescriptorName=web
#   Backlog=65535

log {
  format = "console"
  level  = "info"
}

listener "tcp" "web" {
  address  = "systemd:web"
  upstream = upstream.app
}

upstream "app" {
  server "a" { address = "127.0.0.1:8443" }
  server "b" { address = "127.0.0.1:8444" }
  health "tcp" { interval = "1s" }
}
