# error-at-file: there is no listener
upstream "app" {
  server "a" { address = "127.0.0.1:9000" }
}
