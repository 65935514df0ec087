listener "tcp" "a" {
  address  = ":nope" # error: port "nope"
  upstream = upstream.app
}
upstream "app" {
  server "a" { address = "127.0.0.1:9000" }
  retries = 500 # error: out of range
}
listener "tcp" "b" {
  address  = ":8081 # error: multi-line string
  upstream = upstream.app
  route "x" { reject = "yes" }
}
