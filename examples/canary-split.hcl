# A new version gets 5 % of the sessions; testers always get it.

locals {
  canary_percent = tonumber(env("CANARY_PERCENT", "5"))
}

listener "tcp" "web" {
  address = ":8080"

  route "testers" {
    match { source = ["10.8.0.0/16"] }
    upstream = upstream.web_new
  }

  route "everybody" {
    split {
      upstream = upstream.web
      weight   = 100 - local.canary_percent
    }
    split {
      upstream = upstream.web_new
      weight   = local.canary_percent
    }
  }
}

upstream "web" {
  server "a" { address = "10.0.0.1:8080" }
  server "b" { address = "10.0.0.2:8080" }
  server "c" {
    address = "10.0.0.3:8080"
    weight  = 0 # being emptied: no new sessions
  }
  health "http" { path = "/healthz" }
}

upstream "web_new" {
  server "a" { address = "10.0.0.101:8080" }
  health "http" { path = "/healthz" }
}
