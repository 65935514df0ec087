# Datagrams that would come back to who sent them.
listener "udp" "self" {
  address  = ":1001"
  upstream = upstream.self
}
upstream "self" {
  server "other" { address = "10.0.0.1:1001" }
  server "self4" { address = "127.0.0.1:1001" } # error: server "self4" is listener "self" at testdata/udp-loops.hcl:2:1, which sends its datagrams there Each datagram would go round and round.
  server "self6" { address = "[::1]:1001" } # error: server "self6" is listener "self"
  server "any" { address = "0.0.0.0:1001" } # error: server "any" is listener "self"
  server "name" { address = "localhost:1001" } # error: server "name" is listener "self"
}

listener "udp" "range" {
  address = ["127.0.0.1:2000-2010", "[::]:2000"]
  route "a" {
    match { port = 2000 }
    upstream = upstream.range
  }
}
upstream "range" {
  server "in" { address = "127.0.0.1:2005" } # error: server "in" is listener "range"
  server "out" { address = "127.0.0.1:2011" }
  server "next" { address = "127.0.0.2:2005" }
  server "six" { address = "[::1]:2000" } # error: server "six" is listener "range"
  server "seven" { address = "[::1]:2001" }
}

listener "udp" "a" {
  address  = "10.0.0.1:3000"
  upstream = upstream.a
}
listener "udp" "b" {
  address  = "10.0.0.1:3001"
  upstream = upstream.b
}
listener "udp" "c" {
  address  = "10.0.0.1:3002"
  upstream = upstream.c
}
upstream "a" {
  server "b" { address = "10.0.0.1:3001" }
  server "c" { address = "10.0.0.1:3002" }
}
upstream "b" {
  server "c" { address = "10.0.0.1:3002" }
}
upstream "c" {
  server "a" { address = "10.0.0.1:3000" } # error: UDP listeners send to each other in a circle: "a" at testdata/udp-loops.hcl:29:1 → "b" at testdata/udp-loops.hcl:33:1 → "c" at testdata/udp-loops.hcl:37:1 → "a" at
}

# A chain comes to an end, and what TCP does is not UDP's concern.
listener "udp" "chain" {
  address  = ":4000"
  upstream = upstream.chain
}
listener "udp" "end" {
  address  = ":4001"
  upstream = upstream.end
}
listener "tcp" "same" {
  address  = ":4001"
  upstream = upstream.chain
}
upstream "chain" {
  server "next" { address = "127.0.0.1:4001" }
}
upstream "end" {
  server "a" { address = "127.0.0.1:5000" }
}
