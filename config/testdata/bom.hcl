listener "tcp" "web" {
  address  = ":80x80" # error: port
  upstream = upstream.app
}
upstream "app" {
  server "a" { address = "127.0.0.1:9000" }
}
