locals {
  port = 8080
  bad  = local.nope # error: there is no local "nope"
}
