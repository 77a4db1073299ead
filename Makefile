# Everything that is done with this repository. `make` prints what there is.
# Meant for Debian and Ubuntu; as root, each target installs what it needs.

PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
BIN_DIR ?= /opt/cni/bin
PYTEST_ARGS ?=

VENV := .venv
RUN := $(VENV)/bin/python
VENV_STAMP := $(VENV)/.stamp
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check
SETUP_STAMP := .cache/setup.stamp
LAB := tools/kernel-lab --mem 3G --timeout 2400

SOURCES := $(shell find cni launcher -type f -not -name '*.pyc' 2>/dev/null) \
	tools/build.py tools/bundle.lock

# What building and testing need beyond a bare Debian: Python and the libraries; the programs that
# tests use as judges (nft, iptables, ip, conntrack, tcpdump …); two runtimes and the Go plugins to
# compare with; DHCP servers and firewalld to work with.
PACKAGES := python3 python3-venv python3-nftables libnftables1 \
	nftables iptables iproute2 conntrack tcpdump iputils-ping iputils-arping socat strace ethtool \
	busybox-static util-linux procps kmod git systemd gcc libc6-dev musl-tools \
	gcc-mingw-w64-x86-64 wine64 wine \
	firewalld dbus-daemon ipset iperf3 dnsmasq-base kea-dhcp4-server kea-dhcp6-server radvd \
	podman podman-compose conmon containerd runc containernetworking-plugins

.DEFAULT_GOAL := help
.PHONY: help setup venv build build-windows image install uninstall test test-unit test-build test-netns \
	test-warm test-lab test-runtime test-all lint format bench demo lock clean distclean

help: ## print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- preparation -------------------------------------------------------------------------------

setup: $(SETUP_STAMP) ## install the Debian packages that building and testing need (root)

$(SETUP_STAMP): Makefile
	@tools/setup.sh $(PACKAGES)
	@mkdir -p $(@D) && touch $@

venv: $(VENV_STAMP) ## make .venv with everything for development

# The nftables binding is on no package index: the environment borrows Debian's.
$(VENV_STAMP): pyproject.toml tools/dev.lock | $(SETUP_STAMP)
	$(PYTHON) -m venv $(VENV)
	$(PIP) --only-binary=:all: --require-hashes --requirement tools/dev.lock
	$(PIP) --no-index --no-deps --no-build-isolation --editable .
	$(RUN) tools/build.py nftables
	@touch $@

# --- the product -------------------------------------------------------------------------------

build: dist/cni ## build dist/cni

dist/cni: $(SOURCES) $(VENV_STAMP)
	$(RUN) tools/build.py

build-windows: $(VENV_STAMP) ## build dist/windows: win-bridge.exe, win-overlay.exe … (docs/windows.md)
	$(RUN) tools/build.py windows

image: dist/cni ## build and push the server's image IMAGE; write dist/daemonset.yaml for its digest
	tools/image.sh "$(IMAGE)" $(BASE)

install: dist/cni ## install the plugins into BIN_DIR (/opt/cni/bin)
	dist/cni install --bin-dir $(BIN_DIR)

uninstall: dist/cni ## take them away again
	dist/cni uninstall --bin-dir $(BIN_DIR)

lock: $(VENV_STAMP) ## write tools/bundle.lock anew with the newest versions
	$(RUN) tools/build.py lock

# --- tests -------------------------------------------------------------------------------------

# On a busy machine a packet test may miss its deadline: CI repeats what failed, and says so (R).
RERUNS := $(if $(CI),--reruns 2 --reruns-delay 1)
PYTEST := $(RUN) -m pytest $(RERUNS)
# Tests wait more than they work: two workers a processor, in machines of their own.
PARALLEL := -n auto --dist worksteal
# A folder that does not exist yet is left out.
tests-in = $(wildcard $(addprefix tests/,$(1)))

test: dist/cni ## the everyday tests: unit, build, network namespaces (root); not the slow ones
	$(PYTEST) $(PARALLEL) -m 'not slow' $(call tests-in,unit build netns) $(PYTEST_ARGS)

test-unit: $(VENV_STAMP) ## only the unit tests (no root)
	$(PYTEST) $(PARALLEL) $(call tests-in,unit) $(PYTEST_ARGS)

test-build: dist/cni ## only the tests of the built file and of installing it
	$(PYTEST) $(PARALLEL) $(call tests-in,build) $(PYTEST_ARGS)

test-netns: dist/cni ## only the tests in network namespaces
	$(PYTEST) $(PARALLEL) $(call tests-in,netns) $(PYTEST_ARGS)

test-warm: dist/cni ## the same, not the slow ones, with every plugin run through a server
	CNI_TEST_SERVER=1 $(PYTEST) $(PARALLEL) -m 'not slow' $(call tests-in,netns) $(PYTEST_ARGS)

test-lab: dist/cni ## the tests that need another kernel, in a guest of their own
	CNI_LAB=1 $(LAB) -- $(PYTEST) $(PARALLEL) -p no:cacheprovider -m lab --timeout 600 \
		$(call tests-in,lab netns) $(PYTEST_ARGS)

test-runtime: dist/cni ## containers started by podman and containerd
	$(PYTEST) --timeout 600 $(call tests-in,runtime) $(PYTEST_ARGS)

# The largest part last, so that the last summary is its own. All run in any case.
test-all: dist/cni ## everything, as CI runs it
	@failed=0; for part in test-lab test-warm test-runtime; do \
		$(MAKE) --no-print-directory $$part || failed=1; done; \
	$(PYTEST) $(PARALLEL) --timeout 600 $(call tests-in,unit build netns) $(PYTEST_ARGS) && exit $$failed

bench: dist/cni ## compare with Debian's Go plugins, and print ratios
	$(RUN) -m tests.bench

demo: dist/cni ## network two namespaces, show them talking, clean up
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
