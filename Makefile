# From an empty machine: Python 3.10 to 3.13 (with venv), make and git. Each target makes .venv first where there is none.
#   make demo     three small domains through the whole pipeline, into ./demo
#   make test     the default test suite
#   make PYTHON=python3.12 test    another Python, for a new .venv

PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
# Two test files at once: the tests of one file share their fixtures. Whole pipelines (tests/flows) come first: a long file at
# the end leaves a core idle.
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

BIN := $(VENV)/bin
# Newer than everything it was installed from: then there is nothing to do, also without a network.
STAMP := $(VENV)/.installed

.PHONY: help install demo test lint format typecheck clean

help:
	@sed -n 's/^#   //p' Makefile
	@echo 'make install | lint | format | typecheck | clean'

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/samcl demo $(DEMO)

test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(STAMP)
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info

# uv reads [tool.uv] in pyproject.toml, which makes sam2 (a source package that imports torch in its build) one step.
# constraints.txt was resolved for 3.11 to 3.13; some of its versions have no wheels for 3.10.
$(STAMP): pyproject.toml constraints.txt constraints-py310.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	  sys.exit(None if (3, 10) <= v <= (3, 13) else f"error: $(PYTHON) is Python {v[0]}.{v[1]}, expected 3.10 to 3.13\nnext: make PYTHON=python3.12 install")'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo 'error: $(PYTHON) has no venv; next: install python3-venv' >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	constraints=$$($(BIN)/python -c 'import sys; print("constraints-py310.txt" if sys.version_info < (3, 11) else "constraints.txt")') && \
	  VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip install --compile-bytecode -c $$constraints 'setuptools>=77' wheel && \
	  VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip install --compile-bytecode -c $$constraints -e '.[pipeline,dev]'
	touch $(STAMP)
