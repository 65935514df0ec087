listener "tcp" "one" {
  address  = ":nope" # error: port "nope" is not a number
  upstream = upstream.web
}
listener "tcp" "two" { # error: nclosed configuration block
  address  = ":8080"
  upstream = upstream.web

upstream "web" {
  server "a" { address = "10.0.0.1:80" }
}
