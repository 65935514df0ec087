# What does not go together in the upstreams of UDP listeners.
listener "udp" "dns" {
  address = ":53"
  quic { server_id_length = 2 }
  route "some" {
    match { source = ["10.0.0.0/8"] }
    split { upstream = upstream.streams }
  }
  route "rest" { upstream = upstream.ids }
}
listener "udp" "none" {
  address  = ":54"
  upstream = upstream.ids
}
listener "tcp" "dns-tcp" {
  address  = ":53"
  upstream = upstream.streams
}

upstream "streams" {
  proxy_protocol = "v1" # error: version 1 of the PROXY protocol, and listener "udp" "dns" at testdata/udp-upstreams.hcl:2:1 sends datagrams there Datagrams can only have version 2: write "v2".
  server "a" { address = "unix:/run/dns.sock" } # error: server "a" is a unix socket, and listener "udp" "dns" at testdata/udp-upstreams.hcl:2:1 sends datagrams there
  tls { # error: upstream "streams" encrypts by TLS, and listener "udp" "dns" at testdata/udp-upstreams.hcl:2:1 sends datagrams there
    server_name = "a"
  }
}

upstream "ids" {
  server "a" {
    address        = "10.0.0.1:443"
    quic_server_id = "0a1b" # warning: quic_server_id has no effect for listener "none" at testdata/udp-upstreams.hcl:11:1, which looks for none Write there: quic { server_id_length = 2 }
  }
  server "b" {
    address        = "10.0.0.2:443"
    quic_server_id = "0A 1B" # error: quic_server_id 0a1b is that of server "a" at testdata/udp-upstreams.hcl:29:3, too # warning: has no effect for listener "none"
  }
  server "c" {
    address        = "10.0.0.3:443"
    quic_server_id = "0a" # error: quic_server_id has 1 byte, and listener "dns" looks for 2 bytes at testdata/udp-upstreams.hcl:4:29 All servers of a listener have ids of one length. # warning: Write there: quic { server_id_length = 1 }
  }
}
