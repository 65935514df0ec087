process {
  kernel_tls = "on" # error: kernel_tls: "on" is not known Allowed: one of "off" or "auto".
}

tls "empty" { # error: tls "empty" has no certificate
}

tls "certificates" {
  certificate {} # error: certificate does not say where it comes from
  certificate { # error: certificate says more than once where it comes from
    cert_file = "web.crt"
    dir       = "certs"
  }
  certificate {
    key_file = "web.key" # error: key_file without cert_file
  }
  certificate {
    dir      = "certs"
    key_file = "web.key" # error: key_file without cert_file
  }
  certificate {
    cert_file = "" # error: cert_file: "" cannot be used Allowed: a string, a path, relative to the configuration file's folder.
  }
  certificate {
    cert_file = "-----BEGIN CERTIFICATE----- MIIB" # error: the path of a file is needed
  }
  certificate { file = "x" } # error: there is no attribute "file" in a certificate block
}

tls "acme" {
  certificate {
    acme { # error: acme has no domains
      email     = "admin" # error: email: "admin" cannot be used
      directory = "http://ca.internal/directory" # error: Allowed: a string, an https URL.
    }
  }
  certificate {
    acme {
      domains      = ["*.example.com", "192.0.2.1", "example.com:443", "exa mple.com", "", "a_b.example.com"] # error: "a_b.example.com" is not a host name # error: "*.example.com" is a wildcard Authorities issue those only for dns-01 # error: "192.0.2.1" is an IP address # error: "example.com:443" has a port # error: is not a host name # error: "" is empty
      http_address = "127.0.0.1" # error: has no port
    }
  }
  certificate {
    acme {
      domains      = [] # error: domains: the list is empty
      http_address = "unix:/run/a.sock" # error: is not a single TCP address
    }
  }
  certificate {
    acme {
      domains  = ["example.com"]
      tls_alpn = false # error: acme has no challenge left Leave tls_alpn on, or set http_address
    }
  }
  certificate {
    acme {
      domains      = ["a.example.com"]
      http_address = "127.0.0.1:1080" # error: http_address: "127.0.0.1:1080" overlaps ":1080" of listener "edge"
    }
  }
  certificate {
    acme {
      domains      = ["b.example.com"]
      http_address = "127.0.0.1:8402"
    }
  }
  certificate {
    acme {
      domains      = ["c.example.com"]
      http_address = "127.0.0.1:8402"
    }
  }
}

tls "versions" {
  certificate { dir = "certs" }
  min_version   = "1.4" # error: min_version: "1.4" is not known
  cipher_suites = [] # error: cipher_suites: the list is empty
  groups        = [] # error: groups: the list is empty
  alpn          = [] # error: alpn: the list is empty
}

tls "order" {
  certificate { dir = "certs" }
  min_version = "1.3"
  max_version = "1.2" # error: no version of TLS is left min_version is 1.3, max_version is 1.2; the defaults are 1.2 and 1.3.
}

tls "old" {
  certificate { dir = "certs" }
  max_version = "1.1" # warning: max_version: TLS 1.1 is broken # error: no version of TLS is left
}

tls "ancient" {
  certificate { dir = "certs" }
  min_version = "1.0" # warning: min_version: TLS 1.0 is broken RFC 8996
  max_version = "1.1" # warning: TLS 1.1 is broken # error: TLS 1.0 and 1.1 have none of the cipher suites
  cipher_suites = ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]
}

tls "mixed" {
  certificate { dir = "certs" }
  min_version = "1.1" # warning: TLS 1.1 is broken # warning: TLS 1.0 and 1.1 have none of the cipher suites
  cipher_suites = ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]
}

tls "defaults" {
  certificate { dir = "certs" }
  min_version = "1.1" # warning: TLS 1.1 is broken
}

