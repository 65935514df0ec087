# Clients show certificates. Who may go where is decided by the names in them.

tls "internal" {
  certificate {
    cert_file = "/etc/edgeproxy/api.crt"
    key_file  = "/etc/edgeproxy/api.key"
  }
  min_version = "1.3"
  client_auth {
    mode     = "require"
    ca_file  = "/etc/edgeproxy/clients-ca.pem"
    crl_file = "/etc/edgeproxy/clients-crl.pem" # revoked, or the list out of date: refused
  }
}

listener "tcp" "api" {
  address = ":8443"

  route "admins" {
    match { client_name = ["admin.clients.example.com", "spiffe://example.com/ns/ops/sa/admin"] }
    tls      = tls.internal
    upstream = upstream.admin
  }
  route "services" {
    match { client_name = ["*.clients.example.com"] }
    tls      = tls.internal
    upstream = upstream.api
  }
  # A verified client with another name ends with no_route.
}

upstream "admin" {
  proxy_protocol = "v2" # tells the server the client's common name
  server "a" { address = "10.0.0.1:8080" }
}

upstream "api" {
  server "a" { address = "10.0.0.2:8080" }
  server "b" { address = "10.0.0.3:8080" }
}
