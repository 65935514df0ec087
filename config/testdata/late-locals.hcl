# Locals may hold upstreams, dynamic blocks may use both.
locals {
  targets = { office = upstream.a, rest = upstream["b"] }
  names   = ["a", "b", "c"]
}
listener "tcp" "web" {
  address = ":8080"
  dynamic "route" {
    for_each = local.targets
    labels   = [route.key]
    content {
      dynamic "match" {
        for_each = route.key == "office" ? [1] : []
        content { source = "10.0.0.0/8" }
      }
      upstream = route.value
    }
  }
}
dynamic "upstream" {
  for_each = toset(local.names) 
  labels   = [upstream.value]
  content {
    server "one" { address = "10.0.0.1:80" }
  }
}
listener "tcp" "third" {
  address  = ":8081"
  upstream = upstream.c
}
