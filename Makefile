# Keelblock. `make` builds bin/keelblock, `make help` lists everything else.
SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build

GO      ?= go
PREFIX  ?= /usr/local
DESTDIR ?=
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

BIN      := bin/keelblock
TOOLS    := $(CURDIR)/bin/tools
TIDY     := $(TOOLS)/hygiene
BUILD    := $(GO) build -buildvcs=false -ldflags "-s -w -X main.version=$(VERSION)"
GOSOURCE := appliance blockdev dedupe replicate tools
export PATH := $(PATH):/usr/sbin:/sbin
# A static binary; and one setting for build, vet and test shares the build cache.
# The race detector needs cgo.
export CGO_ENABLED := 0
WITH_RACE := CGO_ENABLED=1 $(GO) test -race

# Packages whose goroutines meet on shared memory: -race pays there. The rest of
# the tree is covered by `make test-race`, which takes several times as long.
RACE := ./blockdev/cbt/... ./blockdev/snapshot/... ./blockdev/nbd/... \
        ./dedupe/recoverypoint/... ./dedupe/ingest ./appliance/job/... ./appliance/backup/...

# All tests of the store take more than ten minutes under the race detector: here are
# those that put, read, collect and repair side by side, the rest is for `make test-race`.
RACE_STORE := Concurrent|GetBlocks|ReadRepairs|RepairIs|OpenPack

# Settings of the long runs. MINUTES has no value of its own, since a run of
# crashes counts rounds unless it is given.
MINUTES ?=
ROUNDS  ?= 1000
SEED    ?= 0

##@ Build
.PHONY: build
build: ## build bin/keelblock (this is what plain `make` does)
	@mkdir -p bin
	$(BUILD) -o $(BIN) ./appliance/cmd/keelblock

.PHONY: deps
deps: ## install the Debian packages that tests, demo and benchmarks use
	@tools/deps/deps.sh

.PHONY: install
install: build ## install binary, man pages, completions, systemd unit (PREFIX=, DESTDIR=)
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/lib/systemd/system \
	  $(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)$(PREFIX)/share/zsh/site-functions $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
	install -m 0755 $(BIN) $(DESTDIR)$(PREFIX)/bin/keelblock
	man=$$(mktemp -d) && $(BIN) man $$man && install -m 0644 $$man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1/ && rm -r $$man
	$(BIN) completion bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/keelblock
	$(BIN) completion zsh > $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_keelblock
	$(BIN) completion fish > $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/keelblock.fish
	sed 's|@BINDIR@|$(PREFIX)/bin|' appliance/packaging/keelblock.service > $(DESTDIR)$(PREFIX)/lib/systemd/system/keelblock.service
	chmod 0644 $(DESTDIR)$(PREFIX)/lib/systemd/system/keelblock.service

.PHONY: proto
proto: $(TOOLS)/protoc-gen-go ## generate the API's Go code from appliance/api/keelblock.proto
	@command -v protoc >/dev/null || { echo "proto: protoc is missing (Debian: protobuf-compiler)" >&2; exit 1; }
	cd appliance/api && PATH=$(TOOLS):$$PATH protoc --go_out=. --go_opt=module=github.com/keelblock/keelblock/appliance/api \
	  --connect-go_out=. --connect-go_opt=module=github.com/keelblock/keelblock/appliance/api keelblock.proto
	gofmt -w appliance/api

.PHONY: clean
clean: ## remove what builds made
	rm -rf bin dist

##@ Try it
.PHONY: demo
demo: try-deps build ## a tour: serve, fill, back up, change, mount, restore (under 3 minutes)
	@$(GO) run -buildvcs=false ./tools/demo -bin $(CURDIR)/$(BIN)

##@ Test
.PHONY: test
test: try-deps build $(TIDY) fmt vet archtest lint-lite ## everything that CI runs; leaves nothing behind
	$(TIDY) -- $(GO) test -timeout 25m ./...
	$(TIDY) -- env $(WITH_RACE) -short -timeout 25m $(call present,$(RACE))
	$(TIDY) -- env $(WITH_RACE) -short -timeout 25m -run '$(RACE_STORE)' ./dedupe/blockstore
	@echo "make test: all passed"

.PHONY: check
check: try-deps build fmt vet archtest lint test-race ## format, vet, lint, every test under the race detector

.PHONY: test-race
test-race: try-deps build $(TIDY) ## every test under the race detector
	$(TIDY) -- env $(WITH_RACE) -timeout 40m ./...

.PHONY: fmt
fmt: ## is everything formatted?
	@bad=$$(gofmt -l $(GOSOURCE)); if [ -n "$$bad" ]; then echo "not formatted (gofmt -w):"; echo "$$bad"; exit 1; fi

.PHONY: vet
vet: ## go vet
	$(GO) vet ./...

.PHONY: archtest
archtest: ## the rules of the house: import order, package comments, top level
	$(GO) test -count=1 ./tools/archtest

.PHONY: lint-lite
lint-lite: ## the linter's checks for plain bugs; go vet has to do where its module cannot be had
	@$(MAKE) -s $(TOOLS)/staticcheck || { echo "lint-lite: SKIPPED, staticcheck could not be built" >&2; exit 0; }; \
	echo "staticcheck ./..."; \
	$(TOOLS)/staticcheck -checks 'SA*,-SA1019,-SA4006' ./...

.PHONY: lint
lint: $(TOOLS)/staticcheck ## all checks of the pinned linter
	$(TOOLS)/staticcheck -checks 'all,-ST1000,-ST1003,-ST1005,-ST1016,-ST1020,-ST1021,-ST1022,-SA1019,-QF*' ./...

