# The servers learn the client's address from a PROXY header. nginx behind it
# needs: listen 8080 proxy_protocol; set_real_ip_from 10.0.0.0/8;
#        real_ip_header proxy_protocol;

listener "tcp" "web" {
  address  = ":80"
  upstream = upstream.nginx
}

listener "tcp" "mail" {
  address  = ":25"
  upstream = upstream.postfix
}

upstream "nginx" {
  proxy_protocol = "v2"
  server "a" { address = "10.0.0.1:8080" }
  server "b" { address = "10.0.0.2:8080" }

  # The servers answer probes on a port that expects no header.
  health "http" {
    port = 8081
    path = "/healthz"
  }
}

upstream "postfix" {
  proxy_protocol = "v1" # smtpd_upstream_proxy_protocol = haproxy
  server "a" { address = "10.0.0.3:25" }
}
