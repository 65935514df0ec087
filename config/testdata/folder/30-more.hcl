log {} # error: there is a log block already, at testdata/folder/20-listeners.hcl:8:1
listener "tcp" "web" { # error: listener "web" is already defined at testdata/folder/20-listeners.hcl:1:1
  address  = ":8081"
  upstream = upstream.appp # error: Did you mean "app"?
}
