listener "tcp" "one" {
  address  = # error: invalid expression
  upstream = upstream.web
}
listener "tcp" "two" {
  address  = ":nope" # error: port "nope" is not a number
  upstream = upstream.web
}
upstream "web" {
  server "a" { address = "10.0.0.1:80" }
  balance "random" # error: invalid block definition
  retries = 1000 # error: out of range
}
