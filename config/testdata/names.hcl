listener "tcp" "edge" {
  address  = ":1443"
  adress   = ":1" # error: there is no attribute "adress" in a listener "tcp" block A listener "tcp" block takes the attributes address
  upsteam  = upstream.web # error: Did you mean "upstream"?
  timeout { # error: Did you mean "timeouts"?
    idle = "1m"
  }
  limits = { # error: limits is a block, not an attribute Write limits { … }
    connections = 5
  }
  limits {
    conections = 5 # error: Did you mean "connections"?
  }
  allow { # error: allow is an attribute, not a block Write allow = 
  }
}

listner "tcp" "x" { # error: there is no block "listner" at the top of a file A file holds the blocks
}

worker = 4 # error: there is no attribute "worker" at the top of a file

listener "upd" "dns" { # error: there is no listener of type "upd" A listener block is listener "tcp" or listener "udp". Did you mean "udp"?
  anything = true
}

listener "edge" { # error: a listener block has two labels, its type and its name Write listener "tcp" "edge" { … }
}

process "main" { # error: a process block has no label
}

upstream "web" {
  server "a" { address = "10.0.0.1:80" }
  health "htp" { # error: there is no health of type "htp" A health block is health "tcp", health "http" or health "udp". Did you mean "http"?
  }
  health { # error: a health block has one label, its type
  }
  tls {
    sni = "a" # error: there is no attribute "sni" in a tls block
  }
  passive { # error: there is no block "passive"
  }
  slow_start = "30s" # error: there is no attribute "slow_start"
}

tls { # error: a tls block has one label, its name Write tls "public" { … }
}

upstream "name with spaces" { # error: "name with spaces" cannot be the name of an upstream A name is 1 to 63 letters
  server "" { address = "10.0.0.1:80" } # error: "" cannot be the name of a server
}
