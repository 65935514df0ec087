# Terminated here, encrypted again to the servers: nothing is in the clear on
# any network. Servers are verified by the authority in ca_file.

tls "public" {
  certificate {
    cert_file = "/etc/edgeproxy/web.crt"
    key_file  = "/etc/edgeproxy/web.key"
  }
}

listener "tcp" "https" {
  address  = ":443"
  tls      = tls.public
  upstream = upstream.web
}

# From plain text inside to TLS outside.
listener "tcp" "ldap" {
  address  = "127.0.0.1:389"
  upstream = upstream.directory
}

upstream "web" {
  server "a" { address = "10.0.0.1:8443" }
  server "b" { address = "10.0.0.2:8443" }
  tls {
    server_name = "web.internal" # what the servers' certificates must name
    ca_file     = "/etc/edgeproxy/internal-ca.pem"
    cert_file   = "/etc/edgeproxy/proxy.crt" # shown to servers that ask for one
    key_file    = "/etc/edgeproxy/proxy.key"
    min_version = "1.3"
  }
}

upstream "directory" {
  server "a" { address = "ldap.example.com:636" } # verified by this name, and the system's authorities
  tls {}
}
