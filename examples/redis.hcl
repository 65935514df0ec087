# A Redis primary with a replica that takes over: whoever says role:master.

listener "tcp" "redis" {
  address  = ["127.0.0.1:6380", "unix:/run/edgeproxy/redis.sock"]
  upstream = upstream.redis

  timeouts {
    idle = "off" # connection pools keep theirs open
  }
}

upstream "redis" {
  balance = "least_conn"

  server "one" { address = "10.0.0.21:6379" }
  server "two" { address = "10.0.0.22:6379" }

  health "tcp" {
    send     = "INFO replication\r\nQUIT\r\n"
    expect   = "role:master"
    interval = "1s"
    timeout  = "500ms"
    rise     = 1
    fall     = 2
  }

  # Clients of a primary that was demoted must not go on writing to it.
  on_down = "close"
}
