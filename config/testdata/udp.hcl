# What UDP listeners do not have, and what theirs must look like.
tls "public" {
  certificate { dir = "certs" }
}

listener "udp" "wrong" {
  address    = ["unix:/run/a.sock", ":53", "example.com:53", ":0x"] # error: "unix:/run/a.sock" is a unix socket; UDP is listened for on IP addresses Allowed: an address or a list of them, ":443", "0.0.0.0:443", "[::1]:443", "192.0.2.1:8000-8010" or "systemd:NAME". # error: cannot listen on a host name # error: port
  upstream   = upstream.web
  tls        = tls.public # error: there is no attribute "tls" in a listener "udp" block TLS is terminated on TCP listeners. QUIC is passed through, and can be routed by sni and alpn: see docs/udp.md.
  half_close = "1m" # error: there is no attribute "half_close"
  responses  = -1 # error: responses: -1 is out of range
  requests   = 1.5 # error: requests: 1.5 is not a whole number
  tcp { # error: there is no block "tcp" in a listener "udp" block It tunes the sockets of a listener "tcp".
    backlog = 5
  }
  limits {
    handshakes     = 5 # error: there is no attribute "handshakes" in a limits block Handshakes of TLS are those of a listener "tcp".
    handshake_rate = "5/s" # error: there is no attribute "handshake_rate"
  }
  timeouts {
    half_close = "1m" # error: there is no attribute "half_close" in a timeouts block A UDP session has no end that one side could announce
    sniff      = "1s" # error: there is no attribute "sniff" in a timeouts block Each datagram is whole
  }
  udp {
    receive_buffer = "4096" # error: receive_buffer: "4096" is not a size It has no unit; write "4096B" for bytes.
    send_buffer    = "2GiB" # error: "2GiB" is out of range Allowed: a size, "4KiB" to "1GiB".
    offload        = "yes" # error: neither true nor false
    backlog        = 5 # error: there is no attribute "backlog"
  }
  quic {
    server_id_length = 16 # error: 16 is out of range Allowed: a whole number, 0 to 15.
  }
  accept_proxy_protocol { from = [] } # error: from: the list is empty
}

listener "udp" "routes" {
  address = ":1053"
  route "tls" {
    match {
      sni  = ["example.com"]
      host = ["example.com"] # error: there is no attribute "host" in a match block It looks at HTTP/1 requests, which come over TCP. HTTP/3 can be routed by sni and alpn.
      path = ["/"] # error: there is no attribute "path"
    }
    match {
      protocol    = ["quic", "tls", "http", "dtls", "mysql"] # error: protocol: "tls" does not come over UDP Write it in a listener "tcp" # error: "http" does not come over UDP # error: "dtls" is not known Allowed: a protocol or a list of them, "quic". # error: a MySQL server speaks first
      client_name = ["a"] # error: there is no attribute "client_name" in a match block It is in the client's certificate
    }
    tls      = tls.public # error: there is no attribute "tls" in a route block TLS is terminated on TCP listeners.
    upstream = upstream.web
  }
  route "quic" {
    match { protocol = ["quic"] }
    upstream = upstream.web
  }
  route "h3" { # warning: route "h3" is never reached: route "quic" at
    match { alpn = ["h3"] }
    upstream = upstream.web
  }
}

listener "tcp" "elsewhere" {
  address   = ":1054"
  upstream  = upstream.web
  responses = 1 # error: there is no attribute "responses" in a listener "tcp" block It counts datagrams: it is for a listener "udp".
  requests  = 1 # error: there is no attribute "requests"
  udp {} # error: there is no block "udp" in a listener "tcp" block It tunes the sockets of a listener "udp".
  quic {} # error: there is no block "quic" in a listener "tcp" block QUIC comes over UDP
}

upstream "web" {
  server "a" {
    address        = "10.0.0.1:443"
    quic_server_id = "0a1" # error: quic_server_id: "0a1" is not 1 to 15 bytes in hexadecimal digits
  }
  server "b" {
    address        = "10.0.0.2:443"
    quic_server_id = "" # error: "" is not 1 to 15 bytes
  }
  server "c" {
    address        = "10.0.0.3:443"
    quic_server_id = "00112233445566778899aabbccddeeff" # error: is not 1 to 15 bytes
  }
  health "udp" {
    send           = "a"
    send_hex       = "61" # error: send and send_hex together
    proxy_protocol = "v1" # error: proxy_protocol: "v1" is not known Did you mean "v2"?
    path           = "/" # error: there is no attribute "path" in a health "udp" block
  }
}
