# SSH, HTTPS and plain HTTP on one port, for networks that let nothing else out.

tls "public" {
  certificate { dir = "/etc/edgeproxy/certs" }
}

listener "tcp" "everything" {
  address = ":443"
  timeouts {
    sniff = "3s" # some SSH clients wait for the server to speak first
  }

  route "ssh" {
    match { protocol = ["ssh"] }
    upstream = upstream.ssh
  }
  route "git" { # passed through: the certificate is the server's
    match { sni = ["git.example.com"] }
    upstream = upstream.git
  }
  route "https" {
    match { protocol = ["tls"] }
    tls      = tls.public
    upstream = upstream.web
  }
  route "http" {
    match { protocol = ["http"] }
    upstream = upstream.redirect
  }
  route "silent" { upstream = upstream.ssh }
}

upstream "ssh" {
  server "bastion" { address = "10.0.0.22:22" }
}

upstream "git" {
  server "a" { address = "10.0.0.3:443" }
}

upstream "web" {
  server "a" { address = "10.0.0.1:8080" }
  server "b" { address = "10.0.0.2:8080" }
}

upstream "redirect" {
  server "a" { address = "127.0.0.1:8081" }
}
