# Every target works on a machine with nothing but Python (>= 3.11) and make: `.venv` is made on demand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SET ?=

.DEFAULT_GOAL := help
.PHONY: help install replicate-digits report-digits test lint types check clean

help:  ## Show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

install: $(INSTALLED)  ## Make .venv and install the package with its tested versions

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

replicate-digits: $(INSTALLED)  ## Train all methods on the digits, two seeds each; tables and figures (SET= overrides)
	$(BIN)/python -m replications run digits $(SET)

report-digits: $(INSTALLED)  ## Make results/digits again from the finished runs
	$(BIN)/python -m replications report digits

test: $(INSTALLED)  ## Run the test suite
	$(BIN)/python -m pytest --numprocesses 2 --dist loadscope tests

lint: $(INSTALLED)  ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)  ## pyright
	$(BIN)/pyright

check: lint types test  ## Everything that CI runs

clean:  ## Remove caches (keeps .venv, runs and results)
	rm -rf .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
