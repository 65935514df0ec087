# What "edgeproxy demo" runs: two listeners with three servers behind each, and
# one of UDP with two.

process {
  shutdown_timeout = "2s" # Ctrl-C waits so long for live sessions
}

log {
  format = "console"
}

access_log {
  output = "stderr"
  format = "console"
}

admin {
  address = "127.0.0.1:9901"
}

listener "tcp" "http" {
  address  = "127.0.0.1:8080"
  upstream = upstream.web
}

listener "tcp" "echo" {
  address  = "127.0.0.1:7000"
  upstream = upstream.echo
}

listener "udp" "ping" {
  address   = "127.0.0.1:7001"
  responses = 1 # answers to each datagram: then the session ends
  upstream  = upstream.ping
}

upstream "web" {
  balance = "round_robin"

  server "web-a" { address = "127.0.0.1:18081" }
  server "web-b" { address = "127.0.0.1:18082" }
  server "web-c" { address = "127.0.0.1:18083" }

  health "http" {
    path     = "/healthz"
    interval = "1s"
    timeout  = "500ms"
    rise     = 2
    fall     = 2
  }
}

upstream "echo" {
  balance = "least_conn"

  server "echo-a" { address = "127.0.0.1:17001" }
  server "echo-b" { address = "127.0.0.1:17002" }
  server "echo-c" { address = "127.0.0.1:17003" }

  health "tcp" {
    send     = "ping"
    expect   = "ping"
    interval = "1s"
    timeout  = "500ms"
    rise     = 2
    fall     = 2
  }
}

upstream "ping" {
  balance = "round_robin"

  server "ping-a" { address = "127.0.0.1:17101" }
  server "ping-b" { address = "127.0.0.1:17102" }

  health "udp" {
    send     = "check"
    expect   = "pong"
    interval = "1s"
    timeout  = "500ms"
    rise     = 2
    fall     = 2
  }
}
