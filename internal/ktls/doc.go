// Package ktls is TLS in the kernel.
package ktls
