# Everything that is done with this repository. `make` prints what there is.
# Meant for Debian and Ubuntu; as root, each target installs what it needs.

PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
BIN_DIR ?= /opt/cni/bin
PYTEST_ARGS ?=

VENV := .venv
RUN := $(VENV)/bin/python
VENV_STAMP := $(VENV)/.stamp
PIP_OPTIONS := --quiet --disable-pip-version-check
LAB := tools/kernel-lab --mem 3G --timeout 2400
DEBIAN_LAB := tools/debian-lab --card --mem 3G --timeout 2400

SOURCES := $(shell find cni launcher -type f -not -name '*.pyc' 2>/dev/null) \
	tools/build.py tools/bundle.lock
INTERPRETER := $(shell find tools/interpreter -type f -not -name '*.pyc' 2>/dev/null)
ARCH := $(shell uname -m)
SELF_CONTAINED := dist/cni-linux-$(ARCH)

# Debian packages, a set for each purpose; a target installs the sets that it needs, as far as they
# are missing. What they install is neither started nor enabled (tools/setup.sh).
#
# build: Python, and a compiler for the native client. interpreter: what CPython is compiled with, too.
# demo: what it shows the network with.
PACKAGES_build := python3 python3-venv gcc musl-tools
PACKAGES_interpreter := make patch perl xz-utils bzip2 linux-libc-dev
PACKAGES_demo := iproute2 iputils-ping nftables
PACKAGES_windows := gcc-mingw-w64-x86-64
# test: the programs that are judges (nft, iptables, ip, conntrack, tcpdump …), the Go plugins, and
# the DHCP servers, firewalld and etcd that plugins work with; wine64 for the Windows plugins.
PACKAGES_test := $(PACKAGES_demo) $(PACKAGES_windows) wine64 wine \
	libnftables1 python3-nftables iptables conntrack tcpdump iputils-arping socat strace ethtool \
	busybox-static util-linux procps kmod git systemd libc6-dev \
	firewalld dbus-daemon ipset iperf3 dnsmasq-base kea-dhcp4-server kea-dhcp6-server radvd \
	containernetworking-plugins etcd-server etcd-client openssl curl groff-base zsh fish
# cross: the compiler for aarch64, and the headers of its kernel. release: what makes packages, too.
PACKAGES_cross := gcc-aarch64-linux-gnu linux-libc-dev-arm64-cross
PACKAGES_release := git rpm $(PACKAGES_cross)
# aarch64: the file for that machine, and what emulates it: a kernel, and single programs.
PACKAGES_aarch64 := $(PACKAGES_cross) qemu-system-arm qemu-user-static
# debian: what runs Debian's own kernel (tools/debian-lab), and wg(8), by which tests see what WireGuard knows.
PACKAGES_debian := qemu-system-x86 busybox-static kmod xz-utils zstd wireguard-tools
# runtime: two container runtimes; skopeo copies images.
PACKAGES_runtime := podman podman-compose conmon containerd runc skopeo

.DEFAULT_GOAL := help
.PHONY: help setup venv build build-selfcontained build-windows release image docs man install uninstall test test-unit \
	test-build test-netns test-warm test-faults test-lab test-debian test-selfcontained test-aarch64 prove-snapshot test-runtime test-release test-all \
	lint format bench bench-node bench-cluster demo golden lock clean distclean

help: ## print this
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- preparation -------------------------------------------------------------------------------

setup: ## install the Debian packages for building and all tests (root)
setup: $(foreach set,build interpreter test aarch64 debian runtime release,.cache/setup-$(set).stamp)

.cache/setup-%.stamp: Makefile tools/setup.sh
	@tools/setup.sh $(PACKAGES_$*)
	@mkdir -p $(@D) && touch $@

# .cache/env-build has what tools/build.lock lists; env-release likewise.
.cache/env-%/.stamp: tools/%.lock | .cache/setup-build.stamp
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install $(PIP_OPTIONS) --only-binary=:all: --require-hashes --requirement $<
	@touch $@

venv: $(VENV_STAMP) ## make .venv with everything for development

$(VENV_STAMP): pyproject.toml tools/dev.lock | .cache/setup-build.stamp
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install $(PIP_OPTIONS) --only-binary=:all: --require-hashes --requirement tools/dev.lock
	$(RUN) -m pip install $(PIP_OPTIONS) --no-index --no-deps --no-build-isolation --editable .
	@touch $@

# --- the product -------------------------------------------------------------------------------

build: dist/cni ## build dist/cni

dist/cni: $(SOURCES) | .cache/env-build/.stamp
	.cache/env-build/bin/python tools/build.py

build-selfcontained: $(SELF_CONTAINED) ## build dist/cni-linux-ARCH, with an interpreter (docs/self-contained.md)

$(SELF_CONTAINED): $(SOURCES) $(INTERPRETER) | .cache/env-build/.stamp .cache/setup-interpreter.stamp
	.cache/env-build/bin/python tools/interpreter/build.py

