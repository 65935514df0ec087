# Long-lived WebSocket connections, spread over many Python processes:
# uvicorn, one process per port, on two machines.

locals {
  machines  = ["10.0.0.11", "10.0.0.12"]
  processes = 16
  ports     = range(8001, 8001 + local.processes)

  servers = {
    for s in flatten([
      for m, ip in local.machines : [
        for port in local.ports : { name = format("m%d-%d", m + 1, port), address = "${ip}:${port}" }
      ]
    ]) : s.name => s.address
  }
}

process {
  max_connections  = 500000
  shutdown_timeout = "10m" # WebSockets have no natural end; give clients time to move
}

access_log {
  output = "/var/log/edgeproxy/access.log"
}

admin {
  address = "127.0.0.1:9901"
}

listener "tcp" "websockets" {
  address  = ":8000"
  upstream = upstream.uvicorn

  limits {
    connections_per_source = 500
    rate_per_source        = "50/s"
  }
  timeouts {
    idle       = "2h" # uvicorn's own pings come every 20 s
    half_close = "10s"
  }
  tcp {
    keepalive    = "1m"
    user_timeout = "90s" # phones vanish without a word
  }
}

upstream "uvicorn" {
  balance = "least_conn" # sessions live long: what counts is who has how many now

  dynamic "server" {
    for_each = local.servers
    labels   = [server.key]
    content {
      address         = server.value
      max_connections = 20000
    }
  }

  # More than 64 000 connections to one address and port need more than one
  # address to connect from.
  source = ["10.0.0.9", "10.0.0.10"]

  health "http" {
    path     = "/healthz"
    interval = "3s"
    timeout  = "1s"
  }
  panic_threshold = "30%"
}
