# Game servers: a player stays with a server, by whichever machine of ours he
# comes, and when a server is down only its own players move.

listener "udp" "game" {
  address  = ":27015"
  upstream = upstream.game

  limits {
    connections            = 50000
    connections_per_source = 16 # players behind one address
    rate_per_source        = "10/s"
    bandwidth_in           = "256KB/s"
    bandwidth_out          = "1MB/s"
  }
  timeouts {
    idle     = "60s"
    lifetime = "12h"
  }
}

upstream "game" {
  balance = "maglev"
  hash_on = "source"
  on_down = "close" # another server does not know the match

  server "one" { address = "10.0.0.1:27015" }
  server "two" { address = "10.0.0.2:27015" }
  server "big" {
    address = "10.0.0.3:27015"
    weight  = 2
  }

  health "udp" { # A2S_INFO; the answer is the information, or a challenge
    send_hex   = "ffffffff 54 536f7572636520456e67696e6520517565727900"
    expect_hex = "ffffffff"
    interval   = "5s"
  }
}
