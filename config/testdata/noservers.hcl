listener "tcp" "web" {
  address  = ":8080"
  upstream = upstream.app
}
upstream "app" { # error: upstream "app" has no server Add one: server "a"
}
