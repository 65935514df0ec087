# What has no effect over UDP, and by hash_on.
listener "udp" "plain" {
  address  = ":1001"
  upstream = upstream.names
}
listener "udp" "quic" {
  address = ":1002"
  route "quic" {
    match { protocol = ["quic"] }
    upstream = upstream.names
  }
}
listener "tcp" "tcp" {
  address = ":1001"
  route "ids" {
    match { source = ["10.0.0.0/8"] }
    upstream = upstream.ids
  }
  route "names" { upstream = upstream.names }
}

upstream "names" {
  balance = "maglev"
  hash_on = "sni" # warning: no route of listener "plain" at testdata/udp-warnings.hcl:2:1 looks at server names Sessions of that listener are spread by the client's address. A route with match { protocol = ["quic"] } # warning: no route of listener "tcp" at
  server "a" { address = "10.0.0.1:443" }
}

upstream "ids" {
  balance = "least_conn"
  hash_on = "source_port" # warning: hash_on has no effect with balance = "least_conn" It is the key of balance = "maglev" and "ring_hash".
  server "a" {
    address        = "10.0.0.1:443"
    quic_server_id = "01" # warning: quic_server_id has no effect: no listener "udp" uses upstream "ids" QUIC comes over UDP.
  }
}
