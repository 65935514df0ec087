admin {
  address = "127.0.0.1:8005" # error: "127.0.0.1:8005" overlaps ":8000-8100" of listener "range"
}
listener "tcp" "range" {
  address  = [":8000-8100", "0.0.0.0:8050"] # error: "0.0.0.0:8050" overlaps ":8000-8100" of listener "range" at testdata/overlaps.hcl:5:15
  upstream = upstream.web
}
listener "tcp" "other" {
  address = [
    "10.0.0.1:8100-8200", # error: address: "10.0.0.1:8100-8200" overlaps ":8000-8100" of listener "range"
    "10.0.0.2:8200",
    "unix:/run/a.sock",
    "unix:/run/a.sock", # error: overlaps "unix:/run/a.sock" of listener "other"
    "systemd:web",
    ":0",
  ]
  upstream = upstream.web
}
listener "tcp" "third" {
  address  = ["[::]:9000", "0.0.0.0:9000", "127.0.0.1:0", ":0", "systemd:web"] # error: "systemd:web" overlaps "systemd:web" of listener "other"
  upstream = upstream.web
}
upstream "web" {
  server "a" { address = "10.0.0.1:80" }
}
