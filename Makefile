# hako. As root: `make run` and `make test` are all that a fresh Debian 12 or 13 needs.
PREFIX ?= /usr/local
# The system user that the VMM and its daemons run as when installed; empty for none.
RUN_AS ?= hako
# Options of the benchmark, such as --rounds 3.
BENCH ?=
# What `make test`, `make test-trixie` and `make test-bookworm` run; any arguments of pytest.
TESTS ?= tests

PYTHON := .venv/bin/python
SETUP := sh shim/install/setup.sh
INSTALLER := $(PYTHON) -m shim.install

.PHONY: help run setup guest kernel test test-cold test-trixie test-bookworm lint bench install uninstall clean
.DEFAULT_GOAL := help

help:
	@echo 'make run          install what is missing and run a command in a container in its own microVM'
	@echo 'make test         all tests (TESTS=tests/unit for some)'
	@echo 'make test-cold    the tests of whole pods again, without templates: every pod boots'
	@echo 'make kernel       build our own guest kernel (minutes; cached); the distribution'"'"'s serves until then'
	@echo 'make install      hako and containerd-shim-hako-v2 below PREFIX=$(PREFIX)'
	@echo 'make uninstall    take everything away again (KEEP_CACHE=1 keeps what was built and fetched)'
	@echo 'make lint         ruff, mypy --strict, import contract'
	@echo 'make bench        measure, beside runc, crun, gVisor and bare floors'
	@echo 'make test-trixie  the tests in a fresh Debian 13 (test-bookworm: 12) below build/'
	@echo 'make clean        remove what was made in this checkout'

setup:
	@$(SETUP) run

# What boots, the tools that the distribution lacks, the small image and the launchers in build/bin.
guest: setup
	@$(INSTALLER) prepare

run: setup
	@$(INSTALLER) run

kernel:
	@$(SETUP) run kernel
	@$(INSTALLER) kernel

test:
	@$(SETUP) run test
	@$(INSTALLER) prepare-tests
	$(PYTHON) -m pytest $(TESTS)

test-cold:
	@$(SETUP) run test
	@$(INSTALLER) prepare-tests
	HAKO_TEST_COLD=1 $(PYTHON) -m pytest -m 'pods and not clones' tests/vm

lint:
	@$(SETUP) test
	$(PYTHON) -m pytest -q tests/style

bench:
	@$(SETUP) run test
	@$(INSTALLER) prepare
	$(PYTHON) -m tests.bench $(BENCH)

install: guest
	@$(INSTALLER) install --prefix '$(PREFIX)' --user '$(RUN_AS)'

uninstall:
	@$(INSTALLER) uninstall --prefix '$(PREFIX)' $(if $(KEEP_CACHE),--keep-cache)

test-trixie test-bookworm: test-%:
	@$(SETUP) run test
	$(PYTHON) -m tests.framework.fresh $* test TESTS="$(TESTS)"

clean:
	rm -rf build .venv .mypy_cache .ruff_cache .pytest_cache hako.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
