# HTTP/3 beside HTTP/1 and HTTP/2 on port 443: both are passed through by name,
# and every byte is encrypted between client and server. The servers announce
# HTTP/3 to clients of TCP by "Alt-Svc: h3=\":443\"".

listener "tcp" "https" {
  address = ":443"

  route "api" {
    match { sni = ["api.example.com"] }
    upstream = upstream.api
  }
  route "web" {
    match { sni = ["example.com", "*.example.com"] }
    upstream = upstream.web
  }
}

listener "udp" "h3" {
  address = ":443"
  quic { server_id_length = 2 } # a client that moves keeps its server

  limits {
    connections     = 100000
    rate_per_source = "200/s"
  }

  route "api" {
    match {
      sni  = ["api.example.com"]
      alpn = ["h3"]
    }
    upstream = upstream.api
  }
  route "web" {
    match { sni = ["example.com", "*.example.com"] }
    upstream = upstream.web
  }
  # QUIC of versions that have still to come: the servers negotiate. What is
  # not QUIC at all they drop.
  route "other" { upstream = upstream.web }
}

upstream "api" {
  server "a" {
    address        = "10.0.0.1:443"
    quic_server_id = "0001"
  }
  server "b" {
    address        = "10.0.0.2:443"
    quic_server_id = "0002"
  }
}

upstream "web" {
  server "c" {
    address        = "10.0.0.3:443"
    quic_server_id = "0003"
  }
  server "d" {
    address        = "10.0.0.4:443"
    quic_server_id = "0004"
  }
  health "tcp" {} # what serves HTTP/3 serves HTTPS, too
}
