locals {
  list   = [for i in range(100) : i]
  cubed  = [for a in local.list : [for b in local.list : [for c in local.list : [for d in local.list : 0]]]] # error: more than 250 000 times
}
listener "tcp" "web" {
  address  = ":8080"
  upstream = upstream.app
}
upstream "app" {
  server "a" { address = "127.0.0.1:9000" }
}
