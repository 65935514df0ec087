# TLS ends here; the servers speak plain text. Certificates are the pairs
# NAME.crt and NAME.key of a folder: whatever renews them writes there, and
# edgeproxy takes them into use within a second, without a reload.

tls "public" {
  certificate { dir = "/etc/edgeproxy/certs" }
  alpn       = ["http/1.1"]
  strict_sni = true
}

listener "tcp" "https" {
  address  = ":443"
  tls      = tls.public
  upstream = upstream.web
  limits {
    handshakes     = 2000
    handshake_rate = "1000/s"
  }
}

# edgeproxy changes nothing in requests: the redirect to https is for an HTTP
# server to give.
listener "tcp" "http" {
  address  = ":80"
  upstream = upstream.redirect
}

upstream "web" {
  proxy_protocol = "v2" # the client's address, the name it asked for, its TLS version
  server "a" { address = "10.0.0.1:8080" }
  server "b" { address = "10.0.0.2:8080" }
}

upstream "redirect" {
  server "a" { address = "127.0.0.1:8081" }
}
