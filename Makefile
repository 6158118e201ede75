# Every command of the project; `make` lists them. What is installed goes into .venv, .venv-demo, .venv-bench and .cache
# here, and for the system tests, the benchmark and the package some Debian packages (tests/system/install).
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
PYTHON ?= python3
PYTEST := .venv/bin/python -m pytest

.PHONY: help demo test test-unit test-system test-row soak bench deb lint format clean linux python parts

help: ## say what there is
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: .venv-demo/.installed ## show syslogger at work, with a broker of its own: nothing else is needed
	@.venv-demo/bin/syslogger demo

test: parts .venv/.installed ## all tests, with real rsyslog, ZooKeeper and Kafka; installs what is missing
	$(PYTEST)

test-unit: .venv/.installed ## the tests that need nothing but Python
	$(PYTEST) -m "not system"

test-system: parts .venv/.installed ## the tests with real rsyslog, ZooKeeper and Kafka
	$(PYTEST) -m system

test-row: parts .venv/.installed ## the tests of one row of tests/system/FAULTS.md: make test-row ROW=12
	@[[ "$(ROW)" =~ ^[0-9]+$$ ]] || { echo "Which row? make test-row ROW=12" >&2; exit 1; }
	$(PYTEST) --row $(ROW)

soak: parts .venv/.installed ## random faults for MINUTES (10), against three brokers; ends with the account
	.venv/bin/python -m tests.system.soak --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

bench: parts .venv-bench/.installed ## compare with rsyslog and syslog-ng (QUICK=1: in two minutes; BENCH=--help: what else)
	@bench/install
	@.venv-bench/bin/python -m bench $(if $(QUICK),--quick) $(BENCH)

deb: .venv/.installed ## make the Debian package, for Debian 12: dist/syslogger_….deb
	@command -v dh >/dev/null || tests/system/install debhelper
	@packaging/build-deb

lint: .venv/.installed ## style and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: .venv/.installed ## put the code into the one format
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

clean: ## remove all that was made here
	rm -rf .venv .venv-demo .venv-bench .cache build dist .hypothesis .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

linux:
	@[ "$$(uname -s)" = Linux ] || { echo "syslogger runs on Linux only: it is built on epoll and MSG_PEEK." >&2; exit 1; }

python: linux
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { tests/system/install python3-venv; }

parts: linux
	@tests/system/install

# A stamp, made last, so that a half-made environment is made anew.
.venv/.installed: pyproject.toml | python
	@echo "Making .venv"
	@rm -rf .venv
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check "pip >= 25.1"
	@.venv/bin/python -m pip install --quiet --editable . --group dev
	@touch $@

.venv-demo/.installed: pyproject.toml | python
	@echo "Making .venv-demo"
	@rm -rf .venv-demo
	@$(PYTHON) -m venv .venv-demo
	@.venv-demo/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[demo]"
	@touch $@

.venv-bench/.installed: pyproject.toml | python
	@echo "Making .venv-bench"
	@rm -rf .venv-bench
	@$(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[bench]"
	@touch $@
