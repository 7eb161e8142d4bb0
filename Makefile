# Needs Python 3.11 or newer, pip and make. Everything else goes into .venv.
#   make demo                       see it work
#   make PYTHON=python3.12 test     with another interpreter, the first time

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo up observe test prove museum campaign fuzz fuzz-guided bench coverage clean

help:
	@echo "make demo    start a cluster, a checkout that completes and each way a step refuses, audit"
	@echo "make up      run a cluster in the foreground (options: ARGS='--shards 4'); Ctrl-C drains"
	@echo "make observe cluster, steady load with declines, Prometheus with rules and alerts; Ctrl-C ends it"
	@echo "make test    format, lint, types, tests"
	@echo "make prove   play seeds of the simulation (SEEDS=1000 START=1); exit 1 on a violation"
	@echo "make museum  plant bugs and see that the proof finds them (BUGS=a,b; all without)"
	@echo "make coverage  every branch of what decides, keeps and remembers; exit 1 below 100 %"
	@echo "make campaign  every layer of the proof at full size, about two hours (ARGS='--part 0.1')"
	@echo "make bench   measure checkouts a second, beside the floor, on this machine (ARGS='--runs 1')"
	@echo "make fuzz    garbage for every reader (ARGS='--cases 20000000 --seed 1'); fuzz-guided: atheris"
	@echo "make setup   .venv with what tests need"
	@echo "make clean   remove .venv and caches; data directories stay"

# The stamps stand inside .venv: who removes it starts afresh, and git sees nothing.
$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "$(PYTHON) is not there. Name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Sagacity needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	    "Name another: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; \
	  exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "$(PYTHON) -m venv failed; on Debian and Ubuntu: apt install python3-venv" >&2; \
	  exit 1; }
	@touch $@

$(VENV)/.run: pyproject.toml $(VENV)/.made
	@echo "installing into $(VENV)"
	@$(PIP) -e '.[top]'
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.made
	@echo "installing into $(VENV), with what tests need"
	@$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.run

$(VENV)/.bench: pyproject.toml $(VENV)/.run
	@echo "installing into $(VENV), with what measuring needs"
	@$(PIP) -e '.[bench]'
	@touch $@

# What only the guided engine needs, and only here: docs/decisions/0024-atheris.md.
$(VENV)/.fuzz: pyproject.toml $(VENV)/.dev
	@echo "installing atheris into $(VENV)"
	@$(PIP) -e '.[dev,fuzz]'
	@touch $@

setup: $(VENV)/.dev

demo: $(VENV)/.run
	@$(BIN)/python -m cluster.demo $(ARGS)

up: $(VENV)/.run
	@$(BIN)/python -m cluster up $(ARGS)

observe: $(VENV)/.run
	@$(BIN)/python -m cluster.observe $(ARGS)

test: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m $(if $(ARGS),pytest $(ARGS),tests.suite)

SEEDS ?= 1000
START ?= 1
prove: $(VENV)/.dev
	@$(BIN)/python -m tests.simulation --seeds $(SEEDS) --start $(START) $(ARGS)

BUGS ?=
museum: $(VENV)/.dev
	@$(BIN)/python -m tests.museum $(if $(BUGS),--bugs $(BUGS)) $(ARGS)

# The tests of those rooms alone: the whole suite takes no other branch of them, and longer.
COVERED := admission barrier codec compaction counted deadlines engine_* executor forgetting forgotten \
  found_by_fuzzing generations guard history ids journal journal_file listing loop loop_modes \
  loop_time other_sagas pools ranges rates reserve retention retries segments slots sqlite \
  state_refuses suspects telemetry wal whole_schedules wire facts exporting traces
coverage: $(VENV)/.dev
	@$(BIN)/coverage run -m pytest -q $(COVERED:%=tests/unit/test_%.py)
	@$(BIN)/coverage report

campaign: $(VENV)/.dev
	@$(BIN)/python -m tests.campaign $(ARGS)

fuzz: $(VENV)/.dev
	@$(BIN)/python -m tests.fuzz $(ARGS)

fuzz-guided: $(VENV)/.fuzz
	@$(BIN)/python -m tests.fuzz --engine atheris $(ARGS)

bench: $(VENV)/.bench
	@$(BIN)/sagacity bench peak $(ARGS)

clean:
	rm -rf $(VENV) .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
