locals {
  many  = range(1000000000) # error: more than 250 000 numbers altogether
  loops = [for a in range(1000) : [for b in range(1000) : 0]] # error: numbers altogether
}
# error-at-file: there is no listener
