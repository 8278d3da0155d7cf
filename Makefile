# Everything runs in .venv, which `make install` creates. Nothing is installed outside this folder.
PYTHON ?= python3
UV_VERSION := 0.13.8
BIN := .venv/bin
DEMO ?= demo
STAMP := $(shell date +%Y%m%d-%H%M%S)
NAME ?= clutter-$(STAMP)
BUDGET ?= 500k
JOBS ?= 3
export ROUTEFRONT_STUDIES ?= $(abspath $(DEMO))/studies
# Python keeps what it compiles, also where the environment says otherwise: a worker that compiles torch and Ray
# anew takes twice as long to start.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help install demo test quick lint lock bench docs tutorials clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  \1\t/' | expand -t 14

install: .venv/installed ## create .venv and install everything, pinned

.venv/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "routefront needs Python 3.11 or newer; try make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	$(BIN)/python -c 'import mlflow, optuna, plotly, search.__main__, trainables.worker.ray_trainable' # compiled once
	@touch $@

demo: install ## search on digits in clutter, draw the frontier, promote the best under a budget, classify with it
	@mkdir -p $(DEMO)
	$(BIN)/routefront search --preset clutter --name $(NAME)
	$(BIN)/routefront frontier $(NAME)
	$(BIN)/routefront report $(NAME) --out $(DEMO)
	$(BIN)/routefront promote $(NAME) --max-macs $(BUDGET) --model clutter --alias champion
	$(BIN)/routefront predict --model clutter@champion --split test

test: install ## the test suite
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations 15

quick: install ## the tests that start no Ray and no server and train little, for everyday work
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --quick -q

lint: install ## ruff, pyright, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

lock: install ## renew requirements.lock (hashes, no addresses)
	$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --no-emit-index-url --group dev \
		--extra postgres pyproject.toml -o requirements.lock

bench: install ## the benchmarks, each prints a table
	@for file in tests/benchmarks/*/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

docs: install ## the documentation's site, into site/ (offline; python -m http.server -d site shows it)
	$(BIN)/mkdocs build --quiet --strict --clean

tutorials: install ## run every tutorial of docs/tutorials, block by block, with what they print (a quarter of an hour)
	$(BIN)/python docs/tools/run.py docs/tutorials/*.md

clean: ## remove what was built and the demo's results (.venv stays)
	rm -rf build dist site *.egg-info $(DEMO) .ruff_cache .hypothesis .import_linter_cache
