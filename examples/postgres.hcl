# PostgreSQL: the primary for writers, replicas for readers, with the primary
# as the readers' last resort.

locals {
  # SSLRequest (PostgreSQL protocol, "Message Formats"): the server answers
  # with one byte, S or N, and logs no failed login.
  ssl_request = "00 00 00 08 04 d2 16 2f"
}

listener "tcp" "writers" {
  address  = ":5432"
  allow    = ["10.0.0.0/8", "fd00::/8"]
  upstream = upstream.primary
  timeouts { idle = "8h" }
}

listener "tcp" "readers" {
  address  = ":5433"
  allow    = ["10.0.0.0/8", "fd00::/8"]
  upstream = upstream.replicas
  timeouts { idle = "8h" }
}

upstream "primary" {
  server "pg1" {
    address         = "pg1.example.com:5432"
    max_connections = 400
  }
  # Patroni's REST API says who is primary.
  health "http" {
    path          = "/primary"
    port          = 8008
    expect_status = 200
  }
  on_down = "close"
  retries = -1
}

upstream "replicas" {
  balance = "least_conn"
  server "pg2" { address = "pg2.example.com:5432" }
  server "pg3" { address = "pg3.example.com:5432" }
  server "pg1" {
    address = "pg1.example.com:5432"
    tier    = 1
  }
  health "tcp" {
    send_hex = local.ssl_request
    interval = "2s"
    timeout  = "1s"
  }
}
