listener "tcp" "web" {
  address  = ":${local.port}"
  upstream = upstream.app
}
upstream "app" {
  server "a" { address = trimspace(file("server.txt")) }
}
log {}
