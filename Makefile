# Every target does its own set-up: a virtual environment in .venv with the versions of requirements/constraints.txt.
# PYTHON       the interpreter to make it with (3.11 or newer)
# VENV         where to make it
# TORCH_INDEX  another package index to look for torch in, for instance PyTorch's own index of CPU builds.
#              A CPU build that pip is already set up to find is taken by itself.
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
DEMO ?= demo-output
WORKERS ?= auto

# One thread per test process: the models are tiny, and threads of several processes would only fight for the cores.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet -c requirements/constraints.txt \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
PYTEST = $(BIN)/python -m pytest -q
FAST = not slow and not gpu and not hub and not fuzz

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow fuzz kills test-external test-versions check flat style bench docs build clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | sort | \
		awk -F '\t' '{printf "  make %-14s %s\n", $$1, $$2}'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "sca-hf needs Python 3.11 or newer; name one with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Installed editable, so that the sources are what runs; torch and all else are resolved in one call.
$(VENV)/.installed: pyproject.toml requirements/constraints.txt | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml requirements/constraints.txt | $(BIN)/python
	$(PIP) -e '.[train,dev]'
	@touch $@ $(VENV)/.installed

install: $(VENV)/.installed-dev ## set up .venv for working on sca-hf

demo: $(VENV)/.installed ## caption a photograph with the bundled model: a picture, a JSON file and a table in demo-output/
	$(BIN)/sca-hf caption examples/coffee.jpg --regions examples/coffee.json \
		--json $(DEMO)/captions.json --overlay $(DEMO)/captions.png

test: $(VENV)/.installed-dev ## the fast tests
	$(PYTEST) -n $(WORKERS) --maxprocesses 4 -m "$(FAST)"

test-slow: $(VENV)/.installed-dev ## the slow tests
	$(PYTEST) -m "slow and not hub"

fuzz: $(VENV)/.installed-dev ## mutated folders, data, masks, requests and runs: SCA_FUZZ_SECONDS for each target (60)
	SCA_FUZZ_SECONDS=$${SCA_FUZZ_SECONDS:-60} $(PYTEST) -s -m fuzz tests/fuzz

kills: $(VENV)/.installed-dev ## long commands killed at SCA_KILLS random moments (20) by each of three signals, or without room
	PYTHONPATH=.:tests/hub:tests/training $(BIN)/python -m tests.kill_matrix --times $${SCA_KILLS:-20}

test-external: $(VENV)/.installed-dev ## the library's own model and processor tests, run against our classes
	$(BIN)/python tests/external/run.py

test-versions: $(BIN)/python ## save and load across the oldest, a middle and the newest transformers; writes docs/versions.md
	$(BIN)/python tests/versions/run.py $(if $(TORCH_INDEX),--index $(TORCH_INDEX))

check: $(VENV)/.installed-dev ## lint, format, types, flat-copy rules, sizes, structure and vocabulary
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) tests/test_flat_copy.py tests/test_house.py tests/test_layers.py tests/test_vocabulary.py

flat: $(VENV)/.installed-dev ## can modeling/ and processing/ be copied flat to the Hub?
	$(PYTEST) tests/test_flat_copy.py

style: $(VENV)/.installed-dev ## format, and fix what lint can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-dev ## speed: of the model, of CIDEr-D against pycocoevalcap, and how soon the program starts
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.captions
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.stream

docs: $(VENV)/.installed-dev ## the README's picture and outputs, and docs/api.md, made again
	$(BIN)/python docs/refresh.py
	$(BIN)/python docs/api.py

build: $(BIN)/python ## a wheel in dist/
	$(BIN)/python -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir dist .

clean: ## remove what the targets above made
	rm -rf $(VENV) .versions $(DEMO) dist build .pytest_cache .mypy_cache .ruff_cache
