# edgeproxy: `make help` explains the targets.

GO        ?= go
BINARY    := bin/edgeproxy
PREFIX    ?= /usr/local
DESTDIR   ?=
FUZZTIME  ?= 30s
BENCHARGS ?=

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null)
LDFLAGS := -s -w $(if $(VERSION),-X edgeproxy/internal/version.stamped=$(VERSION))

# The version is stamped above. Go's own stamp would make builds fail in a work
# tree that belongs to another user.
export GOFLAGS := $(strip $(GOFLAGS) -buildvcs=false)

.DEFAULT_GOAL := help
.PHONY: help run test race build bench bench-quick lint fuzz docs install clean

help: ## show this list
	@echo "Targets (Go 1.26 and git are all that run and test need):"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Variables: GO, PREFIX ($(PREFIX)), DESTDIR, FUZZTIME ($(FUZZTIME)), BENCHARGS"

run: build ## run the demo: proxy, servers and things to try, on loopback
	@$(BINARY) demo

test: ## run all tests; no C compiler needed
	CGO_ENABLED=0 $(GO) test -shuffle=on ./...

race: ## run all tests with the race detector (needs a C compiler)
	CGO_ENABLED=1 $(GO) test -race -shuffle=on ./...

build: ## build bin/edgeproxy
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BINARY) ./cmd/edgeproxy

bench: build ## measure against haproxy, nginx and io.Copy, side by side (about 35 minutes)
	$(GO) run ./integration/bench $(BENCHARGS)

bench-quick: build ## the same with short rounds: does it run, what is the order of magnitude
	$(GO) run ./integration/bench -quick $(BENCHARGS)

lint: ## gofmt, go vet and staticcheck
	@bad=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$bad" ]; then echo "not formatted (gofmt -w):"; echo "$$bad"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

fuzz: ## fuzz every target for FUZZTIME each
	@set -e; \
	grep -rl --include='*_test.go' '^func Fuzz' . | xargs -r -n 1 dirname | sort -u | while read -r dir; do \
		list=$$($(GO) test -list '^Fuzz' "$$dir"); \
		for target in $$(echo "$$list" | grep '^Fuzz'); do \
			echo "$$dir $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$dir"; \
		done; \
	done

docs: ## regenerate the configuration reference from the schema
	$(GO) generate ./...

install: build ## install to PREFIX: binary, systemd units, sysusers, tmpfiles, docs
	install -D -m 755 $(BINARY) $(DESTDIR)$(PREFIX)/bin/edgeproxy
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's|/usr/local/|$(PREFIX)/|' packaging/systemd/edgeproxy.service > $(DESTDIR)$(PREFIX)/lib/systemd/system/edgeproxy.service
	v=$$(systemctl --version 2>/dev/null | awk 'NR == 1 { print int($$2) }'); \
	if [ -n "$$v" ] && [ "$$v" -lt 253 ]; then \
		install -D -m 644 packaging/systemd/10-before-253.conf $(DESTDIR)$(PREFIX)/lib/systemd/system/edgeproxy.service.d/10-before-253.conf; \
	fi
	install -D -m 644 packaging/sysusers.d/edgeproxy.conf $(DESTDIR)$(PREFIX)/lib/sysusers.d/edgeproxy.conf
	install -D -m 644 packaging/tmpfiles.d/edgeproxy.conf $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/edgeproxy.conf
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/doc/edgeproxy README.md CHANGELOG.md LICENSE \
		docs/*.md packaging/systemd/edgeproxy.socket packaging/sysctl.d/80-edgeproxy.conf

clean: ## remove what was built
	rm -rf bin .bench