.PHONY: fuzz
fuzz: ## every fuzz target in turn, MINUTES= altogether (5)
	@targets=$$(grep -rEo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' $(GOSOURCE) | sed 's/:func /:/'); \
	count=$$(printf '%s\n' "$$targets" | grep -c . || true); [ "$$count" -gt 0 ] || { echo "no fuzz targets"; exit 1; }; \
	each=$$(( $(or $(MINUTES),5) * 60 / count )); [ $$each -ge 5 ] || each=5; \
	for t in $$targets; do \
	  echo "fuzz: $${t#*:} in $$(dirname $${t%%:*}), $${each}s"; \
	  $(GO) test ./$$(dirname $${t%%:*}) -run '^$$' -fuzz "^$${t#*:}\$$" -fuzztime $${each}s; \
	done

.PHONY: test-crash
test-crash: try-deps ## kills and power cuts: ROUNDS= of each loop, or MINUTES= for each; SEED= repeats
	$(GO) run -buildvcs=false ./tools/crashtest -rounds $(ROUNDS) -seed $(SEED) -minutes $(or $(MINUTES),0)

.PHONY: test-fs
test-fs: try-deps build ## the file-system readers against the kernel's view, large images
	KEELBLOCK_TEST_FS=full $(GO) test -count=1 -timeout 60m ./blockdev/filesystem/... ./blockdev/volume/... ./appliance/fusemount/...

.PHONY: test-vm
test-vm: build ## guests on our disks, and our disks in a guest's kernel (root; up to 15 min each; tools/vmlab -only live|attach)
	@tools/deps/deps.sh --vm
	$(GO) run -buildvcs=false ./tools/vmlab -bin $(CURDIR)/$(BIN)

# Where the images of test-fs-vm go; to commit them, copy those of a set to testdata/vm of
# its package. Each set is a script in tools/vmlab/images, judged by the tests named here.
# FAT and exFAT are the scenario windows, judged by vmlab itself; UPDATE=1 writes their test data.
FS_VM         := $(CURDIR)/bin/fs-vm
FS_VM_SETS    := volumes xfs
FS_VM_volumes := ./blockdev/volume/...
FS_VM_xfs     := ./blockdev/filesystem/xfs

.PHONY: test-fs-vm
test-fs-vm: build ## volumes and file systems as Debian's kernel makes and shows them, in a guest (root; SET=volumes or windows for one)
	@tools/deps/deps.sh --vm
	rm -rf $(FS_VM)
ifneq ($(SET),windows)
	$(GO) run -buildvcs=false ./tools/vmlab -bin $(CURDIR)/$(BIN) -images $(FS_VM) -limit 40m -only '$(SET)'
	KEELBLOCK_TEST_FS_VM=$(FS_VM) $(GO) test -count=1 -timeout 20m -run VM $(foreach s,$(or $(SET),$(FS_VM_SETS)),$(FS_VM_$(s)))
endif
ifneq ($(filter windows,$(or $(SET),windows)),)
	$(GO) run -buildvcs=false ./tools/vmlab -bin $(CURDIR)/$(BIN) -only windows $(if $(UPDATE),-update)
endif

.PHONY: demands
demands: ## the 98 demands and N1-N14: which have a test, and its result
	@$(GO) run -buildvcs=false ./tools/demands -run

.PHONY: demands-list
demands-list: ## the same without running the tests
	@$(GO) run -buildvcs=false ./tools/demands

##@ Measure
.PHONY: bench
bench: try-deps build ## all rows against peers, side by side; see tools/compare
	$(GO) run -buildvcs=false ./tools/compare -bin $(CURDIR)/$(BIN)

.PHONY: bench-results
bench-results: try-deps build ## the same, and write tools/compare/RESULTS.md
	$(GO) run -buildvcs=false ./tools/compare -bin $(CURDIR)/$(BIN) -results tools/compare/RESULTS.md

.PHONY: bench-nbd bench-backup bench-restore bench-vault bench-mount bench-files
bench-nbd bench-backup bench-restore bench-vault bench-mount bench-files: bench-%: try-deps build ## one group of rows: nbd, backup, restore, vault, mount, files
	$(GO) run -buildvcs=false ./tools/compare -bin $(CURDIR)/$(BIN) -only $*

.PHONY: bench-go
bench-go: ## the packages' own benchmarks (for benchstat)
	$(GO) test -run '^$$' -bench . -benchmem -count 6 ./...

##@ Help
.PHONY: help
help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^##@ / {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z][a-z -]*:.*## / {split($$1, t, ":"); printf "  make %-14s %s\n", t[1] ~ / / ? "bench-*" : t[1], $$2}' $(firstword $(MAKEFILE_LIST))

# The tests skip, with the reason, what they lack a tool for, so a machine where
# packages cannot be installed still runs the rest.
.PHONY: try-deps
try-deps:
	@tools/deps/deps.sh || echo "deps: going on without; tests that need what is missing are skipped" >&2

# Only those of the given package patterns whose folder exists.
present = $(foreach p,$(1),$(if $(wildcard $(patsubst ./%/...,%,$(p))/*),$(p)))

$(TIDY): $(wildcard tools/hygiene/*.go)
	@mkdir -p $(TOOLS)
	@$(GO) build -buildvcs=false -o $@ ./tools/hygiene

$(TOOLS)/staticcheck $(TOOLS)/protoc-gen-go: tools/lint/go.mod tools/lint/go.sum
	@mkdir -p $(TOOLS)
	cd tools/lint && GOBIN=$(TOOLS) $(GO) install tool
	@touch $(TOOLS)/staticcheck $(TOOLS)/protoc-gen-go
