# What has no effect over UDP, or another one than meant.
listener "udp" "quic" {
  address = ":1002"
  quic { server_id_length = 1 }
  route "a" {
    match { sni = ["a.example.com"] }
    upstream = upstream.a
  }
  route "b" { upstream = upstream.b }
}
listener "tcp" "tcp" {
  address  = ":1001"
  upstream = upstream.ids
}

upstream "a" {
  balance = "ring_hash"
  hash_on = "sni"
  server "a" {
    address        = "10.0.0.1:443"
    quic_server_id = "01"
  }
  server "b" {
    address        = "10.0.0.2:443"
    quic_server_id = "02"
  }
}
upstream "b" {
  server "a" {
    address        = "10.0.0.1:443"
    quic_server_id = "01"
  }
  server "c" {
    address        = "10.0.0.3:443"
    quic_server_id = "02" # warning: quic_server_id 02 is that of server "b" at testdata/udp-warnings.hcl:23:3, too, and listener "quic" uses both A client of this one
  }
}

upstream "ids" {
  balance = "least_conn"
  hash_on = "source_port" # warning: hash_on has no effect with balance = "least_conn" It is the key of balance = "maglev" and "ring_hash".
  server "a" {
    address        = "10.0.0.1:443"
    quic_server_id = "01" # warning: quic_server_id has no effect: no listener "udp" uses upstream "ids" QUIC comes over UDP.
  }
}

listener "udp" "endless" {
  address  = ":1003"
  upstream = upstream.plain
  timeouts {
    idle = "off" # warning: sessions of listener "endless" may never end Nobody says goodbye over UDP
  }
}
listener "udp" "long" {
  address  = ":1004"
  upstream = upstream.plain
  timeouts {
    idle     = "off"
    lifetime = "1d"
  }
}
upstream "plain" {
  server "a" { address = "10.0.0.9:53" }
}
