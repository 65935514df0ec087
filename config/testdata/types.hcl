process {
  workers          = "many" # error: workers: "many" is not a number Allowed: a whole number, 0 to 1 024. Example: workers = 4
  pin_cpus         = 3 # error: pin_cpus: 3 is neither true nor false
  max_connections  = 1.5 # error: max_connections: 1.5 is not a whole number
  user             = ["a"] # error: user: a list is not a string
  shutdown_timeout = 30 # error: It has no unit; write "30s" for seconds
}

log {
  level  = "inf" # error: level: "inf" is not known Did you mean "info"?
  format = "xml" # error: Allowed: one of "json" or "console".
  output = null
}

access_log {
  output = null # error: access_log has no output: the value is null
}

admin {
  address = "127.0.0.1" # error: has no port
}

listener "tcp" "edge" {
  address = [":1443", "example.com:443", 8080, ":80-70", "unix:run", "[::ffff:1.2.3.4]:80", true] # error: cannot listen on a host name # error: has no port # error: port range # error: relative # error: has no port
  allow   = ["10.0.0.0/33"] # error: "10.0.0.0/33" is not a network
  deny    = { a = 1 } # error: deny: an object is not a list
  limits {
    connections   = -1 # error: connections: -1 is out of range
    rate          = "100" # error: rate: "100" is not a rate
    bandwidth_in  = "10MB" # error: Write "10MB/s" for so many bytes
    bandwidth_out = "10Mb/s" # error: The units are B, KB, MB
  }
  timeouts {
    handshake = "1 s" # error: The units are ms, s, m, h and d
    idle      = "1x" # error: The units are ms
    lifetime  = "1000d" # error: "1000d" is out of range
  }
  tcp {
    backlog      = 70000 # error: out of range
    keepalive    = "1ms" # error: out of range
    user_timeout = "-1s" # error: It cannot be switched off.
    nodelay      = "yes" # error: neither true nor false
  }
  route "a" {
    match {
      port   = [0, "8000-7000", "x", 70000] # error: out of range # error: the lower one comes first # error: "x" is not a port # error: out of range
      source = "10.0.0.0.0" # error: not a network
    }
    upstream = "web" # error: "web" is not an upstream Write upstream.web without quotes
  }
  route "b" {
    reject   = "no" # error: neither true nor false
    upstream = upstream # error: upstream: an object is not an upstream
  }
  route "c" { # warning: never reached
    split {
      upstream = upstream.web
      weight   = 1000001 # error: out of range
    }
    split {} # error: split has no upstream
  }
}

upstream "web" {
  balance         = "magic" # error: Allowed: one of "random", "round_robin", "least_conn", "maglev" or "ring_hash".
  hash_on         = "client" # error: Allowed: one of "source", "source_port", "sni" or "destination".
  connect_timeout = "2h" # error: out of range
  retries         = 101 # error: out of range
  panic_threshold = 0.5 # error: panic_threshold: 0.5 is not a percentage
  on_down         = "kepe" # error: Did you mean "keep"?
  source          = "client" # error: source: "client" is not an IP address
  proxy_protocol  = 2 # error: proxy_protocol: 2 is not known
  resolve         = "1us" # error: out of range
  server "a" {} # error: server "a" has no address
  server "b" {
    address = "10.0.0.1" # error: has no port
    weight  = 257 # error: Allowed: a whole number, 0 to 256
    tier    = 256 # error: out of range
  }
  health "http" {
    path          = "healthz" # error: path: "healthz" cannot be used Allowed: a string, begins with "/"
    method        = "G T" # error: cannot be used
    host          = "a\r\nb" # error: line breaks and NUL bytes
    expect_status = "200-99" # error: out of range
    port          = 65536 # error: out of range
    address       = "10.0.0.1:80" # error: without a port
    interval      = "0.5ms" # error: out of range
  }
  health "tcp" {
    send     = ["a"] # error: send: a list is not a string
    send_hex = "0" # error: hexadecimal digits # error: send and send_hex together
  }
}
