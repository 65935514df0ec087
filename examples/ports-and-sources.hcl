# Routes by the client's address and by the port it came in on. The first
# route that matches wins.

listener "tcp" "edge" {
  address = [
    "0.0.0.0:443",
    "[::]:443",
    "0.0.0.0:8000-8099", # a range takes a socket for each port
  ]
  deny = ["192.0.2.0/24", "2001:db8:bad::/48"]

  limits {
    connections            = 100000
    connections_per_source = 200
    rate                   = "5000/s"
    rate_per_source        = "600/m"
    bandwidth_out          = "20MB/s"
  }

  route "office" {
    match { source = ["198.51.100.0/24", "2001:db8:1::/48"] }
    upstream = upstream.staging
  }

  # Within a match all conditions must hold; one match of several is enough.
  route "games" {
    match { port = "8000-8049" }
    match {
      port   = [8050, 8051, "8060-8069"]
      source = "203.0.113.0/24"
    }
    upstream = upstream.games
  }

  route "unused-ports" {
    match { port = "8000-8099" }
    reject = true
  }

  route "rest" {
    upstream = upstream.web
  }
}

upstream "web" {
  server "a" { address = "10.0.1.1:443" }
  server "b" { address = "10.0.1.2:443" }
  health "tcp" {}
}

upstream "staging" {
  server "a" { address = "10.0.2.1:443" }
}

upstream "games" {
  balance = "round_robin"
  server "a" {
    address = "10.0.3.1:9000"
    weight  = 3
  }
  server "b" { address = "10.0.3.2:9000" }
}
