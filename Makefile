# Every target makes what it needs: .venv appears by itself and follows pyproject.toml and constraints.txt.
PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.installed-runtime
FULL := $(VENV)/.installed-full
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:  # two pips in one .venv get in each other's way
.PHONY: help demo test chaos lint bench format

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

demo: $(RUNTIME)  ## ten thousand backtests of the S&P 500 through real workers on this machine
	@$(BIN)/runner demo

test: $(FULL)  ## every test
	@$(BIN)/python -m pytest

chaos: $(FULL)  ## the long fault tests
	@$(BIN)/python -m pytest -m chaos tests/faults

lint: $(FULL)  ## ruff, mypy and the import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

bench: $(FULL)  ## the figures of docs/performance.md, measured here
	@$(BIN)/python -m benchmarks

format: $(FULL)  ## let ruff lay out the code
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "backtest-runner needs Python 3.11 or newer, and '$(PYTHON)' is not." \
	         "Name one that is: make PYTHON=python3.12 ..." >&2; exit 1; }
	@trap 'rm -rf $(VENV)' EXIT INT TERM; $(PYTHON) -m venv --clear $(VENV) && trap - EXIT

$(RUNTIME): $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (the first time takes a minute or two) ..."
	@$(PIP_INSTALL) --editable .
	@touch $@

$(FULL): $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (the first time takes a minute or two) ..."
	@$(PIP_INSTALL) --editable '.[test,lint]'
	@touch $(RUNTIME) $@
