locals {
  broken = nosuch() # error: there is no function "nosuch"
}
listener "tcp" "edge" {
  address  = ":8080"
  upstream = upstream.web
  dynamic "route" {
    for_each = local.missing # error: there is no local "missing"
    labels   = [route.key]
    content {}
  }
  dynamic "rout" { # error: there is no block "rout" in a listener "tcp" block
    for_each = []
    content {}
  }
}
upstream "web" {
  dynamic "server" {
    for_each = local.broken
    labels   = ["x${server.value}"]
    content { address = "10.0.0.1:80" }
  }
}
upstream "labels" {
  dynamic "server" { # error: the dynamic block lacks an attribute
    for_each = ["a"]
    content { address = "10.0.0.1:80" }
  }
}
upstream "values" {
  dynamic "server" {
    for_each = ["10.0.0.1:80", "10.0.0.2", "10.0.0.3"]
    labels   = ["s${server.key}"]
    content {
      address = server.value # error: "10.0.0.2" has no port # error: "10.0.0.3" has no port
      weigth  = 3 # error: Did you mean "weight"?
    }
  }
}
upstream "nothing" {
  dynamic "server" {
    for_each = 5 # error: Cannot use a number value in for_each
    labels   = ["a"]
    content {}
  }
}
