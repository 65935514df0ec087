listener "tcp" "both" { 
  address  = ":1001"
  upstream = upstream.web # error: listener "both" has both an upstream and routes
  route "a" { upstream = upstream.web }
}

listener "tcp" "terminates" {
  address = ":1004"
  tls     = tls.public # error: listener "terminates" has both tls and routes
  route "a" { upstream = upstream.web }
}

listener "tcp" "neither" { # error: listener "neither" has neither an upstream nor routes
  address = ":1002"
}

listener "tcp" "routes" {
  address = ":1003"
  route "nowhere" { # error: route "nowhere" does not say where its sessions go
    match { port = 1003 }
  }
  route "twice" { # error: route "twice" says more than once
    match { port = 1003 }
    upstream = upstream.web
    reject   = true
  }
  route "zero" {
    match { port = 1003 }
    split { # error: the splits of route "zero" all have weight 0
      upstream = upstream.web
      weight   = 0
    }
    split {
      upstream = upstream.web
      weight   = 0
    }
  }
  route "empty" {
    match { source = [] } # error: source: the list is empty
    reject = true
  }
  route "computed" {
    match { port = [for p in [] : p] } # error: port: the list is empty
    reject = true
  }
  route "zero" { # error: route "zero" is already defined at testdata/routes.hcl:27:3
    match { source = ["10.0.0.0/8"] }
    reject = true
  }
  route "all" {
    match { source = ["10.0.0.0/8"] }
    match {}
    upstream = upstream.web
  }
  route "late" { # warning: route "late" is never reached: route "all" at
    upstream = upstream.web
  }
}

tls "public" {
  certificate { dir = "certs" }
}

upstream "web" {
  server "a" { address = "10.0.0.1:80" }
}
