locals {
  wide   = format("%099999999d", 1) # error: a width of more than 999
  s0     = join(",", [for i in range(30000) : "abcdefgh"])
  s1     = "${local.s0}${local.s0}${local.s0}${local.s0}${local.s0}${local.s0}${local.s0}${local.s0}${local.s0}${local.s0}"
  s2     = "${local.s1}${local.s1}${local.s1}${local.s1}${local.s1}${local.s1}${local.s1}${local.s1}${local.s1}${local.s1}" # error: the value is too large
  s3     = "${local.s2}${local.s2}"
  joined = join(local.s1, ["", "", "", "", ""]) # error: the result is larger
}
listener "tcp" "web" {
  address  = ":8080"
  upstream = upstream.app
}
upstream "app" {
  server "a" { address = "127.0.0.1:9000" }
}
