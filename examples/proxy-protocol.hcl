# Who the client is, through several proxies. The cloud's load balancer in front
# says it in a PROXY header; so does edgeproxy to the servers. nginx behind it
# needs: listen 8080 proxy_protocol; set_real_ip_from 10.0.0.0/8;
#        real_ip_header proxy_protocol;

listener "tcp" "web" {
  address = ":80"

  # From there each session must begin with a header, v1 or v2; one from
  # anywhere else is an error. Limits, routes and logs go by what it says.
  accept_proxy_protocol { from = ["10.255.0.0/24"] }

  limits { connections_per_source = 200 }
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
