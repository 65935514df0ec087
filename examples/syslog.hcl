# Syslog: nobody answers, and one sender may send most of it. So a session is
# cut after 1000 messages, and the next ones go to another server.

listener "udp" "syslog" {
  address  = ":514"
  allow    = ["10.0.0.0/8"]
  requests = 1000
  upstream = upstream.collectors

  udp {
    receive_buffer = "64MiB" # bursts; see net.core.rmem_max
  }
}

upstream "collectors" {
  balance = "least_conn"

  server "a" { address = "10.1.0.1:514" }
  server "b" { address = "10.1.0.2:514" }

  health "tcp" { port = 6514 } # the collectors' port for TLS
}
