listener "tcp" "a" {
  address = ":8080"
  route "x" {
    match { port = 8080 }
    reject = "yes" # error: neither true nor false
  }
  route "y" {
    match { port = 8080 }
    upstream = upstream.nope # error: there is no upstream "nope"
  }
  route "z" {
    upsteam = upstream.app # error: Did you mean "upstream"?
  }
}
upstream "app" {
  servers "a" { address = "127.0.0.1:9000" } # error: Did you mean "server"?
}
