tls "public" {
  certificate { dir = "certs" }
  alpn = ["h2"]
}
tls "mutual" {
  certificate { dir = "certs" }
  client_auth {
    mode    = "require"
    ca_file = "clients.pem"
  }
}

listener "tcp" "names" {
  address = ":1443"
  route "sni" {
    match { sni = ["*", "192.0.2.1", "[::1]", "example.com:443", "https://example.com", ".example.com"] } # error: sni: "*" stands for nothing Leave sni out; to take every TLS session write protocol = ["tls"]. # error: "192.0.2.1" is an IP address Clients send no server name for an address # error: "[::1]" is an IP address # error: "example.com:443" has a port Write "example.com", and port = [443] # error: is a URL # error: For every name below it write "*.example.com".
    match { sni = ["a.*.com", "*.*.com", "*a.com", "*.", "", "exa mple.com", "-a.com"] } # error: has its * where none can be It can only be the whole first label # error: has its * where none can be # error: has its * where none can be # error: "*." is empty # error: "" is empty # error: "exa mple.com" is not a host name # error: "-a.com" is not a host name
    match { sni = [] } # error: sni: the list is empty
    match { sni = [1, true, null, ["a"]] } # error: 1 is not a host name # error: null is not a string # error: a list is not a string
    upstream = upstream.web
  }
  route "host" {
    match { host = ["*", "example.com:80"] } # error: host: "*" stands for nothing Leave host out; to take every HTTP/1 request write protocol = ["http"]. # error: "example.com:80" has a port
    match { path = ["a", "/a b", []] } # error: path: "a" is not the beginning of a path # error: "/a b" is not # error: a list is not a string
    match { path = [for p in [] : p] } # error: path: the list is empty
    upstream = upstream.web
  }
  route "protocol" {
    match { protocol = ["mysql", "smtp", "IMAP"] } # error: protocol: a MySQL server speaks first: nothing can be told from the client's first bytes Give MySQL a listener of its own. # error: a SMTP # error: a IMAP
    match { protocol = ["htp", "quic", "unknown"] } # error: Did you mean "http"? # error: "quic" does not come over TCP QUIC comes over UDP: write it in a listener "udp" # error: "unknown" is not known
    match { protocol = [] } # error: protocol: the list is empty
    upstream = upstream.web
  }
  route "alpn" {
    match { alpn = ["HTTP/2"] } # warning: alpn: clients offer no protocol "HTTP/2" Did you mean "h2"?
    upstream = upstream.web
  }
}

listener "tcp" "together" {
  address = ":1444"
  route "layers" {
    match {
      sni  = ["a.example.com"]
      host = ["a.example.com"] # error: sni and host never hold together
    }
    match {
      alpn     = ["h2"]
      protocol = ["ssh"] # error: alpn and this protocol never hold together alpn is of TLS; leave protocol out.
    }
    match {
      path     = ["/"]
      protocol = ["tls"] # error: path and this protocol never hold together
    }
    upstream = upstream.web
  }
  route "terminated" {
    match { host = ["a.example.com"] } # error: host: route "terminated" terminates TLS
    match { path = ["/"] } # error: path: route "terminated" terminates TLS
    match { protocol = ["tls", "ssh", "postgres"] } # error: protocol: "ssh" cannot be terminated as TLS
    match { protocol = [for p in ["redis"] : p] } # error: protocol: "redis" cannot be terminated as TLS
    tls      = tls.public
    upstream = upstream.web
  }
  route "offers" {
    match { alpn = ["h2", "http/1.1"] } # warning: alpn: tls "public" does not offer "http/1.1" It has: h2.
    tls      = tls.public
    upstream = upstream.web
  }
  route "offers-none" {
    match {
      alpn   = ["h2"] # warning: alpn: tls "mutual" negotiates no protocol
      source = ["10.0.0.0/8"]
    }
    tls      = tls.mutual
    upstream = upstream.web
  }
  route "through" {
    match { client_name = ["a"] } # error: client_name: route "through" passes TLS through
    upstream = upstream.web
  }
  route "nobody-asked" {
    match { client_name = ["a"] } # error: client_name: tls "public" asks clients for no certificate
    tls      = tls.public
    upstream = upstream.web
  }
  route "client" {
    match { client_name = ["*", "", "*.", "a.*.b"] } # error: client_name: "*" stands for nothing # error: "" is empty # error: "*." stands for nothing # error: has its * where none can be
    match { client_name = ["a.example.com"] }
    tls      = tls.mutual
    upstream = upstream.web
  }
  route "broken" {
    match { client_name = ["a"] }
    tls      = tls.mutuel # error: there is no tls "mutuel" Defined are: mutual and public. Did you mean "mutual"?
    upstream = upstream.web
  }
}

upstream "web" {
  server "a" { address = "10.0.0.1:80" }
}