tls "suites" {
  certificate { dir = "certs" }
  cipher_suites = [
    "TLS_AES_128_GCM_SHA256",                  # error: is a suite of TLS 1.3, which are not configurable
    "ECDHE-RSA-AES128-GCM-SHA256",             # error: is not known That is OpenSSL's name of "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256".
    "ECDHE-ECDSA-CHACHA20-POLY1305",           # error: "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"
    "AES128-SHA",                              # error: "TLS_RSA_WITH_AES_128_CBC_SHA"
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA265",   # error: Did you mean "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"?
    "TLS_RSA_WITH_RC4_128_SHA",                # warning: "TLS_RSA_WITH_RC4_128_SHA" is not secure
  ]
  groups = ["secp256r1", "X25519Kyber768", "X25519MLKEM786", 23] # error: Write "P-256". # error: "X25519Kyber768" is not known # error: Did you mean "X25519MLKEM768"? # error: 23 is not known
  alpn   = ["http2", "", "h2"] # warning: clients offer no protocol "http2" Did you mean "h2"? # error: "" is not 1 to 255 bytes
}

tls "no-effect" {
  certificate { dir = "certs" }
  min_version   = "1.3"
  cipher_suites = ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"] # warning: cipher_suites has no effect
}

tls "hybrids" {
  certificate { dir = "certs" }
  groups = ["X25519MLKEM768"] # warning: TLS 1.2 has none of the groups
}

tls "only-hybrids" {
  certificate { dir = "certs" }
  max_version = "1.2"
  groups      = ["X25519MLKEM768"] # error: TLS 1.2 has none of the groups
}

tls "tickets" {
  certificate { dir = "certs" }
  session_tickets = false
  ticket_keys     = "tickets.bin" # error: ticket_keys without session tickets
}

tls "clients" {
  certificate { dir = "certs" }
  client_auth {} # error: client_auth has no mode
}

tls "authorities" {
  certificate { dir = "certs" }
  client_auth { # error: client_auth has no ca_file
    mode = "require"
  }
}

tls "revoked" {
  certificate { dir = "certs" }
  client_auth {
    mode     = "none"
    crl_file = "revoked.pem" # warning: crl_file has no effect
  }
}

tls "modes" {
  certificate { dir = "certs" }
  client_auth {
    mode    = "optional" # error: mode: "optional" is not known Allowed: one of "none", "request" or "require".
    ca_file = "clients.pem"
  }
}

tls "modes" { # error: tls "modes" is already defined at
  certificate { dir = "certs" }
}

listener "tcp" "edge" {
  address  = ":1080"
  upstream = upstream.web
  tls      = tls.publik # error: there is no tls "publik" Defined are: acme, ancient
  accept_proxy_protocol {} # error: accept_proxy_protocol has no from
}

listener "tcp" "text" {
  address  = ":1081"
  upstream = upstream.web
  tls      = "modes" # error: tls: "modes" is not a tls block Write tls.modes without quotes; in JSON "${tls.modes}".
  accept_proxy_protocol { from = [] } # error: from: the list is empty
}

listener "tcp" "kind" {
  address  = ":1082"
  upstream = tls.modes # error: upstream: tls.modes is not an upstream
  tls      = upstream.web # error: tls: upstream.web is not a tls block
  timeouts {
    sniff = "10s" # warning: the sniff timeout, 10s, is not shorter than that of the handshake, 10s
  }
  accept_proxy_protocol { from = "10.0.0.0/33" } # error: is not a network
}

upstream "web" {
  server "a" { address = "10.0.0.1:80" }
  tls {
    key_file = "proxy.key" # error: key_file without cert_file
    server_name = "web.internal:443" # error: server_name: "web.internal:443" has a port
  }
}

upstream "names" {
  server "a" { address = "10.0.0.1:80" }
  tls { server_name = "*.internal" } # error: server_name: "*.internal" is a wildcard
}

upstream "unix" {
  server "a" { address = "10.0.0.1:443" }
  server "b" { address = "unix:/run/b.sock" }
  tls {} # error: server "b" at testdata/tls.hcl:220:3 is a unix socket, which has no name to verify
}

upstream "trusting" {
  server "a" { address = "unix:/run/b.sock" }
  tls {
    verify  = false # warning: servers of upstream "trusting" are not verified
    ca_file = "internal.pem" # warning: ca_file has no effect without verify
  }
}
