# Routes by the name that TLS clients ask for. Nothing is decrypted: keys and
# certificates stay on the servers.

listener "tcp" "https" {
  address = ":443"

  route "shop" {
    match { sni = ["shop.example.com", "*.shop.example.com"] }
    upstream = upstream.shop
  }
  route "mail" {
    match { sni = ["mail.example.com"] }
    upstream = upstream.mail
  }
  # Clients that ask for another name, or for none, get the alert
  # unrecognized_name, and the session ends with no_route.
}

upstream "shop" {
  server "a" { address = "10.0.0.1:443" }
  server "b" { address = "10.0.0.2:443" }
}

upstream "mail" {
  server "a" { address = "10.0.1.1:443" }
}
