log {
  level = "inÿfo" # error: byte 0xff is not UTF-8
}