build-windows: .cache/env-build/.stamp .cache/setup-windows.stamp ## build dist/windows: win-bridge.exe, win-overlay.exe … (docs/windows.md)
	.cache/env-build/bin/python tools/build.py windows

image: build-selfcontained .cache/setup-runtime.stamp ## build and push the server's image IMAGE; write dist/daemonset.yaml for its digest
	tools/image.sh "$(IMAGE)" $(BASE)

# Of a clean tree only; docs/releasing.md.
release: .cache/env-release/.stamp .cache/setup-release.stamp .cache/setup-interpreter.stamp ## write dist/release
	.cache/env-release/bin/python -m tools.release $(RELEASE_ARGS)

docs: .cache/env-docs/.stamp ## write the site below dist/site, from the pages of the repository
	.cache/env-docs/bin/python tools/site/build.py dist/site

man: dist/cni ## write the manual pages below dist/man
	$(PYTHON) -I tools/release/man.py dist/cni dist/man

install: dist/cni ## install the plugins into BIN_DIR (/opt/cni/bin)
	dist/cni install --bin-dir $(BIN_DIR)

uninstall: dist/cni ## take them away again
	dist/cni uninstall --bin-dir $(BIN_DIR)

lock: $(VENV_STAMP) ## write tools/*.lock anew with the newest versions
	$(RUN) tools/build.py lock
	$(RUN) -m tools.release.programs
	$(RUN) -m tools.interpreter.sources

# --- tests -------------------------------------------------------------------------------------

# On a busy machine a packet test may miss its deadline: CI repeats what failed, and says so (R).
RERUNS := $(if $(CI),--reruns 2 --reruns-delay 1)
PYTEST := $(RUN) -m pytest $(RERUNS)
# Tests wait more than they work: two workers a processor, in machines of their own.
WORKERS ?= auto
PARALLEL := -n $(WORKERS) --dist worksteal
# What every test needs: the environment, the programs that judge, the built file.
TESTED := $(VENV_STAMP) .cache/setup-test.stamp dist/cni
# Where requests may begin with a snapshot, these run on the self-contained file, but for a third of
# them, which are always the same (tests/harness/build.py).
BOTH := $(if $(filter x86_64,$(ARCH)),CNI_TEST_FILES=both)
BOTH_BUILT := $(if $(BOTH),$(SELF_CONTAINED))
# What this machine's kernel has is tested on it, and not in the lab.
FEATURES = $(RUN) -c 'from tests.harness.requires import print_features as p; p()'
# A folder that does not exist yet is left out.
tests-in = $(wildcard $(addprefix tests/,$(1)))

# Starting dist/cni takes half of the processor's time. So where the interpreter of the self-contained
# file has been compiled (`make build-selfcontained`), everyday tests of plugins run on that file.
EVERYDAY := $(if $(BOTH),$(if $(wildcard .cache/interpreter/$(ARCH)-*/finished),CNI_TEST_FILES=self-contained))
EVERYDAY_BUILT := $(if $(EVERYDAY),$(SELF_CONTAINED))

test: $(TESTED) $(EVERYDAY_BUILT) ## the everyday tests: unit, build, network namespaces (root); not the slow ones
	$(EVERYDAY) $(PYTEST) $(PARALLEL) -m 'not slow' $(call tests-in,unit build netns) $(PYTEST_ARGS)

test-unit: $(VENV_STAMP) .cache/setup-test.stamp ## only the unit tests (no root)
	$(PYTEST) $(PARALLEL) $(call tests-in,unit) $(PYTEST_ARGS)

test-build: $(TESTED) ## only the tests of the built file and of installing it
	$(PYTEST) $(PARALLEL) $(call tests-in,build) $(PYTEST_ARGS)

test-netns: $(TESTED) ## only the tests in network namespaces
	$(PYTEST) $(PARALLEL) $(call tests-in,netns) $(PYTEST_ARGS)

golden: $(TESTED) ## write anew what commands show at 80 columns, and the table of options in docs/cli.md
	CNI_GOLDEN=write $(PYTEST) $(call tests-in,netns/test_golden.py unit/test_cli_options.py)
	git diff --stat -- tests/netns/golden docs/cli.md

test-warm: $(TESTED) ## the same, not the slow ones, through a server, as far as that makes a difference
	CNI_TEST_SERVER=1 $(PYTEST) $(PARALLEL) -m 'not slow' $(call tests-in,netns) $(PYTEST_ARGS)

test-lab: $(TESTED) $(BOTH_BUILT) ## the tests that need another kernel, in a guest of their own
	CNI_HOST_FEATURES="$$($(FEATURES))" $(BOTH) CNI_LAB=1 $(LAB) -- $(PYTEST) $(PARALLEL) -p no:cacheprovider -m lab --timeout 600 \
		$(call tests-in,lab netns) $(PYTEST_ARGS)

