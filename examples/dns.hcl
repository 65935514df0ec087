# DNS over UDP and TCP. A UDP session ends with its answer; one that has none
# ends by time. Clients that send too much are cut off, and so is what forged
# sources could have our servers send to a victim.

listener "udp" "dns" {
  address   = ":53"
  responses = 1
  upstream  = upstream.dns

  limits {
    rate_per_source = "500/s"
  }
  timeouts {
    idle = "5s"
  }
}

listener "tcp" "dns-tcp" { # truncated answers, zone transfers
  address  = ":53"
  upstream = upstream.dns

  timeouts {
    idle = "30s"
  }
}

upstream "dns" {
  server "a" { address = "10.0.0.1:53" }
  server "b" { address = "10.0.0.2:53" }

  health "udp" { # id 0x6470: ". IN NS?"; a resolver's answer without an error
    send_hex   = "6470 0100 0001 0000 0000 0000 00 0002 0001"
    expect_hex = "6470 8180"
    interval   = "2s"
    timeout    = "1s"
  }
}
