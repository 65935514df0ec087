locals {
  a      = local.b + 1 # error: locals refer to each other in a circle: local.a → local.b → local.a
  b      = local.a + 1
  broken = nosuch(1) # error: there is no function "nosuch"
  uses   = "${local.broken} and more"
  self   = local.self # error: in a circle: local.self → local.self
  c      = local.sources # error: there is no local "sources" Defined are: a, b, broken, c, none, self, source, unset and uses. Did you mean "source"?
  source = ["10.0.0.0/8"]
  unset  = env("EDGEPROXY_TEST_SURELY_NOT_SET") # error: environment variable EDGEPROXY_TEST_SURELY_NOT_SET is not set; set it, or give a default
  none   = file("nothing.txt") # error: nothing.txt: no such file or directory
}

listener "tcp" "edge" {
  address = ":${local.a}"
  allow   = local.c
  deny    = [local.uses]
  route "a" {
    match { source = local.sorce } # error: there is no local "sorce" Defined are:
    upstream = upstream.wbe # error: there is no upstream "wbe" Defined are: api-v2, other and web. Did you mean "web"?
  }
  route "b" {
    upstream = upstream["api-v3"] # error: Did you mean "api-v2"?
  }
  route "c" { # warning: never reached
    upstream = upstream.api-v2
  }
  route "d" { # warning: never reached
    upstream = web # error: there is no variable "web" A text needs quotes: "web".
  }
  route "e" { # warning: never reached
    upstream = true ? upstream.web : upstream.other
  }
}

upstream "web" {
  balance = random # error: there is no variable "random"
  server "a" { address = "10.0.0.1:80" }
}

upstream "api-v2" {
  server "a" { address = local.unset }
}

upstream "other" {
  server "a" { address = "${local.none}:80" }
  source = upper(1, 2) # error: function "upper" expects only 1 argument
}
