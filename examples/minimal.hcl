# The least there is: one listener, one upstream, one server.
listener "tcp" "web" {
  address  = ":8080"
  upstream = upstream.app
}

upstream "app" {
  server "a" { address = "127.0.0.1:9000" }
}
