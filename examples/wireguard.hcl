# WireGuard gateways: a peer stays with its gateway for as long as it sends, and
# longer than between two keepalives. Nothing answers strangers, so whether a
# gateway is up is asked of something else on it.

listener "udp" "wireguard" {
  address  = [":51820", ":443"]
  upstream = upstream.gateways

  timeouts {
    idle = "3m" # WireGuard gives up a session after that
  }
}

upstream "gateways" {
  balance = "maglev"
  hash_on = "source_port" # peers behind one address are spread

  server "a" { address = "10.0.0.1:51820" }
  server "b" { address = "10.0.0.2:51820" }

  health "http" {
    port = 8080
    path = "/ready"
  }
}
