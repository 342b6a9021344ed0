# `make demo` and `make test` do all the set-up themselves. Needs Python 3.11+, git and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
WORKERS ?= 2

.PHONY: install demo test check lint bench bench-serving docs lock lowest format clean

install: $(STAMP)

$(STAMP): requirements/lock.txt requirements/installer.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Mulle needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 install")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/installer.txt
	$(BIN)/python requirements/install.py
	touch $(STAMP)

demo: install
	$(BIN)/python -m mulle.apps.demo

# The whole suite. With CI=true a missing server is a failure, not a skip.
test: install
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m "not alone"
	$(BIN)/python -m pytest -m alone

# What a commit must pass: format, lint, types, floors, fast tests.
check: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m "not slow and not chaos and not simulation and not alone"

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install
	$(BIN)/python benchmarks/run.py

# Our server beside its peers; the first run installs each of them into an environment of its own.
bench-serving: install
	cd benchmarks && $(abspath $(BIN))/python -m serving.run

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lock: install
	$(BIN)/python -m uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-emit-find-links --no-header \
		--all-extras --group dev pyproject.toml -o requirements/lock.txt
	$(BIN)/python requirements/check_lock.py

# The oldest versions `pyproject.toml` allows, in an environment of their own.
lowest: install
	$(BIN)/python requirements/install.py --lowest .venv-lowest
	.venv-lowest/bin/python -m pytest -n $(WORKERS) -m "not slow and not chaos and not simulation" -W default::DeprecationWarning tests/unit tests/property

clean:
	rm -rf $(VENV) .venv-lowest .mulle demo site .pytest_cache .ruff_cache .hypothesis .import_linter_cache
