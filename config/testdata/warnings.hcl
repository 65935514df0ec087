admin {
  address = ":9901" # warning: can be reached from other machines
}

listener "tcp" "web" {
  address  = ":8080"
  upstream = upstream.web
  allow    = ["10.0.0.1/8", "10.0.0.1"] # warning: It is taken as 10.0.0.0/8. Write that, or "10.0.0.1" for the single address.
}

upstream "web" {
  retries = 0 # warning: 0 means 2 0 is the default
  server "a" { address = "10.0.0.1:80" }
  server "b" { address = "10.0.0.1:80" } # warning: 10.0.0.1:80 is also the address of server "a" at
  server "c" {
    address = "10.0.0.2:80"
    weight  = 0
  }
  health "tcp" {
    interval = "1s"
    timeout  = "5s" # warning: the timeout of a probe, 5s, is longer than the interval, 1s
  }
}

upstream "spare" { # warning: upstream "spare" is not used by any listener
  server "a" { address = "10.0.0.1:80" }
}
