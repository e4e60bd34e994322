# make help lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TOOLS := .tools

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-slow lint types lock audit bench gpu-kit clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(INSTALLED) ## make .venv with the pinned environment

# Everything but torch is checked against its hash; torch comes second, because its build (CPU, CUDA) differs by machine.
$(INSTALLED): pyproject.toml constraints.txt requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-deps --require-hashes --requirement requirements.lock
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

lock: constraints.txt ## write requirements.lock: the versions of constraints.txt with their hashes
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet uv
	$(TOOLS)/bin/uv pip compile --quiet --no-deps --generate-hashes --no-emit-package torch --python-version 3.11 \
		--custom-compile-command 'make lock' \
		constraints.txt --output-file requirements.lock

audit: ## report known vulnerabilities of what requirements.lock pins (asks the network)
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --quiet pip-audit
	@$(TOOLS)/bin/pip-audit --no-deps --disable-pip --requirement requirements.lock --progress-spinner off \
		> $(TOOLS)/audit 2>&1; code=$$?; \
	if grep -q 'could not be audited\|Traceback\|[A-Za-z]*Error' $(TOOLS)/audit; then \
		echo "make audit: $$(grep -c 'could not be audited' $(TOOLS)/audit) of $$(grep -c == requirements.lock) packages \
	were not checked: the database of vulnerabilities has no answer from here."; \
		echo 'Type make audit on a machine with an open network. Its whole output: $(TOOLS)/audit'; exit 1; \
	fi; cat $(TOOLS)/audit; exit $$code

quickstart: $(INSTALLED) ## install, then fine-tune the embedded model and print base against tuned
	$(BIN)/python train.py experiment=quickstart

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

test: lint types ## ruff, the type checker, the quick tests on every core
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-slow: $(INSTALLED) ## the slow tests: child processes, kills, clusters, the embedded model
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder -m slow

BENCHES := startup training_vs_trl scoring_vs_lm_eval lightning_overhead scale mfu_cpu levers evidence_cost

bench: $(INSTALLED) ## measure speed against TRL, lm-eval and the machine, on the CPU (an hour; bench/README.md)
	@for name in $(BENCHES); do $(BIN)/python bench/$$name.py || exit 1; done

GPU_KIT_PYTHON ?= 3.12

gpu-kit: $(INSTALLED) ## prepare gpu_kit/: what a GPU machine without a network lacks (GPU_KIT_PYTHON=3.12)
	$(BIN)/python bench/pack_gpu_kit.py --python $(GPU_KIT_PYTHON)

clean: ## remove the environment and caches; outputs/ stays
	rm -rf $(VENV) $(TOOLS) gpu_kit .mypy_cache .pytest_cache .ruff_cache build dist
