# One table of services, from which listeners, upstreams and servers are made.

locals {
  services = {
    mail    = { port = 2525, hosts = ["10.1.0.1", "10.1.0.2"] }
    metrics = { port = 9090, hosts = [for i in range(1, 4) : cidrhost("10.2.0.0/24", i)] }
    queue   = { port = 5672, hosts = split(",", env("QUEUE_HOSTS", "10.3.0.1,10.3.0.2")) }
  }
  all_hosts = distinct(flatten([for s in values(local.services) : s.hosts]))
}

dynamic "listener" {
  for_each = local.services
  labels   = ["tcp", listener.key]
  content {
    address  = ":${listener.value.port}"
    deny     = local.all_hosts # the servers do not come in by the front door
    upstream = upstream[listener.key]
  }
}

dynamic "upstream" {
  for_each = local.services
  iterator = service
  labels   = [service.key]
  content {
    dynamic "server" {
      for_each = service.value.hosts
      labels   = ["s${server.key}"]
      content {
        address = "${server.value}:${service.value.port}"
      }
    }
    health "tcp" {
      interval = service.key == "mail" ? "30s" : "2s"
    }
  }
}
