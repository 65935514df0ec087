process {}
process {} # error: there is a process block already, at testdata/duplicates.hcl:1:1

listener "tcp" "edge" {
  address  = ":1001"
  upstream = upstream.web
  limits {}
  limits {} # error: there is a limits block already
}
listener "tcp" "edge" { # error: listener "edge" is already defined at testdata/duplicates.hcl:4:1
  address  = ":1002"
  upstream = upstream.web
}
listener "udp" "edge" { # error: listener "edge" is already defined at testdata/duplicates.hcl:4:1 Listeners of all networks share their names: metrics and logs know them by nothing else.
  address  = ":1001"
  upstream = upstream.web
}
upstream "web" {
  server "a" { address = "10.0.0.1:80" }
  server "a" { address = "10.0.0.2:80" } # error: server "a" is already defined at
  balance = "random"
  balance = "random" # error: attribute redefined
}
upstream "web" { # error: upstream "web" is already defined at
  server "a" { address = "10.0.0.1:80" }
}
locals {
  x = 1
}
locals {
  x = 2 # error: local "x" is already defined at testdata/duplicates.hcl:28:3
}
