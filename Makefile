# The two commands that matter: `make run` and `make test`. Both install first, into .venv/.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := tensorboard,wandb,rovers,notebook,dev

# Asked for only when something is installed: each candidate must really start, because a
# pyenv shim named python3.11 exists even where no such Python does.
PYTHON ?= $(shell for p in python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.DEFAULT_GOAL := help
.PHONY: help install install-debian run run-rover test test-all wheel lint format bench bench-quick chaos notebooks

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' Makefile | expand -t 13

install: $(STAMP)  ## create .venv/ and install everything, pinned; quick the second time

# The stamp comes last, so an interrupted install is done again.
$(STAMP): pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		test -n "$(PYTHON)" || { echo "no Python >= 3.11 found; name one: make install PYTHON=..." >&2; exit 1; }; \
		$(PYTHON) -m venv --clear $(VENV); }
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

# Beside the tests' Python, so that nothing of the system changes.
install-debian: install
	tests/setup_debian.sh $(BIN)

run: install  ## train Pong and Breakout for about three minutes
	$(BIN)/rl-cluster train experiments/atari_quickstart.yaml

run-rover: install  ## let three simulated rovers learn for five minutes
	$(BIN)/rl-cluster train experiments/rover_quickstart.yaml

# Tests of live runs have the machine to themselves; the others share it.
LIVE := $(wildcard tests/test_run_*.py) tests/chaos

TESTS := $(BIN)/python -m pytest --durations=15 -m

test: lint install-debian  ## lint, types and tests: about twenty minutes on two cores
	$(TESTS) "not long" -n 2 --dist loadfile $(addprefix --ignore=,$(LIVE))
	$(TESTS) "not long" $(LIVE)

test-all: test  ## then the long tests, too: every page, every notebook, two hosts (an hour)
	$(TESTS) long -n 2 --dist loadfile $(addprefix --ignore=,$(LIVE))
	$(TESTS) long $(LIVE)

chaos: install  ## every fault of the fault suite, again and again (hours)
	rm -f chaos-results/latest.jsonl
	RL_CLUSTER_CHAOS=full $(BIN)/python -m pytest tests/chaos tests/test_stream_fuzz.py tests/test_exactly_once.py \
		tests/test_stream_flood.py tests/test_run_rovers.py -s

bench: install  ## every benchmark beside our peers (hours; CLEANRL=checkout of its repository)
	$(BIN)/python experiments/benchmarks/bench.py $(if $(CLEANRL),--cleanrl $(CLEANRL))

bench-quick: install  ## the benchmarks B1 to B5 in under ten minutes, once the peers are installed
	$(BIN)/python experiments/benchmarks/bench.py --quick $(if $(CLEANRL),--cleanrl $(CLEANRL))

wheel: install  ## dist/, which a cluster's nodes install: the package and the versions of all it needs
	rm -rf dist build
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	cp constraints.txt dist/
	rm -rf build

notebooks: install  ## run all notebooks and write docs/notebooks/ (minutes; wants chromium and npm)
	$(BIN)/python notebooks/render_notebooks.py

lint: install  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
