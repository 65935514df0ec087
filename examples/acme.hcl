# Certificates from Let's Encrypt, requested and renewed by edgeproxy. The
# authority checks that the names are ours at port 443 (tls-alpn-01) or at
# port 80 (http-01); one of the two is enough.

tls "public" {
  certificate {
    acme {
      domains      = ["example.com", "www.example.com"]
      email        = "admin@example.com"
      http_address = "127.0.0.1:8402"
    }
  }
}

listener "tcp" "https" {
  address  = ":443"
  tls      = tls.public
  upstream = upstream.web
}

listener "tcp" "http" {
  address = ":80"
  route "challenges" {
    match { path = ["/.well-known/acme-challenge/"] }
    upstream = upstream.challenges
  }
  route "rest" { upstream = upstream.web }
}

upstream "web" {
  server "a" { address = "10.0.0.1:8080" }
}

upstream "challenges" {
  server "self" { address = "127.0.0.1:8402" } # edgeproxy
}