# Collected here: an emulated processor would take minutes for that. And with the self-contained
# file, whose requests start without an interpreter's imports. With a base directory pytest does not
# tidy up what runs on this machine have left in /tmp, which takes the guest more than ten minutes.
DEBIAN_TESTS := .cache/debian-tests
test-debian: $(TESTED) $(BOTH_BUILT) .cache/setup-debian.stamp ## the tests that need Debian's own kernel (SCTP …), in QEMU
	$(RUN) -m pytest -p no:cacheprovider --collect-only -q -m 'debian and not slow' $(call tests-in,lab netns) $(PYTEST_ARGS) \
		| grep :: >$(DEBIAN_TESTS)
	$(if $(BOTH),CNI_TEST_FILES=self-contained) CNI_LAB=debian $(DEBIAN_LAB) -- $(PYTEST) -p no:cacheprovider \
		--basetemp=/run/pytest --timeout 600 @$(DEBIAN_TESTS)

test-selfcontained: $(TESTED) build-selfcontained ## the file with an interpreter, where nothing else is
	$(PYTEST) $(PARALLEL) $(call tests-in,selfcontained) $(PYTEST_ARGS)

# Needs the interpreter for this machine, too, which `make test-selfcontained` has built.
test-aarch64: $(TESTED) .cache/env-build/.stamp .cache/setup-interpreter.stamp .cache/setup-aarch64.stamp ## the same for aarch64, emulated, with Debian's kernel
	.cache/env-build/bin/python tools/interpreter/build.py --arch aarch64
	$(PYTEST) $(wildcard tests/selfcontained/test_aarch64*.py) $(PYTEST_ARGS)

# A request has a snapshot where tools/interpreter/snapshot.py says so.
PROOFS := $(addprefix selfcontained/test_,build.py snapshot.py damage.py start_refused.py touched.py)
prove-snapshot: $(TESTED) build-selfcontained ## whether the snapshot holds, after a pin has changed
	$(if $(BOTH),$(PYTEST) $(PARALLEL) $(call tests-in,$(PROOFS)) $(PYTEST_ARGS),\
		@echo "A file for $(ARCH) has no snapshot: its requests start plainly.")

FAULTS := $(wildcard $(addprefix tests/netns/test_,crash.py interrupted.py sequences.py))
test-faults: $(TESTED) ## kills, signals and errors at every system call of every plugin: hours
	CNI_CRASH_ALL=1 $(PYTEST) $(PARALLEL) --timeout 7200 $(FAULTS) $(PYTEST_ARGS)

test-runtime: $(TESTED) .cache/setup-runtime.stamp ## containers started by podman and containerd
	$(PYTEST) --timeout 600 $(call tests-in,runtime) $(PYTEST_ARGS)

test-release: $(TESTED) .cache/setup-runtime.stamp .cache/setup-release.stamp .cache/env-docs/.stamp ## what make installs, and what a release consists of
	$(PYTEST) --timeout 600 $(call tests-in,release) $(PYTEST_ARGS)

# The lab's kernel has one processor: beside it runs what is mostly busy with another one.
BESIDE_LAB ?= test-runtime
LAB_LOG := .cache/test-lab.log
# What runs last, so that the last summary is its own: the largest part. All run in any case.
LAST ?= unit build netns
test-all: $(TESTED) $(BOTH_BUILT) .cache/setup-runtime.stamp ## everything, as CI runs it
	@failed=0; trap 'kill $$lab; exit 130' INT TERM; \
	$(MAKE) --no-print-directory test-lab >$(LAB_LOG) 2>&1 & lab=$$!; \
	for part in $(BESIDE_LAB); do $(MAKE) --no-print-directory $$part || failed=1; done; \
	wait $$lab || failed=1; cat $(LAB_LOG); \
	$(MAKE) --no-print-directory test-warm || failed=1; \
	$(BOTH) $(PYTEST) $(PARALLEL) --timeout 600 $(call tests-in,$(LAST)) $(PYTEST_ARGS) && exit $$failed

bench: $(TESTED) build-selfcontained ## compare with Debian's Go plugins, and print ratios
	$(RUN) -m tests.bench

bench-node: $(TESTED) ## what requests cost on a node with up to 1,000 pods (10 minutes)
	$(RUN) -m tests.bench.node

bench-cluster: $(TESTED) ## what claiming blocks costs in a real etcd of three members
	$(RUN) -m tests.bench.cluster

demo: dist/cni .cache/setup-demo.stamp ## network two namespaces, show them talking, clean up
	tools/demo.sh

# --- care --------------------------------------------------------------------------------------

lint: $(VENV_STAMP) ## ruff, mypy, import rules
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache
	sh -n launcher/prefix.sh
	sh -n tools/setup.sh
	sh -n tools/image.sh
	bash -n .ci/run

format: $(VENV_STAMP) ## let ruff put the code in order
	$(VENV)/bin/ruff check --fix-only
	$(VENV)/bin/ruff format

clean: ## remove what building and testing made
	rm -rf dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find cni tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## also the environment and the downloads
	rm -rf .venv .cache *.egg-info
