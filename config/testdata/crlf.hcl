listener "tcp" "web" {
  address  = ":8080"
  upstream = upstream.app
  idle = 3 # error: there is no attribute "idle"
}
upstream "app" {
  server "a" { address = "127.0.0.1:9000" }
}
