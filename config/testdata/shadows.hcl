tls "a" {
  certificate { dir = "certs" }
  client_auth {
    mode    = "require"
    ca_file = "clients.pem"
  }
}

listener "tcp" "edge" {
  address = ":1443"
  route "names" {
    match { sni = ["*.example.com", "example.net"] }
    match { sni = ["example.org"] }
    upstream = upstream.web
  }
  route "below" { # warning: route "below" is never reached: route "names" at testdata/shadows.hcl:11:3 takes all of its sessions
    match { sni = ["a.b.example.com", "*.c.example.com", "EXAMPLE.org"] }
    upstream = upstream.web
  }
  route "more" {
    match { sni = ["a.example.com", "example.com"] }
    upstream = upstream.web
  }
  route "narrower" { # warning: route "narrower" is never reached
    match {
      sni    = ["example.com"]
      alpn   = ["h2"]
      source = ["10.0.0.0/8"]
    }
    upstream = upstream.web
  }
  route "lan" {
    match {
      source = ["10.0.0.0/8", "192.168.0.0/16"]
      port   = ["1000-2000"]
    }
    upstream = upstream.web
  }
  route "lan-wider" {
    match {
      source = ["10.0.0.0/7"]
      port   = ["1000-2000"]
    }
    upstream = upstream.web
  }
  route "lan-any-port" {
    match { source = ["10.0.0.0/8"] }
    upstream = upstream.web
  }
  route "lan-again" { # warning: route "lan-again" is never reached: route "lan"
    match {
      source = ["10.1.0.0/16", "192.168.1.1"]
      port   = [1443, "1500-1600"]
      sni    = ["elsewhere.example"]
    }
    upstream = upstream.web
  }
  route "clients" {
    match {
      sni         = ["clients.example"]
      client_name = ["a", "b"]
    }
    tls      = tls.a
    upstream = upstream.web
  }
  route "client" { # warning: route "client" is never reached: route "clients"
    match {
      sni         = ["clients.example"]
      client_name = ["b"]
    }
    tls      = tls.a
    upstream = upstream.web
  }
  route "other-clients" {
    match { sni = ["clients.example"] }
    upstream = upstream.web
  }
  route "tls" {
    match { protocol = ["tls", "http"] }
    upstream = upstream.web
  }
  route "late" { # warning: route "late" is never reached: route "tls"
    match { sni = ["late.example.com"] }
    match { alpn = ["h2"] }
    match { host = ["late.example.com"] }
    upstream = upstream.web
  }
  route "ssh" {
    match { protocol = ["http", "ssh"] }
    upstream = upstream.web
  }
  route "paths" { # warning: route "paths" is never reached: route "tls"
    match { path = ["/a"] }
    upstream = upstream.web
  }
}

# Who bears none of the names goes on among the routes with the same tls.
listener "tcp" "again" {
  address = ":1444"
  route "admins" {
    match {
      sni         = ["example.com"]
      client_name = ["admin"]
    }
    tls      = tls.a
    upstream = upstream.web
  }
  route "through" {
    match { sni = ["example.com"] }
    upstream = upstream.web
  }
  route "people" {
    match { sni = ["example.com"] }
    tls      = tls.a
    upstream = upstream.web
  }
  route "rest" { upstream = upstream.web }
  route "more-people" {
    match { sni = ["*.com"] }
    tls      = tls.a
    upstream = upstream.web
  }
  route "nobody" { # warning: route "nobody" is never reached: route "rest"
    match { sni = ["*.com"] }
    upstream = upstream.web
  }
}

listener "tcp" "http" {
  address = ":1080"
  route "a" {
    match {
      host = ["*.example.com"]
      path = ["/a"]
    }
    upstream = upstream.web
  }
  route "ab" { # warning: route "ab" is never reached
    match {
      host = ["x.example.com"]
      path = ["/a/b", "/ac"]
    }
    upstream = upstream.web
  }
  route "b" {
    match {
      host = ["x.example.com"]
      path = ["/a/b", "/b"]
    }
    upstream = upstream.web
  }
}

upstream "web" {
  server "a" { address = "10.0.0.1:80" }
}
